"""The one base of errors, and the name that was probably meant."""

import importlib

import pytest
from test_house import MODULES

from cliad.errors import CliadError, closest, is_utf8, printable, unknown


@pytest.mark.parametrize(
    "name, meant",
    [
        ("clip-adaptor", "clip-adapter"),
        ("GDA", "gda"),
        ("tip-adpater", "tip-adapter"),
        ("xyz", None),
    ],
)
def test_the_nearest_name_is_found_whatever_its_case(name, meant):
    assert closest(name, ["clip-adapter", "gda", "tip-adapter"]) == meant


def test_the_line_for_an_unknown_name_says_what_there_is():
    assert unknown("head", "xyz", ["gda"]) == "there is no head 'xyz'; known: gda"
    assert unknown("head", "gdb", ["ape", "gda"]) == (
        "there is no head 'gdb', did you mean gda?; known: ape, gda"
    )


def test_every_error_of_ours_is_one_that_a_user_can_mend():
    """The command line shows these in one line; any other exception is a defect of the program."""
    strange = []
    for path in MODULES:
        name = ".".join(["cliad", *path.with_suffix("").parts]).removesuffix(".__init__")
        for value in vars(importlib.import_module(name)).values():
            own = isinstance(value, type) and value.__module__ == name
            if own and issubclass(value, Exception) and not issubclass(value, CliadError):
                strange.append(value)
    assert not strange


@pytest.mark.parametrize(
    "text, shown",
    [
        ("golden retriever", "golden retriever"),
        ("Müller 猫", "Müller 猫"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("two\nlines\tand a tab", r"two\x0alines\x09and a tab"),
        ("a byte \udcff of a file name", r"a byte \xff of a file name"),
        ("half \ud800", r"half \ud800"),
        ("turned \u202e round", r"turned \u202e round"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_an_escape(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(
    "name, can_be_written",
    [("", True), ("Müller 猫 😀", True), ("a byte \udcff", False), ("half \ud800", False)],
)
def test_a_name_of_bytes_that_are_no_text_is_told(name, can_be_written):
    assert is_utf8(name) is can_be_written

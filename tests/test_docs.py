"""The README names every command and head; tests/test_pages.py runs what it types."""

from pathlib import Path

import pytest
from command_names import NAMES

import cliad
from cliad.adapters import HEADS

README = Path(cliad.__file__).parent / "README.md"
pytestmark = pytest.mark.skipif(
    not README.is_file(), reason="the README is part of the checkout, not of the wheel"
)


def test_every_command_has_help_an_example_and_a_place_in_the_readme():
    text = README.read_text(encoding="utf-8")
    for name, command in NAMES.items():
        assert "Example: cliad " + name in command.help, name
        assert f"cliad {name}" in text, name
        assert all(param.help for param in command.params if param.name != "help"), name


def test_every_head_is_in_the_reference_and_known_to_editors():
    """What is kept by hand beside the table of heads."""
    root = README.parent
    reference = (root / "docs" / "api" / "heads.md").read_text(encoding="utf-8")
    public = (root / "__init__.py").read_text(encoding="utf-8")
    for kind in HEADS.values():
        assert f"::: {kind.__module__}\n" in reference, kind
    for name in cliad.CLASSIFIERS:
        assert f"import {name} as {name}" in public or f"{name} as {name},\n" in public, name


def test_every_head_is_in_the_readme():
    text = README.read_text(encoding="utf-8")
    assert not [name for name in HEADS if f"`{name}`" not in text]

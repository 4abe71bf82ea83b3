"""What is printed: names from outside never reach a terminal as commands, and a pipe may close."""

import json
import os
import subprocess
import sys

import pytest
from conftest import toy_cache

from cliad.commands import show

NASTY = [
    "\x1b[31mred",
    "[red]x[/red]",
    "[/]",
    "two\nlines",
    "turned \u202e",
    "csi \x9b31m",
    "bell\x07",
]


def test_a_table_shows_names_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    show.print_table("[bold]t", ["name"], [[name] for name in NASTY])
    said = capsys.readouterr().out
    for text in ("[bold]t", r"\x1b[31mred", "[red]x[/red]", "[/]", r"two\x0alines", r"\u202e"):
        assert text in said
    assert not set(said) & set("\x1b\x07\x9b\u202e")


def test_lines_and_logs_show_escapes(capsys):
    for name in NASTY:
        show.line(name)
        show.log(name)
    out, err = capsys.readouterr()
    assert out == err
    assert len(out.splitlines()) == len(NASTY)
    assert not set(out) & set("\x1b\x07\x9b\u202e")


def test_json_holds_the_names_and_no_command_to_a_terminal(capsys):
    names = [*NASTY, "half \ud800", "Müller 猫"]
    show.print_json(names)
    said = capsys.readouterr().out
    assert json.loads(said) == names
    assert "Müller 猫" in said
    assert not set(said) & set("\x1b\x07\x9b\u202e\ud800")


def program(*words, **options):
    """`python -m cliad` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "cliad", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_ctrl_c_while_the_command_line_is_imported_is_one_line(tmp_path, share):
    # As Python's own start has no place to catch anything, the signal comes from within: after a
    # share of the modules that the command line loads.
    code = f"""
import importlib.abc, os, signal, sys
from cliad.__main__ import main

class Interrupter(importlib.abc.MetaPathFinder):
    left = int(60 * {share})
    def find_spec(self, name, path, target=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupter())
sys.argv = ["cliad", "heads"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "cliad: interrupted\n")


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    process = program("heads", cwd=tmp_path)
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    process.wait(20)
    process.stderr.close()
    assert err == ""


@pytest.mark.parametrize("command", ["info", "verify"])
def test_without_a_path_it_is_the_newest_cache_and_that_is_said(tmp_path, command):
    old = toy_cache(tmp_path / "caches", dataset="old")
    new = toy_cache(tmp_path / "caches", dataset="new")
    os.utime(old, (1, 1))
    process = program(command, env=os.environ | {"CLIAD_CACHE": str(tmp_path / "caches")})
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"the newest cache: {new}" in err
    assert "new" in out


def test_without_any_cache_there_is_one_line(tmp_path):
    process = program("info", env=os.environ | {"CLIAD_CACHE": str(tmp_path)})
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("cliad: there is no cache in") and err.count("\n") == 1


def test_training_that_takes_minutes_says_how_far_it_is_once_a_minute(capsys, monkeypatch):
    clock = 100.0
    monkeypatch.setattr(show.time, "monotonic", lambda: clock)
    steps = show.step_lines()
    said = []
    for done in range(1, 101):  # 100 steps of 3 seconds
        steps(done, 100)
        clock += 3
        said += capsys.readouterr().err.splitlines()
    assert said == [
        "step 5 of 100, about 5 min left",
        "step 25 of 100, about 4 min left",
        "step 45 of 100, about 3 min left",
        "step 65 of 100, about 2 min left",
        "step 85 of 100, about 45 s left",
    ]
    for done in range(1, 11):  # the next training is quick, and says nothing
        steps(done, 10)
        clock += 0.9
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (59, "59 s"), (60, "1 min"), (3540, "59 min"), (7500, "2 h 5 min")],
)
def test_a_duration_reads_as_people_say_it(seconds, text):
    assert show.duration(seconds) == text

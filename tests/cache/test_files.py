"""How files are written: whole or not at all, and nothing left behind."""

import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cliad.cache.files import file_lock, replace_text, replacing


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_text_file_is_written_whole_and_folders_on_the_way_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "page.html"
    replace_text(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    assert names(path.parent) == ["page.html"]


def test_where_writing_fails_the_old_file_stays_and_nothing_else(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(OSError, match="disk"), replacing(path) as new:
        new.write_text("half")
        raise OSError(28, "the disk is full")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["page.html"]


def test_readers_see_the_old_file_until_the_block_ends(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with replacing(path) as new:
        new.write_text("new")
        assert path.read_text() == "old"
        assert new.parent == path.parent
    assert path.read_text() == "new"


def test_a_folder_takes_the_place_of_a_folder(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "old.json").write_text("old")
    with replacing(path) as new:
        new.mkdir()
        (new / "new.json").write_text("new")
    assert names(path) == ["new.json"]
    assert names(tmp_path) == ["run"]


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    path = tmp_path / "thesis"
    path.mkdir()
    (path / "chapter.tex").write_text("years of work")
    with pytest.raises(IsADirectoryError):
        replace_text(path, "page")
    assert (path / "chapter.tex").read_text() == "years of work"
    assert names(tmp_path) == ["thesis"]


@pytest.mark.parametrize("path", [Path(""), Path("."), Path(".."), Path("/")])
def test_a_folder_without_a_name_of_its_own_cannot_be_written(path, tmp_path, monkeypatch):
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    with pytest.raises(OSError):
        replace_text(path, "page")
    assert names(tmp_path) == ["inside"]
    assert names(inside) == []


def test_a_new_file_has_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        replace_text(tmp_path / "page.html", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o640


HOST = re.sub(r"[^A-Za-z0-9.]", "", socket.gethostname())


def dead_process():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    dead, living = dead_process(), os.getppid()
    (tmp_path / f".page.html.{HOST}-{dead}.new").write_text("half")
    (tmp_path / f".page.html.{HOST}-{living}.new").write_text("half")
    (tmp_path / f".other.html.{HOST}-{dead}.new").write_text("half")
    (tmp_path / f".page.html.other-machine-{dead}.new").write_text("half")
    (tmp_path / ".page.html.notes.new").write_text("not ours")
    replace_text(tmp_path / "page.html", "whole")
    assert names(tmp_path) == sorted(
        [
            f".other.html.{HOST}-{dead}.new",
            f".page.html.{HOST}-{living}.new",
            ".page.html.notes.new",
            f".page.html.other-machine-{dead}.new",
            "page.html",
        ]
    )


def test_a_folder_that_a_killed_process_left_is_removed(tmp_path):
    leftover = tmp_path / f".run.{HOST}-{dead_process()}.new"
    leftover.mkdir()
    (leftover / "head.safetensors").write_text("half")
    with replacing(tmp_path / "run") as new:
        new.mkdir()
    assert names(tmp_path) == ["run"]


def test_a_folder_that_was_moved_away_by_a_killed_process_comes_back(tmp_path):
    moved = tmp_path / f".run.{HOST}-{dead_process()}.old"
    moved.mkdir()
    (moved / "head.safetensors").write_text("whole")
    with pytest.raises(OSError, match="disk"), replacing(tmp_path / "run"):
        raise OSError(28, "the disk is full")
    assert names(tmp_path) == ["run"]
    assert (tmp_path / "run" / "head.safetensors").read_text() == "whole"


def test_a_folder_is_moved_away_whole_before_it_is_removed(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    (run / "old.json").write_text("old")

    def killed(path, **options):
        raise SystemExit("killed while the old folder is removed")

    with monkeypatch.context() as patch, pytest.raises(SystemExit), replacing(run) as new:
        new.mkdir()
        (new / "new.json").write_text("new")
        patch.setattr("shutil.rmtree", killed)
    assert names(run) == ["new.json"]


def test_a_second_writer_waits_and_is_told_who_holds_the_lock(tmp_path):
    path = tmp_path / "results.jsonl"
    messages = []
    order = []

    def second():
        with file_lock(path, messages.append):
            order.append("second")

    with file_lock(path):
        waiting = threading.Thread(target=second)
        waiting.start()
        while not messages:
            waiting.join(0.01)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]
    assert messages[0].startswith(f"results.jsonl is being written by process {os.getpid()} on ")
    assert "results.jsonl.owner" not in names(tmp_path)


def test_a_lock_without_a_note_is_held_by_another_process(tmp_path):
    path = tmp_path / "results.jsonl"
    messages = []

    def second():
        with file_lock(path, messages.append):
            pass

    with file_lock(path):
        (tmp_path / "results.jsonl.owner").write_text("")  # as between its making and its filling
        waiting = threading.Thread(target=second)
        waiting.start()
        while not messages:
            waiting.join(0.01)
    waiting.join(10)
    assert messages == ["results.jsonl is being written by another process; waiting for it"]


def test_a_device_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a pipe or a device"):
        replace_text(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()


def test_folders_made_for_what_failed_are_removed(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "there" / "a" / "b" / "c"):
        raise ZeroDivisionError
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_a_lock_leaves_nothing_where_nothing_was_written(tmp_path):
    path = tmp_path / "d" / "cache.h5"
    with pytest.raises(KeyError), file_lock(path):
        assert names(path.parent) == ["cache.h5.lock", "cache.h5.owner"]
        raise KeyError("x")
    assert names(tmp_path) == []
    with file_lock(path):
        path.touch()
    assert names(path.parent) == ["cache.h5"]

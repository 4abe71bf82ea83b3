"""Where commands may write: tried before the work begins, and left as it was where it may not."""

import os
import subprocess
import sys

import pytest
from conftest import toy_cache

from cliad.cache.encoders.base import EncoderError
from cliad.cache.files import check_place, replacing
from cliad.cli import main
from cliad.pipelines import demo as demo_module
from cliad.pipelines.demo import DemoError, demo


@pytest.fixture
def cliad(tmp_path, monkeypatch, capsys):
    """Run a command in this process, in a folder with all that no run can be written to."""
    toy_cache(tmp_path / "caches")
    place = tmp_path / "place"
    (place / "mine").mkdir(parents=True)
    (place / "mine" / "thesis.tex").write_text("years of work")
    (place / "one.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    os.mkfifo(place / "pipe")
    monkeypatch.chdir(place)
    monkeypatch.setenv("CLIAD_CACHE", str(tmp_path / "caches"))

    def run(*words):
        monkeypatch.setattr("sys.argv", ["cliad", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().err

    return run


def listing(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "mine", "one.png", "one.png/x", "pipe", "a" * 256, "new/../.."]
)
@pytest.mark.parametrize("command", ["train", "grid", "demo"])
def test_a_place_is_tried_before_anything_is_trained(cliad, tmp_path, command, name):
    if command == "demo" and name in ("", ".", "..", "mine", "new/../.."):
        pytest.skip("a demo is written into a folder, whatever else it holds")
    before = listing(tmp_path)
    code, said = cliad(command, "--out", name, *(["--shots", "1"] if command != "demo" else []))
    assert code == 1
    assert said.startswith("cliad: ")
    assert said.count("\n") == 1
    assert "fault in cliad" not in said
    assert "--out" in said or "one.png line 1: " in said
    assert listing(tmp_path) == before


def test_a_run_folder_below_folders_that_are_not_there_is_made(cliad, tmp_path):
    code, said = cliad("train", "--shots", "1", "--out", "a/b/c")
    assert code == 0, said
    assert (tmp_path / "place" / "a" / "b" / "c" / "run.json").exists()


def test_a_setting_that_is_given_twice_is_not_lost_in_silence(cliad):
    code, said = cliad("train", "--set", "lr=1", "--set", "lr=2")
    assert code == 2
    assert "lr twice" in said


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a full device")
@pytest.mark.parametrize("command", ["train --shots 1", "heads"])
def test_a_full_device_is_one_line(cliad, tmp_path, command):
    place = tmp_path / "place"
    before = listing(place)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cliad.cli", *command.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=place,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("cliad: ")
    assert done.stderr.count("\n") == 1
    assert listing(place) == before


def test_what_is_tried_leaves_nothing(tmp_path):
    check_place(tmp_path / "a" / "b" / "c")
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a pipe or a device"), replacing(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()


def test_a_demo_looks_at_device_and_place_first(tmp_path):
    (tmp_path / "one.png").write_bytes(b"")
    with pytest.raises(EncoderError, match="there is no device 'nope'"):
        demo(folder=tmp_path / "c", out=tmp_path / "d", log=print, device="nope")
    with pytest.raises(DemoError, match="is not a folder; give another folder with --out DIR"):
        demo(folder=tmp_path / "c", out=tmp_path / "one.png", log=print)
    with pytest.raises(DemoError, match="cannot write to /proc"):
        demo(folder=tmp_path / "c", out=demo_module.Path("/proc"), log=print)
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]


def test_a_demo_writes_all_of_its_files_or_none(tmp_path):
    (tmp_path / "accuracy.svg").mkdir()
    (tmp_path / "results.jsonl").write_text("old\n")
    with pytest.raises(DemoError, match="Is a directory"):
        demo_module._write(tmp_path, [{"a": 1}], "<svg/>")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["accuracy.svg", "results.jsonl"]

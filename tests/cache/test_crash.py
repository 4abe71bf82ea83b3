"""Extractions that are killed, that fill the disk, that meet each other."""

import random
import subprocess
import time
from pathlib import Path

import layouts
import pytest
import toy_clip
from extract_process import finish, start

from cliad.cache.file.check import problems
from cliad.cache.file.layout import TO_DO
from cliad.cache.file.read import open_cache

KILLS = 7


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """What the processes are told: weights, configuration, data."""
    folder = tmp_path_factory.mktemp("task")
    toy_clip.register(folder, "toy-crash")
    for i, name in enumerate(("cat", "dog", "eel")):
        for k in range(40):
            layouts.save(folder / "pets" / name / f"{k:02d}.png", 40 * i + k)
    (folder / "pets" / "cat" / "07.png").write_bytes(b"no picture")
    return toy_clip.weights(folder, "toy-crash"), folder / "toy-crash.json", folder


def path_of(process):
    code, lines = finish(process)
    assert code == 0, lines
    return Path(lines[-1])


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    return path_of(start(task, tmp_path_factory.mktemp("whole")))


def rows_marked(cache):
    """Rows of the unfinished file that are marked as done or unreadable; -1 while there is none."""
    parts = list(cache.glob("*/*.part"))
    if not parts:
        return -1
    found = open_cache(parts[0])
    return sum(int((found.split(name).status != TO_DO).sum()) for name in found.split_names)


def test_killed_at_random_moments_and_resumed_gives_the_same_bytes(task, whole, tmp_path):
    """Each process is killed a random while after it has marked rows; what is marked is never lost."""
    chance, marked, kills = random.Random(5), 0, 0
    for _ in range(KILLS):
        process = start(task, tmp_path, 0.01)
        while process.is_alive() and rows_marked(tmp_path) <= marked:
            time.sleep(0.002)
        time.sleep(chance.uniform(0.0, 0.15))
        process.kill()
        process.join()
        if list(tmp_path.glob("*/*.h5")):
            break
        kills, now = kills + 1, rows_marked(tmp_path)
        assert now >= marked
        marked = now
    path = path_of(start(task, tmp_path))
    assert (
        kills >= 3
        and path.read_bytes() == whole.read_bytes()
        and not list(tmp_path.glob("*/*.part"))
    )
    assert problems(open_cache(path)) == []


def test_two_processes_on_one_cache(task, whole, tmp_path):
    """The second says who is at work, waits, and finds a whole file."""
    first = start(task, tmp_path, 0.02)
    while rows_marked(tmp_path) < 0:
        time.sleep(0.01)
    second = start(task, tmp_path)
    path, (code, lines) = path_of(first), finish(second)
    assert code == 0 and Path(lines[-1]) == path and path.read_bytes() == whole.read_bytes()
    assert f"is being written by process {first.pid} on" in lines[0] and "nothing to do" in lines[1]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB, where one may be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("no right to mount a small file system here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_too_small_is_one_line_and_leaves_no_cache(task, small_disk):
    (small_disk / "filler").write_bytes(bytes(4 * 2**20 - 300_000))
    code, lines = finish(start(task, small_disk))
    assert code == 1 and "MB free" in lines[-1] and "--cache DIR" in lines[-1]
    assert {file.suffix for file in small_disk.glob("*/*")} <= {".lock"}


def test_a_disk_that_fills_up_ends_in_one_line_and_can_be_resumed(task, whole, small_disk):
    """Space is reserved first, so a disk can fill up under a run only where that is undone: here the file is made sparse."""
    process = start(task, small_disk, 0.02)
    while rows_marked(small_disk) < 1:
        time.sleep(0.005)
    process.kill()
    process.join()
    part = next(small_disk.glob("*/*.part"))
    make_sparse(part)
    fill_up(small_disk / "filler")
    code, lines = finish(start(task, small_disk))
    assert code == 1 and "is full" in lines[-1] and "run the same command again" in lines[-1]
    (small_disk / "filler").unlink()
    assert path_of(start(task, small_disk)).read_bytes() == whole.read_bytes()


def make_sparse(path):
    """The same bytes, with holes for pages of zeros."""
    content = path.read_bytes()
    path.unlink()
    with open(path, "wb") as file:
        for at in range(0, len(content), 4096):
            if any(content[at : at + 4096]):
                file.seek(at)
                file.write(content[at : at + 4096])
        file.truncate(len(content))


def fill_up(path):
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

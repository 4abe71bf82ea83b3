"""Commands that are ended at any moment: the next run works, and nothing of the first one stays."""

import random
import shutil
import signal

import pytest
from doors.doors import image_folder, npz, results
from doors.sandbox import complaints, run, run_and_end

COMMANDS = {
    "extract": "extract --dataset folder:own --model tiny --force",
    "import": "import npz in.npz --dataset d --encoder e --force",
    "train": "train --dataset folder:own --shots 2 --epochs 3 --out run",
    "grid": "grid --dataset folder:own --shots 1,2 --seeds 1,2 --head gda --out rows.jsonl",
    "report": "report results.jsonl --out page.html",
    "export": "export run --format safetensors --out out.safetensors --force",
}
# What a process leaves while it works. `.part` of an extraction is taken up by the next one.
TRACES = (".new", ".part", ".lock", ".owner")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder in which every command works, and how long each takes."""
    home = tmp_path_factory.mktemp("kills") / "home"
    (home.parent / "outside").mkdir()
    home.mkdir()
    image_folder(home)
    npz(home)
    results(home)
    seconds = {}
    for name, command in COMMANDS.items():
        outcome = run(command.split(), home)
        assert outcome.code == 0, outcome.stderr
        seconds[name] = outcome.seconds
    return home, seconds


def is_of_a_trace(line):
    """Whether what was removed is a leftover, or lay in one: `removed .run.new/run.json`."""
    return any(part.endswith(TRACES) for part in line.split("/"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_was_ended_works_the_next_time_and_leaves_nothing(
    world, tmp_path, request, name, number
):
    template, seconds = world
    chance = random.Random(f"{name} {number}")
    (tmp_path / "outside").mkdir()
    words = COMMANDS[name].split()
    for case in range(request.config.getoption("--count")):
        home = tmp_path / str(case) / "home"
        shutil.copytree(template, home)
        (home.parent / "outside").mkdir()
        ended = run_and_end(words, home, chance.uniform(0, 1.2 * seconds[name]), number)
        assert "Traceback" not in ended.stderr, ended.stderr
        if number == signal.SIGINT and ended.code not in (0, None):
            assert ended.code == 130, ended.stderr
        again = run(words, home)
        assert again.code == 0, again.stderr
        found = complaints(again, COMMANDS[name])
        # What the first one left is removed by the second.
        assert not [line for line in found if not is_of_a_trace(line)]
        left = [path.name for path in home.rglob("*") if path.name.endswith(TRACES)]
        assert not left

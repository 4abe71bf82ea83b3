"""The command line as it is typed: output, exit codes, one line for what is wrong."""

import json
import os
import platform
import subprocess
import sys
from collections import namedtuple

import pytest
from conftest import toy_cache

from cliad.cli import main

Done = namedtuple("Done", "returncode stdout stderr")


@pytest.fixture
def cliad(place, monkeypatch, capsys):
    """Run a command in this process, in the folder of the toy cache."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("CLIAD_CACHE", str(place / "caches"))
    monkeypatch.setenv("COLUMNS", "120")

    def run(*words):
        monkeypatch.setattr("sys.argv", ["cliad", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    toy_cache(folder / "caches")
    return folder


def test_train_prints_a_table_and_saves_a_run(cliad, place):
    done = cliad("train", "--alpha", "0.2", "--shots", "4")
    assert done.returncode == 0, done.stderr
    for text in ("zero-shot", "clip-adapter", "fixed", "toy, toy, 4 shots, seed 1"):
        assert text in done.stdout
    folder = place / done.stdout.rsplit("run folder: ", 1)[1].strip()
    files = {path.name for path in folder.iterdir()}
    assert files == {"head.safetensors", "run.json", "result.json", "README.md"}
    about = json.loads((folder / "run.json").read_text())
    assert about["command"] == "cliad train --alpha 0.2 --shots 4"


@pytest.mark.parametrize(
    "fault, line",
    [
        (OSError(28, "No space left on device", "a.h5"), "No space left on device: a.h5"),
        (MemoryError("16 GiB"), "there is not enough memory for this (16 GiB)"),
        (KeyError("x\x1b[31m"), "this is a fault in cliad (KeyError: 'x\\x1b[31m')"),
        (RecursionError("too deep"), "this is a fault in cliad (RecursionError: too deep)"),
    ],
)
def test_what_python_raises_is_one_line_and_a_traceback_only_with_debug(
    cliad, monkeypatch, fault, line
):
    def fail(*args, **options):
        raise fault

    monkeypatch.setattr("cliad.cli.app", fail)
    done = cliad("train")
    assert done.returncode == 1
    assert done.stderr.startswith(f"cliad: {line}")
    assert done.stderr.count("\n") == 1
    monkeypatch.setattr("sys.argv", ["cliad", "train", "--debug"])
    monkeypatch.setenv("CLIAD_DEBUG", "")
    with pytest.raises(type(fault)):
        main()


def test_an_error_that_ctrl_c_was_made_into_is_an_interruption(cliad, monkeypatch):
    def fail(*args, **options):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise RuntimeError("Error calling __set_name__ on 'Field'") from interrupt

    monkeypatch.setattr("cliad.cli.app", fail)
    done = cliad("train")
    assert done.returncode == 130
    assert done.stderr == "cliad: interrupted\n"


def test_json_is_one_document_on_stdout(cliad):
    row = json.loads(cliad("train", "--alpha", "0", "--shots", "2", "--json", "--out", "r").stdout)
    words = "dataset encoder head shots seed protocol alpha selected_on index_hash fingerprint run"
    scores = "zero_shot_top1 top1 train_seconds"
    assert {*words.split(), *scores.split()} <= set(row)
    assert row["top1"] == row["zero_shot_top1"]
    assert row["run"] == "r"


@pytest.mark.parametrize(
    "words, said",
    [
        (
            "train --alpha 1.5",
            "alpha (weight of the adapted image feature; 0 is zero-shot) is from 0 to 1; got 1.5",
        ),
        ("train --head clip-adaptor", "did you mean clip-adapter?"),
        ("train --shots 99", "class 'class 0' has 24 training images"),
        ("train --dataset dtd", "cliad extract --dataset dtd"),
        ("train --beta 0.5 --head linear-probe", "no hyper-parameter of linear-probe 'beta'"),
        ("train --out caches", "not a run folder"),
        ("shots --split-file none.json", "no file none.json"),
    ],
)
def test_an_error_is_one_line_and_exit_1(cliad, place, words, said):
    before = sorted(place.rglob("*"))
    done = cliad(*words.split())
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert sorted(place.rglob("*")) == before


def test_wrong_usage_is_exit_2(cliad):
    assert cliad("train", "--shots", "four").returncode == 2
    assert cliad("train", "--set", "alpha").returncode == 2


def test_version_and_heads(cliad):
    assert cliad("--version").stdout.startswith("cliad ")
    heads = {head["head"]: head for head in json.loads(cliad("heads", "--json").stdout)}
    assert heads["clip-adapter"]["parameters"] == 2 * 16 * 4
    assert heads["zero-shot"]["parameters"] == 0


def test_shots_needs_no_cache(cliad, tmp_path):
    items = [[f"{c}/{i}.jpg", c, f"class {c}"] for c in (1, 0) for i in range(6)]
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": items, "val": items[:8], "test": []}))
    drawn = json.loads(cliad("shots", "--split-file", file, "--shots", "2", "--json").stdout)
    assert [item["label"] for item in drawn["train"]] == [1, 1, 0, 0]
    assert set(drawn["val"][0]) == {"path", "label", "classname"}


def test_the_command_ends_with_the_exit_code():
    done = subprocess.run(
        [sys.executable, "-m", "cliad.cli", "train", "--shots", "0"],
        env=os.environ | {"CLIAD_CACHE": "."},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "cliad: shots is the number of images per class, at least 1; got 0\n"


@pytest.mark.parametrize("command", ["extract --dataset", "data check"])
def test_a_wrong_list_is_refused_before_torch_is_loaded(tmp_path, command):
    file = tmp_path / "list.csv"
    file.write_text("file,class\na.jpg,0\n")
    words = [*command.split(), f"csv:{file}"]
    code = f"""
import sys, cliad.cli
sys.argv = ["cliad", *{words!r}]
try:
    cliad.cli.main()
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "should begin with a line that names the columns path and label" in (
        done.stdout + done.stderr
    )
    assert "AssertionError" not in done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_the_command_keeps_its_memory_pages():
    code = """
import resource, cliad.cli, numpy
cliad.cli.set_up_process()
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(2**23)  # 64 MB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100


def test_importing_the_command_line_leaves_the_process_alone_and_a_command_sets_it_up():
    code = """
import os, cliad.cli
print("GOMP_SPINCOUNT" in os.environ)
cliad.cli.main()
"""
    env = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    # What a command leaves in the environment is seen by the hook that runs when it ends.
    hook = "import atexit, os; atexit.register(lambda: print(os.environ.get('GOMP_SPINCOUNT')))"
    done = subprocess.run(
        [sys.executable, "-c", hook + code, "--version"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    before, version, after = done.stdout.splitlines()
    assert before == "False"
    assert version.startswith("cliad ")
    assert after == "5000"


def test_transfer_and_base_to_new_on_the_command_line(cliad, place):
    row = json.loads(cliad("train", "--shots", "2", "--test", "toy", "--out", "r", "--json").stdout)
    (other,) = row["transfer"]
    assert other["test_dataset"] == "toy"
    assert other["top1"] == row["top1"]
    before = sorted(place.rglob("*"))
    row = json.loads(cliad("train", "--shots", "2", "--base-to-new", "--json").stdout)
    assert row["n_base"] == 3
    assert row["n_new"] == 2
    assert 0 <= row["new_top1"] <= 1
    assert sorted(place.rglob("*")) == before


def test_the_table_names_the_other_data_sets_and_the_halves(cliad):
    done = cliad("train", "--shots", "2", "--test", "toy", "--out", "r")
    assert done.stdout.splitlines()[-1].startswith("on toy: ")
    halves = cliad("train", "--shots", "2", "--base-to-new").stdout
    assert "toy, toy, 2 shots, seed 1: base to new" in halves
    assert "base (3 classes)" in halves
    assert "new (2)" in halves
    assert "prototype" not in halves
    halves = cliad("train", "--shots", "2", "--base-to-new", "--head", "meta-adapter").stdout
    lines = [line.replace("│", " ").split() for line in halves.splitlines()]
    heads = {line[0]: line[-1] for line in lines if line}
    assert [heads[name] for name in ("zero-shot", "prototype", "meta-adapter")] == ["0", "2", "2"]


def test_info_and_verify_print_what_a_cache_holds(cliad, place):
    (file,) = (place / "caches").glob("*/*.h5")
    shown = cliad("info", file).stdout
    assert shown.startswith("toy by toy, fingerprint ")
    assert "NOT complete" not in shown
    done = cliad("verify", file)
    assert done.returncode == 0
    assert done.stdout == f"{file} is complete and undamaged\n"


def test_demo_data_sets_are_listed_and_checked(cliad):
    assert "your own images: folder:PATH" in cliad("datasets").stdout
    done = cliad("data", "check", "digits")
    assert done.returncode == 0
    assert done.stdout.startswith("digits: in the package; 10 classes")
    assert done.stdout.endswith("no problem found\n")
    assert json.loads(cliad("data", "check", "digits", "--json").stdout)["root"] is None


def test_a_grid_and_its_report(cliad, tmp_path):
    out = tmp_path / "r.jsonl"
    axes = "--shots 1,2 --seeds 1 --set batch=8 --epochs 2"
    done = cliad("grid", *axes.split(), "--alpha", "0:1:0.5", "--out", out)
    assert done.returncode == 0
    assert "6 runs in" in done.stderr
    assert "rows/s" in done.stdout
    assert len(out.read_text().splitlines()) == 6
    again = json.loads(cliad("grid", *axes.split(), "--alpha", "0", "--out", out, "--json").stdout)
    assert set(again) == {"out", "asked", "found", "done", "seconds"}
    assert again["asked"] == again["found"] == 2
    assert again["done"] == 0
    assert cliad("report", out, "--out", tmp_path / "r.html").returncode == 0
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    assert "| shots | selected on | 1 | 2 |" in cliad("report", out, "--format", "md").stdout

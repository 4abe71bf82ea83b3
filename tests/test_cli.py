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
    assert (
        "zero-shot" in done.stdout
        and "clip-adapter" in done.stdout
        and "fixed" in done.stdout
        and "toy, toy, 4 shots, seed 1" in done.stdout
    )
    folder = place / done.stdout.rsplit("run folder: ", 1)[1].strip()
    assert {p.name for p in folder.iterdir()} == {
        "head.safetensors",
        "run.json",
        "result.json",
        "README.md",
    }
    assert (
        json.loads((folder / "run.json").read_text())["command"]
        == "cliad train --alpha 0.2 --shots 4"
    )


def test_json_is_one_document_on_stdout(cliad):
    row = json.loads(cliad("train", "--alpha", "0", "--shots", "2", "--json", "--out", "r").stdout)
    words = "dataset encoder head shots seed alpha zero_shot_top1 top1 train_seconds selected_on protocol index_hash fingerprint run"
    assert (
        set(words.split()) <= set(row)
        and row["top1"] == row["zero_shot_top1"]
        and row["run"] == "r"
    )


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
        ("shots --split-file none.json", "cannot read none.json"),
    ],
)
def test_an_error_is_one_line_and_exit_1(cliad, place, words, said):
    before = sorted(place.rglob("*"))
    done = cliad(*words.split())
    assert (
        done.returncode == 1
        and said in done.stderr
        and done.stderr.count("\n") == 1
        and done.stdout == ""
    )
    assert sorted(place.rglob("*")) == before


def test_wrong_usage_is_exit_2(cliad):
    assert cliad("train", "--shots", "four").returncode == 2
    assert cliad("train", "--set", "alpha").returncode == 2


def test_version_and_heads(cliad):
    assert cliad("--version").stdout.startswith("cliad ")
    heads = {head["head"]: head for head in json.loads(cliad("heads", "--json").stdout)}
    assert (
        heads["clip-adapter"]["parameters"] == 2 * 16 * 4 and heads["zero-shot"]["parameters"] == 0
    )


def test_shots_needs_no_cache(cliad, tmp_path):
    items = [[f"{c}/{i}.jpg", c, f"class {c}"] for c in (1, 0) for i in range(6)]
    (tmp_path / "split.json").write_text(json.dumps({"train": items, "val": items[:8], "test": []}))
    drawn = json.loads(
        cliad("shots", "--split-file", tmp_path / "split.json", "--shots", "2", "--json").stdout
    )
    assert [item["label"] for item in drawn["train"]] == [1, 1, 0, 0] and set(drawn["val"][0]) == {
        "path",
        "label",
        "classname",
    }


def test_the_command_ends_with_the_exit_code():
    done = subprocess.run(
        [sys.executable, "-m", "cliad.cli", "train", "--shots", "0"],
        env=os.environ | {"CLIAD_CACHE": "."},
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 1
        and done.stderr == "cliad: shots is the number of images per class, at least 1; got 0\n"
    )


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_the_command_keeps_its_memory_pages():
    code = """
import resource, cliad.cli, numpy
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(2**23)  # 64 MB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100


def test_transfer_and_base_to_new_on_the_command_line(cliad, place):
    row = json.loads(cliad("train", "--shots", "2", "--test", "toy", "--out", "r", "--json").stdout)
    assert [other["test_dataset"] for other in row["transfer"]] == ["toy"] and row["transfer"][0][
        "top1"
    ] == row["top1"]
    before = sorted(place.rglob("*"))
    row = json.loads(cliad("train", "--shots", "2", "--base-to-new", "--json").stdout)
    assert (
        row["n_base"] == 3
        and row["n_new"] == 2
        and 0 <= row["new_top1"] <= 1
        and sorted(place.rglob("*")) == before
    )


def test_a_grid_and_its_report(cliad, tmp_path):
    out = tmp_path / "r.jsonl"
    done = cliad(
        "grid",
        "--shots",
        "1,2",
        "--seeds",
        "1",
        "--alpha",
        "0:1:0.5",
        "--set",
        "batch=8",
        "--epochs",
        "2",
        "--out",
        out,
    )
    assert (
        done.returncode == 0
        and "6 runs in" in done.stderr
        and "rows/s" in done.stdout
        and len(out.read_text().splitlines()) == 6
    )
    again = json.loads(
        cliad(
            "grid",
            "--shots",
            "1,2",
            "--seeds",
            "1",
            "--set",
            "batch=8",
            "--epochs",
            "2",
            "--out",
            out,
            "--alpha",
            "0",
            "--json",
        ).stdout
    )
    assert again["asked"] == again["found"] == 2 and again["done"] == 0
    assert cliad("report", out, "--out", tmp_path / "r.html").returncode == 0 and (
        tmp_path / "r.html"
    ).read_text().startswith("<!DOCTYPE html>")
    assert "| shots | selected on | 1 | 2 |" in cliad("report", out, "--format", "md").stdout

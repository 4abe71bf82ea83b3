"""The verb `grid`: what it runs, what it writes, and that nothing finished is ever lost or done twice."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import toy_cache
from hypothesis import given, settings
from hypothesis import strategies as st

import cliad
from cliad.adapters import HEADS
from cliad.cache.folder import find
from cliad.cache.store import hold
from cliad.pipelines.axes import AxisError, read_config, values
from cliad.pipelines.grid import grid
from cliad.pipelines.memory import in_parts
from cliad.pipelines.rows import RowsError, read_rows
from cliad.pipelines.train import make_head, run, spec_of, train
from cliad.pipelines.transfer import train_and_transfer

SMALL = {"shots": "1,2", "seeds": "1,2", "epochs": "3"}


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def near(a, b):
    """Whether two rows of the same run say the same, to 1e-4."""
    names = ("top1", "top5", "mean_class", "ece", "nll", "ece_t", "nll_t", "zero_shot_top1")
    return a["index_hash"] == b["index_hash"] and all(abs(a[name] - b[name]) <= 1e-4 for name in names)


@given(st.integers(-20, 20), st.integers(0, 30), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_a_range_is_decimal_and_includes_its_end(start, count, step):
    text = f"{start / 10}:{(start + count * step) / 10}:{step / 10}"
    assert [float(value) for value in values("alpha", text)] == [(start + i * step) / 10 for i in range(count + 1)]


def test_words_become_values():
    assert values("alpha", "0:1:0.2") == ["0", "0.2", "0.4", "0.6", "0.8", "1"] and values("lr", "1e-3,1e-3") == ["1e-3"]
    assert values("shots", [1, 2, "4:8:2"]) == ["1", "2", "4", "6", "8"] and values("encoder", "hf-hub:a/b,RN50") == ["hf-hub:a/b", "RN50"]
    assert values("alpha", "1:0:-0.5") == ["1", "0.5", "0"] and values("hidden", "D/4,D/8") == ["D/4", "D/8"]


def test_a_grid_runs_each_combination_once(toy, tmp_path):
    said, out = [], tmp_path / "r.jsonl"
    words = SMALL | {"head": "clip-adapter,zero-shot,linear-probe", "alpha": "0:1:0.5", "select": "fixed", "set": {"max_iter": 20}}
    done = grid(folder=toy, words=words, out=out, tell=said.append)
    rows = rows_of(out)
    assert done.done == len(rows) == 4 * (3 + 1 + 1) and "20 runs in" in said[0] and "batches" in said[0]
    assert len({row["key"] for row in rows}) == 20 and {row["alpha"] for row in rows} == {0, 0.5, 1, None}
    assert all(row["top1"] == row["zero_shot_top1"] for row in rows if row["alpha"] == 0 or row["head"] == "zero-shot")
    words_of_a_row = (
        "dataset encoder head shots seed alpha zero_shot_top1 top1 train_seconds selected_on protocol index_hash fingerprint run"
    )
    assert set(words_of_a_row.split()) <= set(rows[0]) and rows[0]["versions"]["cliad"] and rows[0]["device"] == "cpu"
    assert sum(count for count, _, _ in rows[0]["reliability"]) == 60
    before = out.read_bytes()
    again = grid(folder=toy, words=words | {"alpha": "0,0.5"}, out=out, tell=said.append)
    assert again.done == 0 and out.read_bytes() == before and "nothing to do" in said[-1]


def test_a_default_that_is_typed_is_the_same_run(toy, tmp_path):
    first = grid(folder=toy, words=SMALL, out=tmp_path / "r.jsonl")
    assert grid(folder=toy, words=SMALL | {"alpha": "0.20", "hidden": "D/4"}, out=tmp_path / "r.jsonl").done == 0
    assert first.done == 4 and grid(folder=toy, words=SMALL | {"set": {"batch": 7}}, out=tmp_path / "r.jsonl").done == 4


def test_a_row_is_what_train_gives(toy, tmp_path):
    grid(folder=toy, words=SMALL | {"alpha": "0.2,0.7", "select": "fixed,val"}, out=tmp_path / "r.jsonl")
    for row in rows_of(tmp_path / "r.jsonl"):
        choices = {"shots": row["shots"], "seed": row["seed"], "select": row["selected_on"], "hyper": row["hyper"]}
        assert near(train(folder=toy, **choices)[0].row(), row)


def test_results_do_not_depend_on_the_grouping(toy):
    cache = find(toy)
    hypers = [{"alpha": alpha, "lr": lr, "epochs": 4, "batch": 9} for alpha in (0.2, 0.9) for lr in (1e-3, 1e-2)]
    asked = [(make_head("clip-adapter", hyper), hyper, seed) for hyper in hypers for seed in (1, 2)]
    specs = [
        spec_of(cache, "clip-adapter", head, shots=4, seed=seed, protocol="coop", select=None, given=hyper) for head, hyper, seed in asked
    ]
    by_size = [{r.spec: r.row() for part in run(cache, specs, torch.device("cpu"), size) for r in part} for size in (1, 3, None)]
    assert all(near(rows[spec], by_size[0][spec]) for rows in by_size for spec in specs)
    assert {row["group_size"] for row in by_size[1].values()} == {3, 2}


def test_two_data_sets_each_over_its_own_cache(tmp_path):
    toy_cache(tmp_path, dataset="a", n_class=3)
    toy_cache(tmp_path, dataset="b", n_class=7, encoder="other", seed=1)
    done = grid(folder=tmp_path, words=SMALL | {"dataset": "a,b"}, out=tmp_path / "r.jsonl")
    rows = rows_of(tmp_path / "r.jsonl")
    assert done.done == 8 and len({row["fingerprint"] for row in rows}) == 2
    assert [row["encoder"] for row in rows if row["dataset"] == "b"] == ["other"] * 4


@pytest.fixture
def shifted(tmp_path):
    """The folder of a data set and two that it is tested on: one noisier, one with fewer classes."""
    toy_cache(tmp_path / "caches", dataset="source")
    toy_cache(tmp_path / "caches", dataset="noisy", noise=1.5)
    toy_cache(tmp_path / "caches", dataset="fewer", n_class=3)
    return tmp_path / "caches"


SHIFT = SMALL | {"dataset": "source", "head": "zero-shot,clip-adapter,gda", "test": "noisy,fewer,source"}


def test_a_run_is_scored_on_other_data_sets_too(shifted, tmp_path):
    out, plain, said = tmp_path / "r.jsonl", tmp_path / "plain.jsonl", []
    done = grid(folder=shifted, words=SHIFT, out=out, tell=said.append)
    grid(folder=shifted, words=SHIFT | {"test": None}, out=plain)
    rows, own = rows_of(out), {row["key"]: row for row in rows_of(plain)}
    assert done.asked == done.done == len(rows) == 36 == len({row["key"] for row in rows}) and said[0].startswith("12 runs in")
    assert {row["key"] for row in rows if "test_dataset" not in row} == own.keys()
    by_set = {name: [row for row in rows if row.get("test_dataset") == name] for name in (None, "noisy", "fewer")}
    assert [len(of) for of in by_set.values()] == [12, 12, 12] and all(row["dataset"] == "source" for row in rows)
    for row in by_set["noisy"] + by_set["fewer"]:
        choices = {"head": row["head"], "shots": row["shots"], "seed": row["seed"], "hyper": row["hyper"]}
        _, _, (alone,) = train_and_transfer(folder=shifted, dataset="source", test=[row["test_dataset"]], **choices)
        assert all(abs(alone[name] - row[name]) <= 1e-4 for name in ("top1", "nll", "zero_shot_top1")) and row["ece_t"] is None


def test_only_rows_that_are_missing_are_made(shifted, tmp_path):
    out, chance = tmp_path / "r.jsonl", random.Random(3)
    grid(folder=shifted, words=SHIFT | {"test": "noisy"}, out=out)
    assert grid(folder=shifted, words=SHIFT, out=out).done == 12
    lines, whole = out.read_text().splitlines(), {row["key"]: row for row in rows_of(out)}
    for kept in ([i for i in range(36) if i != 30], chance.sample(range(36), 20), range(17)):
        before = "".join(lines[i] + "\n" for i in kept)
        out.write_text(before + lines[20][: chance.randrange(99)])  # killed while it wrote a line
        assert grid(folder=shifted, words=SHIFT, out=out).done == 36 - len(kept) and out.read_text().startswith(before)
        rows = {row["key"]: row for row in rows_of(out)}
        assert len(rows_of(out)) == 36 and rows.keys() == whole.keys()
        assert all(row.get("test_dataset") == whole[key].get("test_dataset") for key, row in rows.items())
        assert all(abs(row[name] - whole[key][name]) <= 1e-4 for key, row in rows.items() for name in ("top1", "nll", "zero_shot_top1"))


@pytest.mark.parametrize(
    "words, said",
    [
        ({"test": "nosiy"}, "no cache of nosiy"),
        ({"test": "noisy,more"}, "2 classes that source lacks, such as 'class 5'; Gda serves only"),
        ({"test": "elsewhere"}, "no cache of elsewhere"),
        ({"test": "weights"}, "encoded by Toy, the head was trained on features of toy"),
        ({"test": "noisy,,more"}, "test is a value, a list"),
    ],
)
def test_a_wrong_test_set_is_one_line_before_anything_is_trained(shifted, tmp_path, words, said):
    toy_cache(shifted, dataset="more", n_class=7)
    toy_cache(shifted, dataset="elsewhere", encoder="other")
    toy_cache(shifted, dataset="weights", encoder="Toy")
    with pytest.raises(ValueError) as caught:
        grid(folder=shifted, words=SHIFT | words, out=tmp_path / "r.jsonl")
    assert said in str(caught.value) and "\n" not in str(caught.value) and not (tmp_path / "r.jsonl").exists()


def test_ctrl_c_loses_nothing_finished(toy, tmp_path):
    def stop(state):
        raise KeyboardInterrupt

    words, out = SMALL | {"alpha": "0.2,0.4"}, tmp_path / "r.jsonl"
    with pytest.raises(KeyboardInterrupt):
        grid(folder=toy, words=words, out=out, progress=stop)
    n_first = len(rows_of(out))
    assert 0 < n_first < 8 and grid(folder=toy, words=words, out=out).done == 8 - n_first
    assert len({row["key"] for row in rows_of(out)}) == 8


def test_a_grid_killed_at_random_moments_ends_with_the_same_rows(toy, tmp_path):
    words = {"shots": "1,2,3,4,5,6", "seeds": "1,2", "epochs": "5:60:5"}
    whole, out = tmp_path / "whole.jsonl", tmp_path / "r.jsonl"
    grid(folder=toy, words=words, out=whole)
    program = f"""if True:
        import torch; torch.set_num_threads(1)
        from pathlib import Path
        from cliad.pipelines.grid import grid
        grid(folder=Path({str(toy)!r}), words={words!r}, out=Path({str(out)!r}))"""
    chance, killed = random.Random(5), 0
    for wanted in (1, 40):
        process = subprocess.Popen([sys.executable, "-c", program])
        while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < wanted):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed, "the grid was too fast to be killed"
    grid(folder=toy, words=words, out=out)
    first, second = ({row["key"]: row for row in rows_of(path)} for path in (whole, out))
    assert len(rows_of(out)) == len(second) and first.keys() == second.keys()
    assert all(near(first[key], second[key]) for key in first)


@pytest.mark.parametrize("tail", [b'{"dataset": "toy", "he', b"\0\0\0\0", '{"dataset": "ä'.encode()[:-1]])
def test_a_torn_last_line_is_cut_off_with_a_notice(toy, tmp_path, tail):
    out, said = tmp_path / "r.jsonl", []
    grid(folder=toy, words=SMALL, out=out)
    lines = out.read_bytes()
    out.write_bytes(lines + tail)
    assert len(read_rows(out)[0]) == 4 and read_rows(out)[2] == len(tail)
    assert grid(folder=toy, words=SMALL | {"seeds": "3"}, out=out, tell=said.append).done == 2
    assert "torn" in said[0] and f"{len(tail)} bytes" in said[0] and out.read_bytes().startswith(lines) and len(rows_of(out)) == 6


def test_a_last_row_without_its_newline_is_kept(toy, tmp_path):
    out = tmp_path / "r.jsonl"
    grid(folder=toy, words=SMALL, out=out)
    out.write_bytes(out.read_bytes()[:-1])
    assert grid(folder=toy, words=SMALL | {"seeds": "2,3"}, out=out).done == 2 and len(rows_of(out)) == 6


def test_a_file_that_holds_something_else_is_left_alone(toy, tmp_path):
    out = tmp_path / "notes.txt"
    out.write_text("my notes\n")
    with pytest.raises(RowsError, match=r"line 1: .*mend or delete"):
        grid(folder=toy, words=SMALL, out=out)
    assert out.read_text() == "my notes\n"
    with pytest.raises(RowsError, match="--out"):
        grid(folder=toy, words=SMALL, out=out / "r.jsonl")


def test_a_second_grid_on_one_file_waits_and_says_who_holds_it(toy, tmp_path):
    out, said = tmp_path / "r.jsonl", []
    with hold(out):
        second = threading.Thread(target=lambda: grid(folder=toy, words=SMALL, out=out, tell=said.append))
        second.start()
        while not said:
            time.sleep(0.01)
        assert f"process {os.getpid()}" in said[0] and "waiting" in said[0] and not out.exists()
    second.join()
    assert len(rows_of(out)) == 4


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()]
)
def test_a_part_is_done_in_halves_where_memory_runs_out(error):
    def work(part):
        if len(part) > 3:
            raise error
        return sum(part)

    done = list(in_parts(work, range(20), 16))
    assert [i for part, _ in done for i in part] == list(range(20)) and max(len(part) for part, _ in done) == 2
    with pytest.raises(RuntimeError, match="shapes"):
        list(in_parts(lambda part: (_ for _ in ()).throw(RuntimeError("shapes")), range(4), 4))


def test_a_configuration_has_the_words_of_the_command_line(toy, tmp_path):
    config = tmp_path / "grid.toml"
    config.write_text('shots = [1, 2]\nseeds = "1:2:1"\nepochs = 3\nalpha = "0:1:0.5"\nout = "x"\n[set]\nfinal_relu = [true, false]\n')
    axes = read_config(config)
    assert axes.spec == {"shots": ["1", "2"], "seeds": ["1", "2"]} and axes.hyper["final_relu"] == ["True", "False"]
    assert axes.other == {"out": "x"}
    assert grid(folder=toy, config=config, words={"alpha": "0.2"}, out=tmp_path / "r.jsonl").done == 8
    config.write_text('head = ["clip-adapter", "linear-probe"]\nshots = 1\nseeds = 1\n[linear-probe]\nC = [0.1, 1]\nmax_iter = 20\n')
    assert grid(folder=toy, config=config, out=tmp_path / "own.jsonl").done == 3


@pytest.mark.parametrize(
    "text, said",
    [
        ("alhpa = 0.2", "grid.toml: there is no word 'alhpa', did you mean alpha?"),
        ("[set]\nfinal_rellu = true", "did you mean final_relu?"),
        ("[linear-probe]\nalpha = 1", "no hyper-parameter of linear-probe 'alpha'"),
        ("alpha = [", "is no TOML"),
        ("alpha = []", "alpha is a value, a list"),
        ("set = 3", "set is a table"),
    ],
)
def test_a_wrong_configuration_names_the_word(tmp_path, text, said):
    (tmp_path / "grid.toml").write_text(text)
    with pytest.raises(AxisError) as caught:
        read_config(tmp_path / "grid.toml")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words, said",
    [
        ({"alpha": "0:1"}, "start:end:step"),
        ({"alpha": "0:1:-0.1"}, "never leads"),
        ({"alpha": "0:1:1e-9"}, "at most"),
        ({"alpha": "1,,2"}, "alpha is a value"),
        ({"alpha": "0:2:0.5"}, "from 0 to 1; got 1.5"),
        ({"head": "zero-shot", "alpha": "0.2"}, "'alpha'"),
        ({"head": "clip-adaptor"}, "did you mean clip-adapter?"),
        ({"shots": "1,two"}, "shots are whole numbers"),
        ({"shots": "1,99"}, "has 24 training images"),
        ({"dataset": "dtd"}, "cliad extract"),
        ({"protocol": "coup"}, "coop"),
    ],
)
def test_a_wrong_grid_is_one_line_and_writes_nothing(toy, tmp_path, words, said):
    with pytest.raises(ValueError) as caught:
        grid(folder=toy, words=words, out=tmp_path / "r.jsonl")
    assert said in str(caught.value) and "\n" not in str(caught.value) and not (tmp_path / "r.jsonl").exists()


PAPER = sorted((Path(cliad.__file__).parent / "benchmarks" / "paper").glob("*.toml"))


@pytest.mark.parametrize("config", PAPER, ids=lambda path: path.stem)
def test_the_papers_configurations_are_read(config):
    axes = read_config(config)
    assert axes.other["out"] == f"{config.stem}.jsonl" and axes.spec["dataset"] and set(axes.spec["head"]) <= set(HEADS)

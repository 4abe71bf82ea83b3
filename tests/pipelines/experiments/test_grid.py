"""The verb `grid`: what it runs, what it writes, and that nothing finished is ever lost or done twice."""

import itertools
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
from conftest import toy_cache, train_and_test_on
from hypothesis import given, settings
from hypothesis import strategies as st

import cliad
from cliad.adapters import HEADS
from cliad.cache.file.read import open_cache
from cliad.cache.files import file_lock
from cliad.cache.folder import find
from cliad.pipelines.experiments.axes import AxisError, axes_of, read_config, values
from cliad.pipelines.experiments.grid import Progress, grid
from cliad.pipelines.experiments.memory import _bytes_per_run, in_parts
from cliad.pipelines.experiments.results_file import RowsError, StoredRows, open_results, read_rows
from cliad.pipelines.experiments.run import run
from cliad.pipelines.experiments.spec import make_head, spec_of
from cliad.pipelines.experiments.train import train

SMALL = {"shots": "1,2", "seeds": "1,2", "epochs": "3"}


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def near(a, b):
    """Whether two rows of the same run say the same, to 1e-4."""
    names = ("top1", "top5", "mean_class", "ece", "nll", "ece_t", "nll_t", "zero_shot_top1")
    return a["index_hash"] == b["index_hash"] and all(
        abs(a[name] - b[name]) <= 1e-4 for name in names
    )


@given(st.integers(-20, 20), st.integers(0, 30), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_a_range_is_decimal_and_includes_its_end(start, count, step):
    text = f"{start / 10}:{(start + count * step) / 10}:{step / 10}"
    assert [float(value) for value in values("alpha", text)] == [
        (start + i * step) / 10 for i in range(count + 1)
    ]


def test_words_become_values():
    assert values("alpha", "0:1:0.2") == ["0", "0.2", "0.4", "0.6", "0.8", "1"] and values(
        "lr", "1e-3,1e-3"
    ) == ["1e-3"]
    assert values("shots", [1, 2, "4:8:2"]) == ["1", "2", "4", "6", "8"] and values(
        "encoder", "hf-hub:a/b,RN50"
    ) == ["hf-hub:a/b", "RN50"]
    assert values("alpha", "1:0:-0.5") == ["1", "0.5", "0"] and values("hidden", "D/4,D/8") == [
        "D/4",
        "D/8",
    ]


def test_a_grid_runs_each_combination_once(toy, tmp_path):
    said, out = [], tmp_path / "r.jsonl"
    words = SMALL | {
        "head": "clip-adapter,zero-shot,linear-probe",
        "alpha": "0:1:0.5",
        "select": "fixed",
        "set": {"max_iter": 20},
    }
    done = grid(folder=toy, words=words, out=out, log=said.append)
    rows = rows_of(out)
    assert (
        done.done == len(rows) == 4 * (3 + 1 + 1)
        and "20 runs in" in said[0]
        and "batches" in said[0]
    )
    assert len({row["key"] for row in rows}) == 20 and {row["alpha"] for row in rows} == {
        0,
        0.5,
        1,
        None,
    }
    assert all(
        row["top1"] == row["zero_shot_top1"]
        for row in rows
        if row["alpha"] == 0 or row["head"] == "zero-shot"
    )
    words_of_a_row = "dataset encoder head shots seed alpha zero_shot_top1 top1 train_seconds selected_on protocol index_hash fingerprint run"
    assert (
        set(words_of_a_row.split()) <= set(rows[0])
        and rows[0]["versions"]["cliad"]
        and rows[0]["device"] == "cpu"
    )
    assert sum(count for count, _, _ in rows[0]["reliability"]) == 60
    before = out.read_bytes()
    again = grid(folder=toy, words=words | {"alpha": "0,0.5"}, out=out, log=said.append)
    assert again.done == 0 and out.read_bytes() == before and "nothing to do" in said[-1]


def test_a_default_that_is_typed_is_the_same_run(toy, tmp_path):
    first = grid(folder=toy, words=SMALL, out=tmp_path / "r.jsonl")
    assert (
        grid(
            folder=toy, words=SMALL | {"alpha": "0.20", "hidden": "D/4"}, out=tmp_path / "r.jsonl"
        ).done
        == 0
    )
    assert (
        first.done == 4
        and grid(folder=toy, words=SMALL | {"set": {"batch": 7}}, out=tmp_path / "r.jsonl").done
        == 4
    )


def test_a_row_is_what_train_gives(toy, tmp_path):
    grid(
        folder=toy,
        words=SMALL | {"alpha": "0.2,0.7", "select": "fixed,val"},
        out=tmp_path / "r.jsonl",
    )
    for row in rows_of(tmp_path / "r.jsonl"):
        choices = {
            "shots": row["shots"],
            "seed": row["seed"],
            "select": row["selected_on"],
            "hyper": row["hyper"],
        }
        assert near(train(folder=toy, **choices)[0].row(), row)


def test_results_do_not_depend_on_the_grouping(toy):
    cache = find(toy)
    hypers = [
        {"alpha": alpha, "lr": lr, "epochs": 4, "batch": 9}
        for alpha in (0.2, 0.9)
        for lr in (1e-3, 1e-2)
    ]
    asked = [(make_head("clip-adapter", hyper), hyper, seed) for hyper in hypers for seed in (1, 2)]
    specs = [spec_of(cache, head, shots=4, seed=seed, given=hyper) for head, hyper, seed in asked]
    by_size = [
        {r.spec: r.row() for part in run(cache, specs, torch.device("cpu"), size) for r in part}
        for size in (1, 3, None)
    ]
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


SHIFT = SMALL | {
    "dataset": "source",
    "head": "zero-shot,clip-adapter,gda",
    "test": "noisy,fewer,source",
}


def test_a_run_is_scored_on_other_data_sets_too(shifted, tmp_path):
    out, plain, said = tmp_path / "r.jsonl", tmp_path / "plain.jsonl", []
    done = grid(folder=shifted, words=SHIFT, out=out, log=said.append)
    grid(folder=shifted, words=SHIFT | {"test": None}, out=plain)
    rows, own = rows_of(out), {row["key"]: row for row in rows_of(plain)}
    assert done.asked == done.done == len(rows) == 36 == len({row["key"] for row in rows}) and said[
        0
    ].startswith("12 runs in")
    assert {row["key"] for row in rows if "test_dataset" not in row} == own.keys()
    by_set = {
        name: [row for row in rows if row.get("test_dataset") == name]
        for name in (None, "noisy", "fewer")
    }
    assert [len(of) for of in by_set.values()] == [12, 12, 12] and all(
        row["dataset"] == "source" for row in rows
    )
    for row in by_set["noisy"] + by_set["fewer"]:
        choices = {
            "head": row["head"],
            "shots": row["shots"],
            "seed": row["seed"],
            "hyper": row["hyper"],
        }
        _, _, (alone,) = train_and_test_on(
            [row["test_dataset"]], folder=shifted, dataset="source", **choices
        )
        assert (
            all(abs(alone[name] - row[name]) <= 1e-4 for name in ("top1", "nll", "zero_shot_top1"))
            and row["ece_t"] is None
        )


def test_only_rows_that_are_missing_are_made(shifted, tmp_path):
    out, chance = tmp_path / "r.jsonl", random.Random(3)
    grid(folder=shifted, words=SHIFT | {"test": "noisy"}, out=out)
    assert grid(folder=shifted, words=SHIFT, out=out).done == 12
    lines, whole = out.read_text().splitlines(), {row["key"]: row for row in rows_of(out)}
    for kept in ([i for i in range(36) if i != 30], chance.sample(range(36), 20), range(17)):
        before = "".join(lines[i] + "\n" for i in kept)
        out.write_text(before + lines[20][: chance.randrange(99)])  # killed while it wrote a line
        assert grid(folder=shifted, words=SHIFT, out=out).done == 36 - len(
            kept
        ) and out.read_text().startswith(before)
        rows = {row["key"]: row for row in rows_of(out)}
        assert len(rows_of(out)) == 36 and rows.keys() == whole.keys()
        assert all(
            row.get("test_dataset") == whole[key].get("test_dataset") for key, row in rows.items()
        )
        assert all(
            abs(row[name] - whole[key][name]) <= 1e-4
            for key, row in rows.items()
            for name in ("top1", "nll", "zero_shot_top1")
        )


@pytest.mark.parametrize(
    "words, said",
    [
        ({"test": "nosiy"}, "no cache of nosiy"),
        (
            {"test": "noisy,more"},
            "2 classes that source lacks, such as 'class 5'; Gda needs images",
        ),
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
    assert (
        said in str(caught.value)
        and "\n" not in str(caught.value)
        and not (tmp_path / "r.jsonl").exists()
    )


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
        from cliad.pipelines.experiments.grid import grid
        grid(folder=Path({str(toy)!r}), words={words!r}, out=Path({str(out)!r}))"""
    chance, killed = random.Random(5), 0
    for wanted in (1, 40):
        process = subprocess.Popen([sys.executable, "-c", program])
        while process.poll() is None and (
            not out.exists() or out.read_bytes().count(b"\n") < wanted
        ):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed, "the grid was too fast to be killed"
    grid(folder=toy, words=words, out=out)
    first, second = ({row["key"]: row for row in rows_of(path)} for path in (whole, out))
    assert len(rows_of(out)) == len(second) and first.keys() == second.keys()
    assert all(near(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "tail", [b'{"dataset": "toy", "he', b"\0\0\0\0", '{"dataset": "ä'.encode()[:-1]]
)
def test_an_incomplete_last_line_is_cut_off_with_a_notice(toy, tmp_path, tail):
    out, said = tmp_path / "r.jsonl", []
    grid(folder=toy, words=SMALL, out=out)
    lines = out.read_bytes()
    out.write_bytes(lines + tail)
    assert len(read_rows(out).rows) == 4 and read_rows(out).incomplete == len(tail)
    assert grid(folder=toy, words=SMALL | {"seeds": "3"}, out=out, log=said.append).done == 2
    assert (
        "the last line is incomplete" in said[0]
        and f"{len(tail)} bytes" in said[0]
        and out.read_bytes().startswith(lines)
        and len(rows_of(out)) == 6
    )


def test_a_last_row_without_its_newline_is_kept(toy, tmp_path):
    out = tmp_path / "r.jsonl"
    grid(folder=toy, words=SMALL, out=out)
    out.write_bytes(out.read_bytes()[:-1])
    assert (
        grid(folder=toy, words=SMALL | {"seeds": "2,3"}, out=out).done == 2
        and len(rows_of(out)) == 6
    )


def test_a_file_that_holds_something_else_is_left_alone(toy, tmp_path):
    out = tmp_path / "notes.txt"
    out.write_text("my notes\n")
    with pytest.raises(RowsError, match=r"line 1: .*fix or delete"):
        grid(folder=toy, words=SMALL, out=out)
    assert out.read_text() == "my notes\n"
    with pytest.raises(RowsError, match="--out"):
        grid(folder=toy, words=SMALL, out=out / "r.jsonl")


def test_a_second_grid_on_one_file_waits_and_says_who_holds_it(toy, tmp_path):
    out, said = tmp_path / "r.jsonl", []
    with file_lock(out):
        second = threading.Thread(
            target=lambda: grid(folder=toy, words=SMALL, out=out, log=said.append)
        )
        second.start()
        while not said:
            time.sleep(0.01)
        assert f"process {os.getpid()}" in said[0] and "waiting" in said[0] and not out.exists()
    second.join()
    assert len(rows_of(out)) == 4


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_part_is_done_in_halves_where_memory_runs_out(error):
    def work(part):
        if len(part) > 3:
            raise error
        return part

    done = list(in_parts(work, range(20), 16))
    assert [i for part in done for i in part] == list(range(20))
    assert max(len(part) for part in done) == 2
    with pytest.raises(RuntimeError, match="shapes"):
        list(in_parts(lambda part: (_ for _ in ()).throw(RuntimeError("shapes")), range(4), 4))


def test_a_configuration_has_the_words_of_the_command_line(toy, tmp_path):
    config = tmp_path / "grid.toml"
    config.write_text(
        'shots = [1, 2]\nseeds = "1:2:1"\nepochs = 3\nalpha = "0:1:0.5"\nout = "x"\n[set]\nfinal_relu = [true, false]\n'
    )
    axes = read_config(config)
    assert axes.spec == {"shots": ["1", "2"], "seeds": ["1", "2"]} and axes.hyper["final_relu"] == [
        "True",
        "False",
    ]
    assert axes.other == {"out": "x"}
    assert (
        grid(folder=toy, config=config, words={"alpha": "0.2"}, out=tmp_path / "r.jsonl").done == 8
    )
    config.write_text(
        'head = ["clip-adapter", "linear-probe"]\nshots = 1\nseeds = 1\n[linear-probe]\nC = [0.1, 1]\nmax_iter = 20\n'
    )
    assert grid(folder=toy, config=config, out=tmp_path / "own.jsonl").done == 3


@pytest.mark.parametrize(
    "text, said",
    [
        ("alhpa = 0.2", "grid.toml: there is no word 'alhpa', did you mean alpha?"),
        ("[set]\nfinal_rellu = true", "did you mean final_relu?"),
        ("[linear-probe]\nalpha = 1", "no hyper-parameter of linear-probe 'alpha'"),
        ("alpha = [", "is not valid TOML"),
        ("alpha = []", "grid.toml: alpha is a value, a list"),
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
        ({"alpha": "0:1:-0.1"}, "does not go from"),
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
    assert (
        said in str(caught.value)
        and "\n" not in str(caught.value)
        and not (tmp_path / "r.jsonl").exists()
    )


PAPER = sorted((Path(cliad.__file__).parent / "benchmarks" / "paper").glob("*.toml"))


@pytest.mark.parametrize("config", PAPER, ids=lambda path: path.stem)
def test_the_papers_configurations_are_read(config):
    axes = read_config(config)
    assert (
        axes.other["out"] == f"{config.stem}.jsonl"
        and axes.spec["dataset"]
        and set(axes.spec["head"]) <= set(HEADS)
    )


def test_the_plan_is_said_in_one_line_before_anything_runs(toy, tmp_path):
    said, out = [], tmp_path / "r.jsonl"
    words = {"head": "zero-shot", "shots": "1", "seeds": "1:17:1"}
    grid(folder=toy, words=words, out=out, device="cpu", log=said.append)
    # batches of at most 16
    assert said == [f"17 runs in 2 batches over 1 cache on cpu into {out}"]
    words |= {"seeds": "1:40:1"}
    grid(folder=toy, words=words, out=out, device="cpu", log=said.append)
    line = f"23 runs in 2 batches over 1 cache on cpu (17 of 40 rows are in {out} already)"
    assert said[1:] == [line]
    grid(folder=toy, words=words, out=out, device="cpu", log=said.append)
    assert said[2:] == [f"all 40 rows are in {out}; nothing to do"]


def test_the_plan_counts_caches_and_rows_on_other_data_sets(shifted, tmp_path):
    said, out = [], tmp_path / "r.jsonl"
    words = {"head": "zero-shot", "shots": "1", "seeds": "1,2", "dataset": "source,noisy"}
    words |= {"test": "noisy"}
    done = grid(folder=shifted, words=words, out=out, device="cpu", log=said.append)
    # both runs of source are scored on noisy too, those of noisy on itself only
    assert said == [f"4 runs in 2 batches over 2 caches on cpu, 6 rows, into {out}"]
    assert (done.asked, done.found, done.done, done.out) == (6, 0, 6, out)


def test_progress_counts_rows_up_to_all_that_are_to_do(toy, tmp_path):
    states, out = [], tmp_path / "r.jsonl"
    words = {"head": "zero-shot", "shots": "1,2", "seeds": "1,2,3"}
    grid(folder=toy, words=words | {"shots": "1"}, out=out)
    done = grid(folder=toy, words=words | {"shots": "1,2,4"}, out=out, progress=states.append)
    assert [(state.done, state.total) for state in states] == [(3, 6), (6, 6)]
    assert all(isinstance(state, Progress) and state.rate > 0 for state in states)
    assert (done.asked, done.found, done.done) == (9, 3, 6)
    assert states[-1].rate * done.seconds == pytest.approx(6, rel=0.2)


def test_without_words_the_published_defaults_are_run(toy, tmp_path):
    done = grid(folder=toy, words={"head": "zero-shot"}, out=tmp_path / "r.jsonl")
    rows = rows_of(tmp_path / "r.jsonl")
    pairs = [(row["shots"], row["seed"]) for row in rows]
    expected = list(itertools.product((1, 2, 4, 8, 16), (1, 2, 3)))
    assert done.done == 15 and sorted(pairs) == expected
    assert {row["protocol"] for row in rows} == {"coop"}


def test_every_word_of_a_draw_is_varied(toy, tmp_path):
    words = {"head": "tip-adapter", "shots": "1,2", "seeds": "3,4", "protocol": "coop,tip"}
    words |= {"select": "fixed,val", "alpha": "1,2"}
    grid(folder=toy, words=words, out=tmp_path / "r.jsonl")
    names = ("shots", "seed", "protocol", "selected_on")
    rows = rows_of(tmp_path / "r.jsonl")
    found = [(*(row[name] for name in names), row["hyper"]["alpha"]) for row in rows]
    words = ((1, 2), (3, 4), ("coop", "tip"), ("fixed", "val"), (1.0, 2.0))
    assert sorted(found) == list(itertools.product(*words))


def test_a_head_with_nothing_to_select_is_run_fixed_once(toy, tmp_path):
    words = {"head": "zero-shot", "shots": "1", "seeds": "1", "select": "val,fixed"}
    assert grid(folder=toy, words=words, out=tmp_path / "r.jsonl").done == 1
    assert rows_of(tmp_path / "r.jsonl")[0]["selected_on"] == "fixed"


def test_a_grid_whose_largest_draw_is_impossible_stops_before_it_starts(tmp_path):
    toy_cache(tmp_path, dataset="small", n=(6, 8, 12))
    toy_cache(tmp_path, dataset="large")
    out, words = tmp_path / "r.jsonl", {"head": "zero-shot", "seeds": "1", "shots": "1,8"}
    with pytest.raises(ValueError, match="has 6 training images, 8 shots"):
        grid(folder=tmp_path, words=words | {"dataset": "large,small"}, out=out)
    assert not out.exists()


def test_a_cache_that_is_named_twice_is_run_once(toy, tmp_path):
    words = {"head": "zero-shot", "shots": "1", "seeds": "1,2", "dataset": "toy,Toy"}
    done = grid(folder=toy, words=words, out=tmp_path / "r.jsonl")
    assert done.asked == done.done == 2


def test_words_win_over_the_configuration(toy, tmp_path):
    config, out = tmp_path / "grid.toml", tmp_path / "there.jsonl"
    config.write_text(f'head = "zero-shot"\nshots = [1, 2]\nseeds = 1\nout = "{out}"\n')
    done = grid(folder=toy, config=config, words={"seed": "5,6,7"})
    assert (done.out, done.done) == (out, 6)
    assert {row["seed"] for row in rows_of(out)} == {5, 6, 7}


def test_axes_hold_each_kind_of_word_apart():
    words = {"seed": "1,2", "alpha": "0:1:0.5", "set": {"lr": [1, "2"]}, "out": "x.jsonl"}
    axes = axes_of(words | {"tip-adapter": {"beta": "3"}, "head": None})
    assert axes.spec == {"seeds": ["1", "2"]}
    assert axes.hyper == {"alpha": ["0", "0.5", "1"], "lr": ["1", "2"]}
    assert axes.own == {"tip-adapter": {"beta": ["3"]}}
    assert axes.other == {"out": "x.jsonl"}
    assert axes.of_head("tip-adapter") == {"alpha": ["0", "0.5", "1"], "beta": ["3"]}
    assert axes.of_head("zero-shot") == {}


@pytest.mark.parametrize(
    "text, found",
    [
        ("0:0.3:0.1", ["0", "0.1", "0.2", "0.3"]),
        ("0:1:0.3", ["0", "0.3", "0.6", "0.9"]),
        ("5:5:1", ["5"]),
        ("100:300:100", ["100", "200", "300"]),
        ("1:0:-0.25", ["1", "0.75", "0.5", "0.25", "0"]),
        ("0:0.2:0.1,0.1,7", ["0", "0.1", "0.2", "7"]),
        (" 1 , 2 ", ["1", "2"]),
        (3, ["3"]),
        ((1, "2:3:1"), ["1", "2", "3"]),
    ],
)
def test_ranges_are_as_written_here(text, found):
    assert values("alpha", text) == found


def test_a_range_has_at_most_ten_thousand_values():
    assert len(values("alpha", "1:10000:1")) == 10_000
    with pytest.raises(AxisError, match="has 10001 values, at most 10000 are allowed"):
        values("alpha", "0:10000:1")


# ------------------------------------------------------------------------------ the results file


def row_of(seed):
    return {"dataset": "d", "head": "gda", "shots": 1, "seed": seed, "top1": 0.5}


def test_a_row_that_could_not_be_written_whole_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    write = os.write
    with open_results(path, print) as results:
        results.append([row_of(1)])
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data: write(fd, data[: len(data) // 2]))
            with pytest.raises(RowsError, match="the disk is full; the same command goes on"):
                results.append([row_of(2), row_of(3)])
        assert path.read_bytes() == before
        assert results.rows == [row_of(1)]
        results.append([row_of(4)])
    assert read_rows(path) == StoredRows([row_of(1), row_of(4)], path.stat().st_size, 0)


def test_a_row_that_could_not_be_synced_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"

    def fail(fd):
        raise OSError(5, "input/output error")

    with open_results(path, print) as results:
        results.append([row_of(1)])
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(RowsError, match=r"cannot write .*r\.jsonl: input/output error"):
                results.append([row_of(2)])
        assert path.read_bytes() == before


def test_each_append_is_synced_after_it_is_written(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    sync = os.fsync
    synced = []

    def record(fd):
        synced.append(path.read_bytes().count(b"\n"))
        sync(fd)

    with open_results(path, print) as results:
        monkeypatch.setattr(os, "fsync", record)
        results.append([row_of(1), row_of(2)])
        results.append([row_of(3)])
    assert synced == [2, 3]


def test_a_line_that_lacks_a_word_is_not_a_result_row(tmp_path):
    path = tmp_path / "r.jsonl"
    for word in ("dataset", "head", "shots", "seed", "top1"):
        lacking = {name: value for name, value in row_of(1).items() if name != word}
        path.write_text(json.dumps(row_of(1)) + "\n\n" + json.dumps(lacking) + "\n")
        with pytest.raises(RowsError, match="line 3: it is not a result row; fix or delete"):
            read_rows(path)


def test_a_solver_of_the_full_support_counts_the_logits_that_it_holds(tmp_path):
    """Measured by benchmarks/scale.py: 23 of the linear probe's at once, in float32."""
    cache = open_cache(toy_cache(tmp_path))
    n = 1000 * len(cache.classnames)
    logits = n * len(cache.classnames)
    assert _bytes_per_run(HEADS["linear-probe"](), cache, 1000) > 4 * 23 * logits

"""What a grid makes of words and places that it cannot use, or not for every head."""

import json
import os
import time

import pytest
from conftest import result_row

from cliad.errors import CliadError
from cliad.pipelines.experiments.axes import AxisError, axes_of, values
from cliad.pipelines.experiments.below_zero_shot import caution, caution_of_many, largest_class
from cliad.pipelines.experiments.grid import grid
from cliad.pipelines.experiments.results_file import RowsError, read_rows
from cliad.pipelines.experiments.spec import SpecError, make_head
from cliad.pipelines.experiments.train import train
from cliad.pipelines.heads import heads


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ------------------------------------------------------------------------------ one list, many heads


def test_alpha_is_for_the_heads_that_mean_by_it_what_the_option_does(toy, tmp_path):
    said = []
    words = {"head": "clip-adapter,tip-adapter,zero-shot", "alpha": "0.2,0.6", "shots": "1"}
    grid(folder=toy, words=words | {"seeds": "1"}, out=tmp_path / "r.jsonl", log=said.append)
    given = [(row["head"], row["hyper"]) for row in rows_of(tmp_path / "r.jsonl")]
    assert given == [
        ("clip-adapter", {"alpha": 0.2}),
        ("clip-adapter", {"alpha": 0.6}),
        ("tip-adapter", {}),
        ("zero-shot", {}),
    ]
    assert "alpha is not for tip-adapter (there it is weight of the support images'" in said[0]
    assert "--set tip-adapter.alpha=LIST varies it" in said[0]
    assert "zero-shot has no alpha" in said[0]


def test_a_setting_may_be_for_one_head_alone(toy, tmp_path):
    axes = axes_of(
        {
            "head": "clip-adapter,tip-adapter",
            "alpha": "0.2",
            "set": {"tip-adapter.alpha": "1:3:1", "beta": "0.1"},
        }
    )
    assert axes.of_head("tip-adapter") == {"alpha": ["1", "2", "3"]}
    assert axes.of_head("clip-adapter") == {"alpha": ["0.2"], "beta": ["0.1"]}


def test_heads_that_mean_one_thing_share_a_list_without_the_head_that_is_explained():
    axes = axes_of({"head": "tip-adapter,tip-adapter-f,ape", "alpha": "1,3", "beta": "2"})
    for head in axes.heads:
        assert axes.of_head(head) == {"alpha": ["1", "3"], "beta": ["2"]}
    # A head alone is meant, whatever it means by the word.
    assert axes_of({"head": "gda", "alpha": "1,100"}).of_head("gda") == {"alpha": ["1", "100"]}


@pytest.mark.parametrize(
    "name, head", [("alpha", "gda,tip-adapter"), ("ratio", "clip-adapter,cross-modal-adapter")]
)
def test_heads_that_mean_different_things_are_asked_for_apart(toy, tmp_path, name, head):
    words = {"head": head, "set": {name: "0.5"}, "shots": "1"}
    first, second = head.split(",")
    out = tmp_path / "new" / "r.jsonl"
    with pytest.raises(AxisError, match=f"--set {first}.{name}=LIST and --set {second}.{name}"):
        grid(folder=toy, words=words, out=out)
    assert not out.parent.exists()


def test_values_for_a_head_that_is_not_run_are_said_to_be_unused(toy, tmp_path):
    said = []
    words = {"head": "zero-shot", "shots": "1", "seeds": "1", "set": {"gda.alpha": "1"}}
    grid(folder=toy, words=words, out=tmp_path / "r.jsonl", log=said.append)
    assert "the values for gda are not used, as it is not one of the heads" in said[0]


# ------------------------------------------------------------------------------ sizes before the work


@pytest.mark.parametrize(
    "words, said",
    [
        ({"shots": "1:9999:1", "seeds": "1:9999:1"}, "has 99,980,001 rows, at most 100,000"),
        ({"alpha": "0:1:1e-9"}, "has 1000000001 values"),
        ({"alpha": "0:1:1e-290"}, "has 1E+290 values"),
        ({"alpha": "0:1:1e-999999999"}, "beyond all floating-point numbers"),
        ({"alpha": "0:1e999999999999999999999:1"}, "beyond all floating-point numbers"),
        ({"alpha": "1" * 100_000}, "alpha is a value"),
        ({"lr": "1e999"}, "lr is a finite number; got 1e999"),
        ({"epochs": "9" * 30}, "epochs is at most"),
        ({"epochs": "999999999"}, "would take 999,999,999 steps"),
        ({"hidden": "100000000000"}, "parameters, for which"),
        ({"hidden": "9" * 900}, "parameters, for which"),
        ({"hidden": "x"}, "expected hidden to be a number"),
        ({"seeds": "9" * 30}, "seed is a whole number from 0 to"),
        ({"seeds": "-1"}, "seed is a whole number from 0 to"),
        ({"head": "prolip"}, "needs a cache with"),
        ({"set": {"alpah.x": "1"}}, "there is no head 'alpah'"),
        ({"seed": "1", "seeds": "2"}, "seed and seeds are one word"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_leaves_nothing(toy, tmp_path, words, said):
    started = time.perf_counter()
    with pytest.raises(CliadError) as caught:
        grid(folder=toy, words={"shots": "1"} | words, out=tmp_path / "new" / "r.jsonl")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400
    assert time.perf_counter() - started < 5
    assert not (tmp_path / "new").exists()


def test_a_range_of_tiny_numbers_still_works():
    assert len(values("lr", "1e-290:3e-290:1e-290")) == 3


@pytest.mark.parametrize("value", ["inf", "-inf", "1e999", float("inf")])
def test_infinity_is_no_value_of_a_head(value):
    with pytest.raises(SpecError, match="finite number"):
        make_head("clip-adapter", {"lr": value})


def test_a_giant_seed_or_width_is_refused_by_train_too(toy):
    with pytest.raises(CliadError, match="seed is a whole number"):
        train(folder=toy, shots=1, seed=10**30)
    with pytest.raises(SpecError, match="give a smaller --hidden"):
        train(folder=toy, shots=1, hyper={"hidden": "100000000000"})


# ------------------------------------------------------------------------------ places


@pytest.mark.parametrize(
    "name", ["", ".", "..", "folder", "file/r.jsonl", "pipe", "a\0b", "a" * 300]
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(
    toy, tmp_path, monkeypatch, name
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    said = []
    with pytest.raises(CliadError):
        grid(folder=toy, words={"shots": "1", "seeds": "1"}, out=tmp_path / name, log=said.append)
    assert said == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_cache_folder_that_is_a_file_is_said(tmp_path):
    file = tmp_path / "one.png"
    file.write_bytes(b"")
    with pytest.raises(SpecError, match="is a file, not a folder of caches"):
        train(folder=file, shots=1)
    with pytest.raises(SpecError, match="is a file, not a folder of caches"):
        heads(file)


@pytest.mark.parametrize("named", [{"dataset": "nope"}, {"encoder": "nope"}])
def test_heads_on_a_cache_that_is_not_there_is_an_error(toy, named):
    with pytest.raises(SpecError, match="has no cache of nope"):
        heads(toy, **named)


# ------------------------------------------------------------------------------ files of other kinds


@pytest.mark.parametrize(
    "content, said",
    [
        (b'[{"dataset": "d"}]\n', "is a JSON list"),
        (b'[{"dataset": "d"}]', "is a JSON list"),
        (b'{\n "dataset": "d"\n}\n', "one JSON table over many lines"),
        ('{"dataset": "d"}'.encode("utf-16"), "is not UTF-8 text"),
        ('{"dataset": "d"}'.encode("utf-16-le"), "is not UTF-8 text"),
        (b'{"dataset": "d"}', "line 1: it is not a result row"),
        (b"my notes", "line 1: "),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'"' + b"x" * 2_000_000, "has more than 1,048,576 bytes"),
    ],
)
def test_a_file_of_another_kind_is_named_and_left_alone(toy, tmp_path, content, said):
    path = tmp_path / "new" / "r.jsonl"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(RowsError, match=said) as caught:
        grid(folder=toy, words={"shots": "1", "seeds": "1"}, out=path)
    assert len(str(caught.value)) < 400
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "word, value",
    [
        ("ece", "high"),
        ("shots", -1),
        ("shots", True),
        ("shots", 1.5),
        ("seed", None),
        ("reliability", [[1, 2]]),
        ("reliability", {"a": 1}),
        ("versions", [1]),
        ("versions", {"torch": 2}),
        ("train_seconds", -1),
        ("train_seconds", 10**400),
        ("nll", float("inf")),
        ("hyper", {"alpha": [1]}),
        ("hyper", {"alpha": 10**400}),
        ("found", 3),
        ("diverged", "no"),
        ("test_dataset", 4),
        ("top1", 1.01),
        ("dataset", "\ud800"),
    ],
)
def test_each_field_of_a_row_is_checked_and_named_with_its_line(tmp_path, word, value):
    path = tmp_path / "r.jsonl"
    path.write_text(
        "\n" + json.dumps(result_row()) + "\r\n" + json.dumps(result_row() | {word: value}) + "\n"
    )
    with pytest.raises(RowsError, match=r"line 3: .*; fix or delete the line"):
        read_rows(path)


def test_lines_ends_marks_and_unknown_fields_of_other_tools_are_read(tmp_path):
    path = tmp_path / "r.jsonl"
    lines = ["", json.dumps(result_row(mine=[1])), "", json.dumps(result_row(seed=2, ece=None))]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    stored = read_rows(path)
    assert [row["seed"] for row in stored.rows] == [1, 2]
    assert list(stored.lines) == [2, 4]
    assert stored.size == path.stat().st_size


# ------------------------------------------------------------------------------ below zero-shot


def test_a_head_that_is_worse_than_nothing_is_said_in_one_line(toy):
    row = {"head": "gda", "top1": 0.5, "zero_shot_top1": 0.6, "dataset": "d", "shots": 1}
    assert caution(row, 0.25) == "gda (50.0 %) is below zero-shot (60.0 %)"
    assert caution(row, 0.55).endswith(" and below the share of the largest class (55.0 %)")
    assert caution(row | {"top1": 0.6}, 0.6) is None
    assert caution(row | {"top1": None}, 0.6) is None
    assert caution_of_many([row, row | {"top1": 0.7}], {}) == (
        "1 of 2 rows are below zero-shot (most: gda, d, 1 shots, -10.0 points)"
    )
    assert caution_of_many([row | {"fingerprint": "f"}], {"f": 0.9}).endswith(
        "1 of 1 are below the share of the largest class"
    )
    assert caution_of_many([row | {"top1": 0.7}], {}) is None


def test_the_share_of_the_largest_class_is_that_of_the_test_images(toy):
    _, cache = train(folder=toy, shots=1)
    labels = cache.split("test").y.tolist()
    assert largest_class(cache) == max(map(labels.count, labels)) / len(labels)


def test_numbers_that_rounding_took_past_their_end_are_read(tmp_path):
    path = tmp_path / "r.jsonl"
    row = result_row(reliability=[[9, 1.0000001, 1.0]], mean_class=1.0000001, nll=-1e-8)
    path.write_text(json.dumps(row) + "\n")
    assert read_rows(path).rows == [row]

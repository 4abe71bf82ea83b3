"""The names that results bear on disk: spec keys, row keys, run folders. They must never change.

A results file from last year is resumed by these keys and a run folder is found by its name: so
each stands here as a literal, beside the JSON text that it is the hash of. All goes through the
verbs, so that a change of classes in between is free.
"""

import hashlib
import json
import shutil

import pytest
from conftest import toy_cache

from cliad.pipelines.experiments.grid import grid
from cliad.pipelines.experiments.train import train
from cliad.pipelines.runs.run_folder import folder_of

FINGERPRINT = "8337ba40-4dd075c3"  # of the toy cache: its file list, encoder and prompts


def sha256_of(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """The folder of the toy data set, and of another one that heads are scored on."""
    folder = tmp_path_factory.mktemp("caches")
    toy_cache(folder, dataset="elsewhere", n_class=3)
    toy_cache(folder)
    return folder


# ------------------------------------------------------------------------------------------ specs

PLAIN = (
    '{"dataset": "toy", "encoder": "toy", "head": "zero-shot", "hyper": {}, "prompts": "default",'
    ' "protocol": "coop", "seed": 1, "selected_on": "fixed", "shots": 16}'
)
TYPED = (
    '{"dataset": "toy", "encoder": "toy", "head": "clip-adapter",'
    ' "hyper": {"alpha": 0.6, "epochs": 2}, "prompts": "default", "protocol": "clip-lora",'
    ' "seed": 3, "selected_on": "fixed", "shots": 4}'
)
SEARCHED = (
    '{"dataset": "toy", "encoder": "toy", "head": "tip-adapter", "hyper": {"alpha": 2.0},'
    ' "prompts": "default", "protocol": "tip", "seed": 2, "selected_on": "val", "shots": 2}'
)
SPECS = [
    ({"head": "zero-shot"}, PLAIN, "139361dc"),
    (
        {
            "head": "clip-adapter",
            "shots": 4,
            "seed": 3,
            "protocol": "clip-lora",
            "hyper": {"epochs": "2", "alpha": "0.60"},
        },
        TYPED,
        "f0c42265",
    ),
    (
        {
            "head": "tip-adapter",
            "shots": 2,
            "seed": 2,
            "protocol": "tip",
            "select": "val",
            "hyper": {"alpha": 2},
        },
        SEARCHED,
        "9dea370c",
    ),
]


@pytest.mark.parametrize("asked, text, key", SPECS)
def test_a_spec_is_this_json_and_this_key(caches, asked, text, key):
    result, _ = train(folder=caches, dataset="toy", device="cpu", **asked)
    assert json.dumps(result.spec.json(), sort_keys=True) == text
    assert result.spec.key == key
    assert key == sha256_of(text)[:8]


@pytest.mark.parametrize("asked, text, key", SPECS)
def test_a_row_begins_with_its_spec(caches, asked, text, key):
    row = train(folder=caches, dataset="toy", device="cpu", **asked)[0].row()
    spec = json.loads(text)
    assert {word: row[word] for word in spec} == spec
    words = "dataset encoder prompts head shots seed protocol selected_on hyper"
    assert list(row)[:9] == words.split()


def test_a_run_folder_is_named_after_its_spec(caches, tmp_path):
    asked = {"head": "clip-adapter", "shots": 4, "hyper": {"alpha": 0}}
    result, _ = train(folder=caches, dataset="toy", device="cpu", **asked)
    text = (
        '{"dataset": "toy", "encoder": "toy", "head": "clip-adapter", "hyper": {"alpha": 0.0},'
        ' "prompts": "default", "protocol": "coop", "seed": 1, "selected_on": "fixed", "shots": 4}'
    )
    key = sha256_of(text)[:8]
    assert folder_of(tmp_path, result) == tmp_path / "toy-toy-clip-adapter-4shot-seed1-84c92898"
    assert key == "84c92898"


def test_a_run_folder_has_a_name_that_a_file_system_takes(tmp_path):
    toy_cache(tmp_path, dataset="My Pets", encoder="ViT-B/32/openai")
    result, _ = train(folder=tmp_path, head="zero-shot", shots=2, seed=7)
    found = folder_of(tmp_path / "runs", result)
    assert found.parent == tmp_path / "runs"
    assert found.name == "my-pets-vit-b-32-openai-zero-shot-2shot-seed7-478fade0"


# ------------------------------------------------------------------------------------------ rows

FIXED_ROW = (
    '{"dataset": "toy", "encoder": "toy", "fingerprint": "FINGERPRINT", "head": "tip-adapter",'
    ' "hyper": {"alpha": 2.0, "beta": 3.0}, "prompts": "default", "protocol": "coop", "seed": 1,'
    ' "selected_on": "fixed", "shots": 2}'
)
SEARCHED_ROW = (
    '{"dataset": "toy", "encoder": "toy", "fingerprint": "FINGERPRINT", "head": "tip-adapter",'
    ' "hyper": {"alpha": 2.0, "beta": "searched"}, "prompts": "default", "protocol": "coop",'
    ' "seed": 1, "selected_on": "val", "shots": 2}'
)
ELSEWHERE_ROW = (
    '{"dataset": "toy", "encoder": "toy", "fingerprint": "FINGERPRINT", "head": "zero-shot",'
    ' "hyper": {}, "prompts": "default", "protocol": "coop", "seed": 1,'
    ' "selected_on": "fixed", "shots": 2, "test_dataset": "elsewhere", "test_fingerprint": "THERE"}'
)
ONE = {"dataset": "toy", "shots": "2", "seeds": "1"}
TIP = ONE | {"head": "tip-adapter"}


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_toy_cache_has_the_fingerprint_that_the_keys_were_made_for(caches):
    _, cache = train(folder=caches, dataset="toy", head="zero-shot")
    assert cache.fingerprint == FINGERPRINT


@pytest.mark.parametrize(
    "words, text, key",
    [
        (TIP | {"alpha": "2", "beta": "3", "select": "fixed"}, FIXED_ROW, "608947e4b8e7bc5a"),
        (TIP | {"alpha": "2", "select": "val"}, SEARCHED_ROW, "7f53d07ccb65d01e"),
        (ONE | {"head": "zero-shot", "test": "elsewhere"}, ELSEWHERE_ROW, "d6336301f0252d85"),
    ],
    ids=["fixed", "searched", "scored on another data set"],
)
def test_a_row_of_a_grid_has_this_key(caches, tmp_path, words, text, key):
    grid(folder=caches, words=words, out=tmp_path / "r.jsonl", device="cpu")
    row = rows_of(tmp_path / "r.jsonl")[-1]
    assert row["key"] == key
    text = text.replace("FINGERPRINT", FINGERPRINT)
    text = text.replace("THERE", row.get("test_fingerprint", ""))
    assert key == sha256_of(text)[:16]


def test_a_default_counts_in_a_key_like_the_same_value_typed(caches, tmp_path):
    words = ONE | {"head": "tip-adapter", "select": "fixed"}
    grid(folder=caches, words=words, out=tmp_path / "default.jsonl")
    grid(folder=caches, words=words | {"alpha": "1", "beta": "5.5"}, out=tmp_path / "typed.jsonl")
    (default,) = rows_of(tmp_path / "default.jsonl")
    (typed,) = rows_of(tmp_path / "typed.jsonl")
    hyper = '"hyper": {"alpha": 1.0, "beta": 5.5}'
    text = FIXED_ROW.replace('"hyper": {"alpha": 2.0, "beta": 3.0}', hyper)
    assert typed["hyper"] == {"alpha": 1.0, "beta": 5.5}
    # the spec of the default has an empty hyper, but the key is over all values that the head has
    assert default["hyper"] == {}
    key = sha256_of(text.replace("FINGERPRINT", FINGERPRINT))[:16]
    assert default["key"] == typed["key"] == key


# ------------------------------------------------------------------------------- a cache made anew


def made_anew(folder, **changes):
    """Replace the toy cache in `folder` by one of other images or prompts, under the same names."""
    shutil.rmtree(folder / "toy")
    toy_cache(folder, **changes)


@pytest.mark.parametrize(
    "changes",
    [{"n": (25, 8, 12)}, {"n": (24, 8, 13)}, {"classnames": ["ant", "bee", "cat", "dog", "emu"]}],
    ids=["more training images", "more test images", "other class names"],
)
def test_rows_of_an_earlier_cache_are_not_taken_for_done(tmp_path, changes):
    out = tmp_path / "r.jsonl"
    words = {"dataset": "toy", "head": "zero-shot,tip-adapter", "shots": "1,2", "seeds": "1"}
    toy_cache(tmp_path)
    assert grid(folder=tmp_path, words=words, out=out).done == 4
    assert grid(folder=tmp_path, words=words, out=out).done == 0
    made_anew(tmp_path, **changes)
    again = grid(folder=tmp_path, words=words, out=out)
    assert (again.asked, again.found, again.done) == (4, 0, 4)
    rows = rows_of(out)
    assert len({row["key"] for row in rows}) == 8
    assert len({row["fingerprint"] for row in rows}) == 2


def test_rows_scored_on_an_earlier_cache_are_not_taken_for_done(tmp_path):
    out = tmp_path / "r.jsonl"
    words = {"dataset": "source", "test": "toy", "head": "zero-shot", "shots": "1", "seeds": "1,2"}
    toy_cache(tmp_path, dataset="source")
    toy_cache(tmp_path)
    assert grid(folder=tmp_path, words=words, out=out).done == 4
    made_anew(tmp_path, n=(24, 8, 13))
    again = grid(folder=tmp_path, words=words, out=out)
    assert (again.asked, again.found, again.done) == (4, 2, 2)

"""Classes whose texts are one and the same are said wherever texts come in or are used."""

import itertools

import numpy as np
from conftest import toy_cache
from PIL import Image

from cliad.cache.equal_texts import equal_pairs, note_equal_texts
from cliad.cache.formats.importing import import_features
from cliad.pipelines.experiments.grid import grid
from cliad.pipelines.experiments.train import train
from cliad.pipelines.extract import extract


def slow_pairs(rows):
    """By the definition, pair by pair."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = itertools.combinations(range(len(rows)), 2)
    return [(i, j) for i, j in pairs if np.linalg.norm(unit[i] - unit[j]) < 1e-3]


def test_pairs_are_those_whose_unit_rows_are_nearer_than_a_thousandth(monkeypatch):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 8))
    rows[7] = 3 * rows[2]
    rows[30] = rows[2] * (1 + 1e-4 * rng.normal(size=8))
    rows[31] = rows[5] * (1 + 1e-2 * rng.normal(size=8))
    expected = slow_pairs(rows)
    assert expected == [(2, 7), (2, 30), (7, 30)]
    for at_once in (1, 100, 2**22):
        monkeypatch.setattr("cliad.cache.equal_texts.AT_ONCE", at_once)
        found = equal_pairs(rows)
        assert (found.n_pair, found.n_class, found.first) == (3, 3, expected)


def test_the_mean_over_templates_counts_and_many_pairs_are_one_line():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1, 5, 8))
    two = np.concatenate([rows, rows[:, [0, 1, 2, 3, 3]]])  # equal in one template of two
    lines = []
    note_equal_texts(two, list("abcde"), "e", lines.append)
    note_equal_texts(None, list("abcde"), "e", lines.append)
    assert lines == []
    note_equal_texts(rows[:, [0, 0, 0, 0, 0]], ["a\x1b", *"bcde"], "e", lines.append)
    (line,) = lines
    assert (
        "5 of 5 classes" in line
        and "pairs: 10, such as 'a\\x1b' and 'b', " in line
        and "..." in line
    )


def test_extract_says_that_the_bundled_encoder_does_not_know_the_names(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "a.png")
    lines = []
    options = {"model": "tiny", "cache_folder": tmp_path / "caches", "device": "cpu"}
    for _ in range(2):  # a finished cache is no reason for silence
        lines.clear()
        extract(f"folder:{tmp_path / 'pets'}", log=lines.append, **options)
        assert sum("2 of 2 classes" in line for line in lines) == 1


def with_equal_texts(folder):
    rng = np.random.default_rng(0)
    text = rng.normal(size=(3, 8)).astype(np.float32)
    text[2] = text[0]
    arrays = {"text": text, "classnames": ["cat", "dog", "owl"]}
    for split in ("train", "test"):
        arrays[f"{split}_x"] = rng.normal(size=(12, 8)).astype(np.float32)
        arrays[f"{split}_y"] = np.arange(12) % 3
    np.savez(folder / "a.npz", **arrays)
    lines = []
    import_features(
        "npz",
        folder / "a.npz",
        dataset="pets",
        encoder="mine",
        cache_folder=folder / "caches",
        log=lines.append,
    )
    return lines


def test_import_train_and_grid_say_so_once(tmp_path):
    expected = (
        "2 of 3 classes texts that are equal to another's (pairs: 1, such as 'cat' and 'owl')"
    )
    lines = with_equal_texts(tmp_path)
    assert sum(expected in line for line in lines) == 1
    lines.clear()
    folder = tmp_path / "caches"
    train(folder=folder, head="zero-shot", shots=1, log=lines.append)
    assert sum(expected in line for line in lines) == 1
    lines.clear()
    words = {"head": "zero-shot", "shots": "1", "seed": "1,2"}
    grid(folder=folder, words=words, out=tmp_path / "rows.jsonl", device="cpu", log=lines.append)
    assert sum(expected in line for line in lines) == 1


def test_texts_that_differ_are_passed_in_silence(tmp_path):
    toy_cache(tmp_path)
    lines = []
    train(folder=tmp_path, head="zero-shot", shots=1, log=lines.append)
    assert not any("equal" in line for line in lines)

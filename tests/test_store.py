"""The cache file: round trip, crash safety, and every way in which a file can be wrong."""

import os

import h5py
import numpy as np
import pytest

from cliad.cache import store


def layout(n=10, dim=6):
    paths = [f"a/{i}.jpg" for i in range(n)]
    return store.SplitLayout(paths, np.arange(n) % 3, {"features": (dim,)}, {"aug": store.Views(2, np.array([1, 4, 5, 9]), {"low": 0.5})})


def text_set(name="default", encoder_id="e1", classnames=("cat", "dog", "eel")):
    features = np.random.default_rng(1).normal(size=(2, len(classnames), 6))
    templates = ["a {}.", "the {}."]
    recipe = {"templates": templates, "classnames": list(classnames), "weights": "t"}
    return store.TextSet(name, features, templates, list(classnames), recipe, encoder_id, 100.0)


def header(split, **changes):
    recipe = {"files": store.file_list_hash({"train": (split.paths, split.labels)}), "weights": "w"}
    return store.Header("toy", "enc", "e1", recipe, **({"batch": 4} | changes))


def rows_of(split, start, stop, seed=0):
    """The arrays of one batch; what a row holds depends on its number alone."""
    x = np.random.default_rng(seed).normal(size=(len(split.labels), 6)).astype(np.float16)
    covered = [row for row in split.views["aug"].rows if start <= row < stop]
    return {"features": x[start:stop], "views/aug": np.stack([x[covered] + view for view in (1, 2)])}


def write(path, batches=None, **changes):
    split = layout()
    if not store.part_of(path).exists():
        store.create(path, header(split, **changes), {"train": split}, [text_set()])
    with store.Writer(path) as writer:
        for name, start, stop in writer.todo()[:batches]:
            writer.write(name, start, rows_of(split, start, stop), np.full(stop - start, store.DONE))
        return writer.finish() if not writer.todo() or batches is None else None


def test_round_trip(tmp_path):
    cache = store.open_cache(write(tmp_path / "a.h5"))
    split = cache.split("train")
    expected = rows_of(layout(), 0, 10)
    np.testing.assert_array_equal(split.x, expected["features"])
    np.testing.assert_array_equal(cache.column("train", "views/aug"), expected["views/aug"])
    np.testing.assert_allclose(np.linalg.norm(split.rows([3, 1], unit=True), axis=1), 1, rtol=1e-6)
    assert split.paths([2]) == ["a/2.jpg"] and split.y.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert cache.text.shape == (2, 3, 6) and cache.classnames == ["cat", "dog", "eel"] and cache.logit_scale == 100
    assert cache.fingerprint == f"{cache.image_id}-{cache.text_id}" and store.problems(cache) == []


def test_interrupted_and_resumed_gives_the_same_bytes(tmp_path):
    whole = write(tmp_path / "whole.h5").read_bytes()
    for batches in (1, 1, None):
        write(tmp_path / "b.h5", batches)
    assert (tmp_path / "b.h5").read_bytes() == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.h5", "whole.h5"]


def test_rows_are_marked_only_after_a_sync_and_part_is_never_taken_for_whole(tmp_path):
    path = tmp_path / "a.h5"
    write(path, 2)
    assert not path.exists()
    with store.Writer(path) as writer:
        assert writer.todo() == [("train", 8, 10)]
        with pytest.raises(ValueError, match="still to do"):
            writer.finish()


def test_adding_prompts_keeps_the_old_ones(tmp_path):
    path = write(tmp_path / "a.h5")
    store.add_text(path, text_set("mine", classnames=("cat", "hound", "eel")))
    assert store.open_cache(path).classnames[1] == "dog"
    mine = store.open_cache(path, "mine")
    assert mine.classnames[1] == "hound" and store.problems(mine) == [] and mine.text.shape == (2, 3, 6)
    with pytest.raises(store.CacheError, match="prompts 'mine' already"):
        store.add_text(path, text_set("mine"))
    with pytest.raises(store.CacheError, match="share no space"):
        store.add_text(path, text_set("theirs", encoder_id="e2"))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda p: os.truncate(p, p.stat().st_size // 2), "truncated"),
        (lambda p: p.write_bytes(b"not hdf5"), "not an HDF5 file"),
        (lambda p: set_attr(p, "schema", 99), "schema 99"),
        (lambda p: set_attr(p, "image_recipe", b"{}"), "do not match"),
        (lambda p: set_attr(p, "encoder_id", b"other"), "do not share a space"),
        (lambda p: p.unlink(), "there is no cache file"),
        (lambda p: h5py.File(p, "w").close(), "no cliad cache"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path, spoil, message):
    path = write(tmp_path / "a.h5")
    spoil(path)
    with pytest.raises(store.CacheError, match=message) as error:
        store.open_cache(path)
    assert "\n" not in str(error.value)


def test_whatever_byte_is_damaged_opening_works_or_is_one_line(tmp_path):
    path = write(tmp_path / "a.h5")
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for at in random.integers(len(whole), size=random.choice([1, 3, 20])):
            damaged[at] = random.integers(256)
        path.write_bytes(damaged)
        try:
            cache = store.open_cache(path)
            assert cache.split_names and cache.logit_scale and cache.split(cache.split_names[0]).status.shape
        except store.CacheError as error:
            assert "\n" not in str(error)


def set_attr(path, name, value):
    with h5py.File(path, "r+") as file:
        file.attrs[name] = np.bytes_(value) if isinstance(value, bytes) else value


def test_changed_class_names_are_found_on_opening(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["text/default/classnames"][1] = b"cow"
    with pytest.raises(store.CacheError, match="class names"):
        store.open_cache(path)


def test_damaged_rows_and_lists_are_found_by_problems(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["splits/train/features"][5] = np.nan
        file["splits/train/labels"][0] = 2
    found = store.problems(store.open_cache(path))
    assert any("not finite" in line and "rows 4 to 7" in line for line in found)
    assert any("checksum" in line for line in found) and any("does not match the image id" in line for line in found)


def test_a_missing_split_is_named(tmp_path):
    with pytest.raises(store.CacheError, match=r"no split 'val'; it has \['train'\]"):
        store.open_cache(write(tmp_path / "a.h5")).split("val")


def test_an_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(store.CacheError, match="--cache DIR"):
        store.create(tmp_path / "file" / "a.h5", header(layout()), {"train": layout()}, [])


def test_ids_ignore_key_order_and_feel_every_value():
    assert store.recipe_id({"a": 1, "b": 2}) == store.recipe_id({"b": 2, "a": 1}) != store.recipe_id({"a": 1, "b": 3})

"""The cache file: round trip, crash safety, and every way in which a file can be wrong."""

import errno
import hashlib
import itertools
import json
import os
import shutil
import zlib
from collections import namedtuple
from dataclasses import replace

import h5py
import numpy as np
import pytest
from written import header, layout, rows_of, text_set, write

from cliad.cache.file.check import problems
from cliad.cache.file.layout import (
    DONE,
    CacheError,
    SplitLayout,
    file_list_hash,
    part_of,
    recipe_id,
    view_positions,
)
from cliad.cache.file.read import open_cache
from cliad.cache.file.rows import gather
from cliad.cache.file.write import Writer, add_text, create


def test_round_trip(tmp_path):
    cache = open_cache(write(tmp_path / "a.h5"))
    split = cache.split("train")
    expected = rows_of(layout(), 0, 10)
    np.testing.assert_array_equal(split.x, expected["features"])
    np.testing.assert_array_equal(cache.column("train", "views/aug"), expected["views/aug"])
    np.testing.assert_allclose(np.linalg.norm(split.rows([3, 1], unit=True), axis=1), 1, rtol=1e-6)
    assert split.paths([2]) == ["a/2.jpg"] and split.y.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert (
        cache.text.shape == (2, 3, 6)
        and cache.classnames == ["cat", "dog", "eel"]
        and cache.logit_scale == 100
    )
    assert cache.fingerprint == f"{cache.image_id}-{cache.text_id}" and problems(cache) == []


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
    with Writer(path) as writer:
        assert writer.todo() == [("train", 8, 10)]
        with pytest.raises(ValueError, match="still to do"):
            writer.finish()


def test_adding_prompts_keeps_the_old_ones(tmp_path):
    path = write(tmp_path / "a.h5")
    add_text(path, text_set("mine", classnames=("cat", "hound", "eel")))
    assert open_cache(path).classnames[1] == "dog"
    mine = open_cache(path, "mine")
    assert mine.classnames[1] == "hound" and problems(mine) == [] and mine.text.shape == (2, 3, 6)
    with pytest.raises(CacheError, match="prompts 'mine' already"):
        add_text(path, text_set("mine"))
    with pytest.raises(CacheError, match="images and prompts need the same encoder"):
        add_text(path, text_set("theirs", encoder_id="e2"))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda p: os.truncate(p, p.stat().st_size // 2), "truncated"),
        (lambda p: p.write_bytes(b"not hdf5"), "not an HDF5 file"),
        (lambda p: set_attr(p, "schema", 99), "schema 99"),
        (lambda p: set_attr(p, "image_id", b"00000000"), "do not match"),
        (
            lambda p: set_attr(p, "encoder_id", b"other"),
            "image features are of encoder other, text features of e1; extract both with one encoder",
        ),
        (lambda p: p.unlink(), "there is no cache file"),
        (lambda p: h5py.File(p, "w").close(), "not a cliad cache"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path, spoil, message):
    path = write(tmp_path / "a.h5")
    spoil(path)
    with pytest.raises(CacheError, match=message) as error:
        open_cache(path)
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
            cache = open_cache(path)
            assert (
                cache.split_names
                and cache.logit_scale
                and cache.split(cache.split_names[0]).status.shape
            )
        except CacheError as error:
            assert "\n" not in str(error)


def set_attr(path, name, value):
    with h5py.File(path, "r+") as file:
        file.attrs[name] = np.bytes_(value) if isinstance(value, bytes) else value


def test_changed_class_names_are_found_on_opening(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["text/default/classnames"][1] = b"cow"
    with pytest.raises(CacheError, match="class names"):
        open_cache(path)


def test_damaged_rows_and_lists_are_found_by_problems(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["splits/train/features"][5] = np.nan
        file["splits/train/labels"][0] = 2
    found = problems(open_cache(path))
    assert any("not finite" in line and "rows 4 to 7" in line for line in found)
    assert any("checksum" in line for line in found) and any(
        "does not match the image id" in line for line in found
    )


def test_a_missing_split_is_named(tmp_path):
    with pytest.raises(CacheError, match=r"no split 'val'; it has \['train'\]"):
        open_cache(write(tmp_path / "a.h5")).split("val")


def test_an_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="--cache DIR"):
        create(tmp_path / "file" / "a.h5", header(layout()), {"train": layout()}, [])


def test_ids_ignore_key_order_and_feel_every_value():
    assert recipe_id({"a": 1, "b": 2}) == recipe_id({"b": 2, "a": 1}) != recipe_id({"a": 1, "b": 3})


@pytest.mark.parametrize("dtype", [np.float16, "S5"])
@pytest.mark.parametrize(
    "index",
    [
        [3, 1, 90, 3],
        [-1],
        np.arange(100) % 50 == 7,
        np.array([], int),
        5,
        slice(2, 9),
        np.arange(99),
    ],
)
def test_rows_are_gathered_as_numpy_would(tmp_path, index, dtype):
    x = np.memmap(tmp_path / "x", dtype, "w+", 24, (100, 6) if dtype == np.float16 else (100,))
    x[:] = np.arange(x.size).reshape(x.shape).astype(dtype)
    x.flush()
    np.testing.assert_array_equal(gather(x, index), x[index])
    with pytest.raises(IndexError):
        gather(x, [100])


# ----------------------------------------------------------------- what the file holds, in numbers


def id_of(recipe):
    """An id as docs/cache-file.md defines it, written without cliad."""
    text = json.dumps(recipe, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def test_the_ids_of_a_fixed_file_never_change(tmp_path):
    cache = open_cache(write(tmp_path / "a.h5"))
    lines = [f"train\t{row % 3}\ta/{row}.jpg\n" for row in range(10)]
    files = hashlib.sha256("".join(lines).encode()).hexdigest()
    names = ["cat", "dog", "eel"]
    text_recipe = {"templates": ["a {}.", "the {}."], "classnames": names, "weights": "t"}
    assert cache.image_id == id_of({"files": files, "weights": "w"}) == "ab57c916"
    assert cache.text_id == id_of(text_recipe) == "bab19902"
    assert cache.fingerprint == "ab57c916-bab19902"


def test_an_id_takes_letters_as_they_are():
    digest = hashlib.sha256('{"name": "é"}'.encode()).hexdigest()
    assert recipe_id({"name": "é"}) == digest[:8]


def test_the_list_hash_feels_split_label_path_and_order():
    def hashed(split="train", labels=(0, 1), paths=("a", "b")):
        val = (["c"], np.array([0]))
        return file_list_hash({"val": val, split: (paths, np.array(labels))})

    changed = [hashed("test"), hashed(labels=(1, 1)), hashed(paths=("a", "c"))]
    swapped = hashed(labels=(1, 0), paths=("b", "a"))
    assert len({hashed(), swapped, *changed}) == 5
    text = "train\t0\ta\ntrain\t1\tb\nval\t0\tc\n"
    assert hashed() == hashlib.sha256(text.encode()).hexdigest()


def test_the_file_is_laid_out_as_documented(tmp_path):
    path = write(tmp_path / "a.h5", versions={"torch": "9"})
    with h5py.File(path) as file:
        facts = dict(file.attrs)
        assert set(json.loads(file["image_recipe"][:].tobytes())) == {"files", "weights"}
        assert file["versions"][:].tobytes() == b'{"torch": "9"}'
        assert facts == {
            "schema": 2,
            "dataset": b"toy",
            "encoder": b"enc",
            "encoder_id": b"e1",
            "image_id": b"ab57c916",
            "batch": 4,
            "unit_rows": 0,
        }
        found = {}
        file.visititems(lambda name, node: found.update({name: node}))
        arrays = {name: node for name, node in found.items() if isinstance(node, h5py.Dataset)}
        texts = {name for name, node in arrays.items() if node.dtype == np.uint8}
        texts -= {"splits/train/status"}
        assert texts == {
            "image_recipe",
            "versions",
            "contents",
            "text/default/text_recipe",
            "text/default/contents",
        }
        columns = {name: node for name, node in arrays.items() if name not in texts}
        assert {name: (node.shape, node.dtype.str) for name, node in columns.items()} == {
            "splits/train/features": ((10, 6), "<f2"),
            "splits/train/labels": ((10,), "<i4"),
            "splits/train/paths": ((10,), "|S7"),
            "splits/train/status": ((10,), "|u1"),
            "splits/train/checksums": ((3,), "<u4"),
            "splits/train/views/aug": ((2, 4, 6), "<f2"),
            "splits/train/views/aug_rows": ((4,), "<i8"),
            "text/default/features": ((2, 3, 6), "<f2"),
            "text/default/templates": ((2,), "|S7"),
            "text/default/classnames": ((3,), "|S3"),
        }
        assert all(node.chunks is None for node in arrays.values())
        assert dict(arrays["splits/train/views/aug"].attrs) == {"low": 0.5}
        assert arrays["splits/train/status"][:].tolist() == [1] * 10
        text = dict(found["text/default"].attrs)
        assert text["logit_scale"] == 100.0 and text["encoder_id"] == b"e1"
        assert text["text_id"] == b"bab19902"


def test_checksums_are_the_crc_of_a_batch_with_its_arrays_in_name_order_and_its_marks(tmp_path):
    cache = open_cache(write(tmp_path / "a.h5"))
    rows = rows_of(layout(), 4, 8)  # the view covers rows 4 and 5 of this batch
    stored = rows["features"].tobytes() + rows["views/aug"].astype(np.float16).tobytes()
    assert rows["views/aug"].shape == (2, 2, 6)
    assert cache.column("train", "checksums")[1] == zlib.crc32(stored + b"\1\1\1\1")


def test_a_whole_split_may_be_without_views_or_rows(tmp_path):
    empty = SplitLayout([], np.zeros(0, int), {"features": (6,)})
    plain = SplitLayout(["x"], np.zeros(1, int), {"features": (6,)})
    path = tmp_path / "a.h5"
    splits = {"extra": plain, "test": plain, "val": empty}
    create(path, header(layout()), splits, [text_set()])
    with Writer(path) as writer:
        assert writer.todo() == [("test", 0, 1), ("extra", 0, 1)]
        for name, start, _ in writer.todo():
            writer.write(name, start, {"features": np.ones((1, 6))}, np.array([1]))
        writer.finish()
    cache = open_cache(path)
    assert cache.split_names == ["val", "test", "extra"]
    assert cache.split("val").rows().shape == (0, 6) and cache.split("test").paths() == ["x"]
    assert cache.column("test", "views/aug") is None and cache.dim == 6


def test_a_batch_is_written_whole_or_refused(tmp_path):
    split = layout()
    path = tmp_path / "a.h5"
    create(path, header(split), {"train": split}, [text_set()])
    done = np.full(4, DONE)
    with Writer(path) as writer:
        with pytest.raises(ValueError, match="batches of 4"):
            writer.write("train", 2, rows_of(split, 2, 6), done)
        with pytest.raises(ValueError, match="batches of 4"):
            writer.write("train", 0, {"features": rows_of(split, 0, 4)["features"]}, done)
        assert writer.todo() == [("train", 0, 4), ("train", 4, 8), ("train", 8, 10)]


# -------------------------------------------------------------- what happens on the disk, and when


def test_a_batch_that_is_half_marked_is_still_to_do(tmp_path):
    path = tmp_path / "a.h5"
    write(path, 2)
    with h5py.File(part_of(path), "r+") as file:
        file["splits/train/status"][5] = 0
    with Writer(path) as writer:
        assert writer.todo() == [("train", 4, 8), ("train", 8, 10)]


def events_of(monkeypatch, cache, split="train"):
    """A list that grows with what is done to the disk: "rows", "mark", "sync" or "rename"."""
    events = []
    status = cache.arrays[f"splits/{split}/status"]
    really_write, really_sync, really_replace = os.pwrite, os.fsync, os.replace

    def write_and_tell(fd, data, place):
        marks = status.offset <= place < status.offset + status.nbytes
        events.append("mark" if marks else "rows")
        return really_write(fd, data, place)

    def sync_and_tell(fd):
        events.append("sync")
        return really_sync(fd)

    def replace_and_tell(source, target):
        events.append("rename")
        return really_replace(source, target)

    monkeypatch.setattr(os, "pwrite", write_and_tell)
    monkeypatch.setattr(os, "fsync", sync_and_tell)
    monkeypatch.setattr(os, "replace", replace_and_tell)
    return events


def without_repeats(events):
    return [event for event, _ in itertools.groupby(events)]


def write_and_watch(tmp_path, monkeypatch):
    """What was done to the disk while three batches were written and the file finished."""
    split = layout()
    path = tmp_path / "a.h5"
    create(path, header(split), {"train": split}, [text_set()])
    with Writer(path) as writer:
        events = events_of(monkeypatch, writer.cache)
        for name, start, stop in writer.todo():
            done = np.full(stop - start, DONE)
            writer.write(name, start, rows_of(split, start, stop), done)
        writer.finish()
        watched = list(events)
    return watched


def test_rows_are_marked_only_after_they_were_synced(tmp_path, monkeypatch):
    monkeypatch.setattr("cliad.cache.file.write.SYNC_SECONDS", -1)  # a sync after each batch
    events = without_repeats(write_and_watch(tmp_path, monkeypatch))
    # The last marks are synced before the file gets its name, and the folder is after it.
    assert events == ["rows", "sync", "mark"] * 3 + ["sync", "rename", "sync"]


def test_small_batches_share_a_sync(tmp_path, monkeypatch):
    monkeypatch.setattr("cliad.cache.file.write.SYNC_SECONDS", 1000)
    events = without_repeats(write_and_watch(tmp_path, monkeypatch))
    assert events == ["rows", "sync", "mark", "sync", "rename", "sync"]


def full_disk(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_prompts_that_cannot_be_added_leave_the_file_and_nothing_else(tmp_path, monkeypatch):
    path = write(tmp_path / "a.h5")
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CacheError, match=r"is full; free some space.*--cache DIR"):
        add_text(path, text_set("mine"))
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"] and path.read_bytes() == before


def test_a_file_that_cannot_be_begun_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CacheError, match="is full"):
        create(tmp_path / "a.h5", header(layout()), {"train": layout()}, [text_set()])
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_while_rows_are_written_is_one_line(tmp_path, monkeypatch):
    split = layout()
    path = tmp_path / "a.h5"
    create(path, header(split), {"train": split}, [text_set()])
    with pytest.raises(CacheError, match="is full"), Writer(path) as writer:
        monkeypatch.setattr(os, "pwrite", full_disk)
        writer.write("train", 0, rows_of(split, 0, 4), np.full(4, DONE))
    monkeypatch.undo()
    assert open_cache(part_of(path)).split("train").status.tolist() == [0] * 10


ROOM = 2**20  # bytes that stay free for HDF5's own metadata


def documents_bytes(path):
    """The size of the JSON texts and lists of checksums of a file."""
    names = [*(["image_recipe", "versions", "contents"]), "text/default/text_recipe"]
    with h5py.File(path) as file:
        return sum(file[name].size for name in [*names, "text/default/contents"])


@pytest.mark.parametrize("spare, fits", [(0, True), (-1, False)])
def test_a_file_is_begun_only_where_it_fits(tmp_path, monkeypatch, spare, fits):
    arrays = 10 * (2 * 6 + 4 + 7 + 1) + 3 * 4 + 2 * 4 * 6 * 2 + 4 * 8
    text = 2 * 3 * 6 * 2 + 2 * 7 + 3 * 3
    text += documents_bytes(write(tmp_path / "same" / "b.h5"))
    shutil.rmtree(tmp_path / "same")
    usage = namedtuple("usage", "total used free")(0, 0, arrays + text + ROOM + spare)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    if fits:
        create(tmp_path / "a.h5", header(layout()), {"train": layout()}, [text_set()])
    else:
        with pytest.raises(CacheError, match=r"has 1 MB free, a\.h5 needs 0 MB"):
            create(tmp_path / "a.h5", header(layout()), {"train": layout()}, [text_set()])
        assert list(tmp_path.iterdir()) == []


def test_prompts_are_added_only_where_a_copy_fits(tmp_path, monkeypatch):
    path = write(tmp_path / "a.h5")
    size = path.stat().st_size
    usage = namedtuple("usage", "total used free")(0, 0, size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(CacheError, match=r"no room for a copy of a\.h5"):
        add_text(path, text_set("mine"))
    assert path.stat().st_size == size and [file.name for file in tmp_path.iterdir()] == ["a.h5"]


# ------------------------------------------------------------- what a reader is told, and what not


def test_unreadable_rows_are_not_readable(tmp_path):
    split = layout()
    path = tmp_path / "a.h5"
    create(path, header(split), {"train": split}, [text_set()])
    with Writer(path) as writer:
        writer.write("train", 0, rows_of(split, 0, 4), np.array([1, 2, 1, 2]))
    cache = open_cache(part_of(path))
    found = cache.split("train")
    assert found.status.tolist() == [1, 2, 1, 2, 0, 0, 0, 0, 0, 0]
    assert found.readable.tolist() == [True, False, True, False] + [False] * 6
    problem = problems(cache)[0]
    assert problem == "train: 6 rows are still to do; run the same extract again"


def test_rows_come_raw_or_of_length_one_and_zero_rows_stay_zero(tmp_path):
    split = SplitLayout(["a", "b", "c"], np.array([0, 1, 2]), {"features": (2,)})
    path = tmp_path / "a.h5"
    head = header(split, dtype="float32")
    create(path, head, {"train": split}, [replace(text_set(), features=None)])
    with Writer(path) as writer:
        rows = np.array([[3, 4], [0, 0], [0, -0.5]])
        writer.write("train", 0, {"features": rows}, np.array([1, 2, 1]))
        writer.finish()
    found = open_cache(path).split("train")
    assert found.rows().tolist() == [[3, 4], [0, 0], [0, -0.5]] and found.rows().dtype == np.float32
    np.testing.assert_allclose(found.rows(unit=True), [[0.6, 0.8], [0, 0], [0, -1]], rtol=1e-6)
    assert found.paths(1) == ["b"] and found.paths([2, 0]) == ["c", "a"]


@pytest.mark.parametrize("word", ["templates", "text_id", "text_recipe"])
def test_a_changed_text_is_found_on_opening(tmp_path, word):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        group = file["text/default"]
        if word == "templates":
            group["templates"][1] = b"one {}."
        elif word == "text_id":
            group.attrs["text_id"] = np.bytes_("00000000")
        else:
            recipe = json.loads(group["text_recipe"][:].tobytes()) | {"weights": "other"}
            changed = json.dumps(recipe).encode()
            del group["text_recipe"]
            group["text_recipe"] = np.frombuffer(changed, np.uint8)
    message = "class names or templates" if word == "templates" else "its ids do not match"
    with pytest.raises(CacheError, match=message):
        open_cache(path)


def test_the_prompt_set_is_the_one_named_else_the_default_else_the_only_one(tmp_path):
    split = layout()
    path = tmp_path / "a.h5"
    create(path, header(split), {"train": split}, [text_set("one"), text_set("two")])
    part = part_of(path)
    assert open_cache(part, "two").prompts == "two"
    assert open_cache(part, any_prompts=True).prompts == "one"
    assert open_cache(part, "none", any_prompts=True).prompts == "one"
    with pytest.raises(CacheError, match=r"several prompt sets; .* \['one', 'two'\]"):
        open_cache(part)
    with pytest.raises(CacheError, match="no prompts 'none'; choose one of"):
        open_cache(part, "none")
    create(path, header(split), {"train": split}, [text_set("mine")])
    assert open_cache(part).prompts == "mine"
    with pytest.raises(CacheError, match="no prompts 'none'"):
        open_cache(part, "none")
    create(path, header(split), {"train": split}, [text_set("a"), text_set("default")])
    assert open_cache(part).prompts == "default"
    assert open_cache(part, any_prompts=True).prompts == "default"


def test_damaged_views_are_found_in_the_batch_of_their_row(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["splits/train/views/aug"][1, 3] = 7  # the view of row 9
    found = problems(open_cache(path))
    assert found == ["train: rows 8 to 9 are damaged (their checksum differs)"]
    with h5py.File(path, "r+") as file:
        file["splits/train/views/aug"][1, 3] = np.inf
    found = problems(open_cache(path))
    assert found[0] == "train: rows 8 to 9 hold values that are not finite"


def test_a_list_or_text_that_was_changed_is_a_problem(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["splits/train/paths"][0] = b"b/0.jpg"
        file["text/default/features"][0, 0, 0] = np.nan
    assert problems(open_cache(path)) == [
        "the list of paths and labels does not match the image id",
        "prompts 'default': not all text features are finite",
        "splits/train/paths |S7 (10,) is damaged (its checksum differs)",
        "text/default/features <f2 (2, 3, 6) is damaged (its checksum differs)",
    ]


@pytest.mark.parametrize("lost", ["paths", "status", "checksums", "features", "labels"])
def test_a_lost_data_set_is_named(tmp_path, lost):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        del file[f"splits/train/{lost}"]
    with pytest.raises(CacheError, match=rf"it has lost \['splits/train/{lost}'\]"):
        open_cache(path)


FACTS = ["dataset", "encoder", "encoder_id", "image_id", "batch", "unit_rows"]


@pytest.mark.parametrize("lost", FACTS)
def test_a_lost_fact_is_named(tmp_path, lost):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        del file.attrs[lost]
    with pytest.raises(CacheError, match=rf"it has lost \['{lost}'\]"):
        open_cache(path)


@pytest.mark.parametrize("lost", ["text_id", "encoder_id", "logit_scale"])
def test_a_lost_fact_of_the_text_is_named(tmp_path, lost):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        del file["text/default"].attrs[lost]
    with pytest.raises(CacheError, match=rf"it has lost \['{lost} of text/default'\]"):
        open_cache(path)


def test_another_prompt_set_of_an_open_cache_is_checked_as_on_opening(tmp_path):
    path = write(tmp_path / "a.h5")
    add_text(path, text_set("mine", classnames=("cat", "hound", "eel")))
    cache = open_cache(path)
    assert cache.with_prompts("mine") == open_cache(path, "mine")
    assert cache.prompts == "default"
    with pytest.raises(CacheError, match="no prompts 'none'"):
        cache.with_prompts("none")
    with h5py.File(path, "r+") as file:
        file["text/mine/classnames"][1] = b"cow"
    with pytest.raises(CacheError, match="prompts 'mine' do not match their id"):
        open_cache(path).with_prompts("mine")


@pytest.mark.parametrize("rows, expected", [((0, 4), [1]), ((4, 8), [4, 5]), ((10, 12), [])])
def test_the_views_of_a_batch_are_those_of_its_rows(rows, expected):
    covered = np.array([1, 4, 5, 9])
    assert covered[view_positions(covered, *rows)].tolist() == expected

"""What a cache says of itself, and whether it is true."""

import json
import re

import h5py
import numpy as np
import pytest
from foreign_files import named, npz_file, unit
from written import header, text_set, write

from cliad.cache.file.check import verify
from cliad.cache.file.layout import CacheError, SplitLayout, part_of
from cliad.cache.file.write import Writer, add_text, create
from cliad.cache.formats.importing import import_features
from cliad.pipelines.info import info


def test_info_tells_all_and_is_json(tmp_path):
    path = write(tmp_path / "a.h5")
    add_text(path, text_set("mine", classnames=("cat", "hound", "eel")))
    facts = json.loads(json.dumps(info(path)))
    assert (
        facts["dataset"] == "toy"
        and facts["encoder"] == "enc"
        and facts["dtype"] == "float16"
        and facts["dim"] == 6
    )
    assert facts["complete"] and not facts["unit_rows"] and facts["bytes"] == path.stat().st_size
    train = facts["splits"]["train"]
    assert [train[word] for word in ("n", "n_class", "done", "unreadable", "to_do")] == [
        10,
        3,
        10,
        0,
        0,
    ]
    assert train["arrays"]["views/aug"] == {"shape": [2, 4, 6], "dtype": "float16", "bytes": 96}
    assert (
        facts["prompts"]["mine"]["classnames"] == ["cat", "hound", "eel"]
        and facts["prompts"]["default"]["n_template"] == 2
    )
    assert (
        facts["fingerprint"] == f"{facts['image_id']}-{facts['prompts']['default']['text_id']}"
        and facts["recipe"]["weights"] == "w"
    )


def test_info_of_an_unfinished_cache_says_what_is_left(tmp_path):
    write(tmp_path / "a.h5", batches=1)
    facts = info(part_of(tmp_path / "a.h5"))
    assert (
        not facts["complete"]
        and facts["splits"]["train"]["done"] == 4
        and facts["splits"]["train"]["to_do"] == 6
    )


def test_info_names_unreadable_images_and_says_where_text_is_missing(tmp_path):
    paths = np.array([f"{i}.jpg" for i in range(6)])
    file = npz_file(
        tmp_path, drop=("text",), train_status=np.array([1, 2, 1, 1, 1, 1]), train_paths=paths
    )
    facts = info(import_features("npz", file, **named(tmp_path)))
    assert facts["splits"]["train"]["unreadable"] == 1 and facts["splits"]["train"][
        "unreadable_paths"
    ] == ["1.jpg"]
    assert (
        facts["prompts"]["default"]["has_text"] is False
        and facts["prompts"]["default"]["templates"] == []
    )


def test_info_of_no_cache_is_one_line(tmp_path):
    (tmp_path / "a.h5").write_text("no")
    with pytest.raises(CacheError, match="not an HDF5 file"):
        info(tmp_path / "a.h5")


def test_a_sound_file_has_no_problems(tmp_path):
    path = write(tmp_path / "a.h5")
    add_text(path, text_set("mine"))
    assert (
        verify(path) == []
        and verify(import_features("npz", npz_file(tmp_path), **named(tmp_path))) == []
    )


def put(name, at, value):
    return lambda file: file[name].__setitem__(at, value)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (put("splits/train/features", 5, np.nan), "rows 4 to 7 hold values that are not finite"),
        (put("splits/train/features", 5, 7.0), "rows 4 to 7 are damaged"),
        (
            put("splits/train/labels", 3, 9),
            r"label 9 has no class name \(3 names in prompts 'default'; 1 such rows\)",
        ),
        (put("splits/train/status", 3, 0), "1 rows are still to do"),
        (put("splits/train/status", 3, 7), "status 7 is none of"),
        (put("splits/train/paths", 3, b"\xff"), "paths and labels does not match the image id"),
        (put("splits/train/views/aug_rows", 3, 77), "not ascending row numbers"),
        (put("text/mine/features", (0, 0, 0), np.inf), "prompts 'mine': not all text features"),
        (put("text/mine/classnames", 0, b"cow"), "prompts 'mine' do not match their id"),
        (
            lambda file: file["text/mine"].attrs.modify("logit_scale", -1.0),
            "prompts 'mine': logit scale -1.0",
        ),
        (
            lambda file: file["text/mine"].attrs.modify("encoder_id", np.bytes_("e2")),
            "image features are of encoder e1, text features of e2",
        ),
        (lambda file: file.attrs.modify("unit_rows", 1), "not of length one"),
        (lambda file: file.pop("splits/train/paths"), r"lost \['splits/train/paths'\]"),
        (
            lambda file: replaced(file, "splits/train/status", np.ones(9, np.uint8)),
            r"splits/train/status is \(9,\), expected \(10,\)",
        ),
        (
            lambda file: replaced(file, "text/mine/features", np.ones((2, 3, 5), np.float16)),
            r"text/mine/features is \(2, 3, 5\), expected \(2, 3, 6\)",
        ),
    ],
)
def test_each_kind_of_damage_is_a_line(tmp_path, spoil, message):
    path = write(tmp_path / "a.h5")
    add_text(path, text_set("mine"))
    with h5py.File(path, "r+") as file:
        spoil(file)
    found = verify(path)
    assert any(re.search(message, line) for line in found) and not any(
        "\n" in line for line in found
    )


def replaced(file, name, data):
    del file[name]
    file[name] = data


@pytest.mark.parametrize(
    "name, data",
    [
        ("splits/train/labels", np.int32(3)),
        ("splits/train/labels", np.array([b"a"] * 10)),
        ("splits/train/features", np.ones(10, np.float16)),
        ("splits/train/features", np.full((10, 6), b"a")),
        ("splits/train/status", np.uint8(1)),
        ("splits/train/paths", np.ones(10)),
        ("splits/train/views/aug_rows", np.ones((4, 2), np.int64)),
        ("text/default/features", np.full((2, 3, 6), b"a")),
    ],
)
def test_an_array_of_another_type_or_shape_is_a_line(tmp_path, name, data):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        replaced(file, name, data)
    lines = verify(path)
    assert len(lines) == 1 and f"a.h5 cannot be used: {name} h" in lines[0]


def test_a_file_that_does_not_open_is_a_line(tmp_path):
    assert "there is no cache file" in verify(tmp_path / "a.h5")[0]


def unit_cache(tmp_path, length):
    """A cache of 6 rows of one length that says they are of length one; the fifth is unreadable."""
    labels = np.arange(6) % 3
    split = SplitLayout([f"{row}.jpg" for row in range(6)], labels, {"features": (6,)})
    path = tmp_path / f"{length}.h5"
    facts = header(split, unit_rows=True, dtype="float32")
    create(path, facts, {"train": split}, [text_set()])
    rows = np.eye(6) * length
    rows[4] = 0
    with Writer(path) as writer:
        writer.write("train", 0, {"features": rows[:4]}, np.ones(4))
        writer.write("train", 4, {"features": rows[4:]}, np.array([2, 1]))
        return writer.finish()


LENGTHS = [(1.0, True), (1.009, True), (0.991, True), (1.011, False)]


@pytest.mark.parametrize("length, sound", LENGTHS)
def test_rows_said_to_be_of_length_one_are_so_within_a_hundredth(tmp_path, length, sound):
    said = "are not of length one, which the file says they are"
    wrong = [f"train: rows 0 to 3 {said}", f"train: rows 4 to 7 {said}"]
    assert verify(unit_cache(tmp_path, length)) == ([] if sound else wrong)


def test_info_names_the_first_five_unreadable_images(tmp_path):
    paths = np.array([f"{i}.jpg" for i in range(6)])
    status = np.array([1, 2, 2, 2, 2, 2])
    extra = {"train_paths": paths, "train_status": status}
    train = info(import_features("npz", npz_file(tmp_path, **extra), **named(tmp_path)))["splits"][
        "train"
    ]
    assert train["unreadable"] == 5
    assert train["unreadable_paths"] == ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"]
    more = {"val_x": unit(8, 1), "val_y": np.arange(8) % 3}
    more["val_status"] = np.array([2, 2, 2, 2, 2, 2, 2, 1])
    more["val_paths"] = np.array([f"{i}.png" for i in range(8)])
    val = info(import_features("npz", npz_file(tmp_path, **more), **named(tmp_path)))["splits"][
        "val"
    ]
    assert val["unreadable"] == 7
    assert val["unreadable_paths"] == ["0.png", "1.png", "2.png", "3.png", "4.png"]


def test_info_tells_the_size_of_every_array(tmp_path):
    facts = info(write(tmp_path / "a.h5"))
    sizes = {name: array["bytes"] for name, array in facts["splits"]["train"]["arrays"].items()}
    assert sizes == {
        "features": 120,
        "labels": 40,
        "paths": 70,
        "status": 10,
        "checksums": 12,
        "views/aug": 96,
        "views/aug_rows": 32,
    }
    text = facts["prompts"]["default"]
    sizes = {name: array["bytes"] for name, array in text["arrays"].items()}
    assert sizes == {
        "features": 72,
        "templates": 14,
        "classnames": 9,
        "text_recipe": 88,
        "contents": 269,
    }
    assert (text["n_template"], text["n_class"], text["logit_scale"]) == (2, 3, 100.0)
    assert (facts["schema"], facts["batch"], facts["fingerprint"]) == (2, 4, "ab57c916-bab19902")

"""What a cache says of itself, and whether it is true."""

import json
import re

import h5py
import numpy as np
import pytest
from test_importing import named, npz_file
from test_store import text_set, write

from cliad.cache import store
from cliad.cache.store import CacheError, part_of
from cliad.pipelines.importing import import_npz
from cliad.pipelines.info import info
from cliad.pipelines.verify import verify


def test_info_tells_all_and_is_json(tmp_path):
    path = write(tmp_path / "a.h5")
    store.add_text(path, text_set("mine", classnames=("cat", "hound", "eel")))
    facts = json.loads(json.dumps(info(path)))
    assert facts["dataset"] == "toy" and facts["encoder"] == "enc" and facts["dtype"] == "float16" and facts["dim"] == 6
    assert facts["complete"] and not facts["unit_rows"] and facts["bytes"] == path.stat().st_size
    train = facts["splits"]["train"]
    assert [train[word] for word in ("n", "n_class", "done", "unreadable", "to_do")] == [10, 3, 10, 0, 0]
    assert train["arrays"]["views/aug"] == {"shape": [2, 4, 6], "dtype": "float16", "bytes": 96}
    assert facts["prompts"]["mine"]["classnames"] == ["cat", "hound", "eel"] and facts["prompts"]["default"]["n_template"] == 2
    assert facts["fingerprint"] == f"{facts['image_id']}-{facts['prompts']['default']['text_id']}" and facts["recipe"]["weights"] == "w"


def test_info_of_an_unfinished_cache_says_what_is_left(tmp_path):
    write(tmp_path / "a.h5", batches=1)
    facts = info(part_of(tmp_path / "a.h5"))
    assert not facts["complete"] and facts["splits"]["train"]["done"] == 4 and facts["splits"]["train"]["to_do"] == 6


def test_info_names_unreadable_images_and_says_where_text_is_missing(tmp_path):
    paths = np.array([f"{i}.jpg" for i in range(6)])
    file = npz_file(tmp_path, drop=("text",), train_status=np.array([1, 2, 1, 1, 1, 1]), train_paths=paths)
    facts = info(import_npz(file, **named(tmp_path)))
    assert facts["splits"]["train"]["unreadable"] == 1 and facts["splits"]["train"]["unreadable_paths"] == ["1.jpg"]
    assert facts["prompts"]["default"]["has_text"] is False and facts["prompts"]["default"]["templates"] == []


def test_info_of_no_cache_is_one_line(tmp_path):
    (tmp_path / "a.h5").write_text("no")
    with pytest.raises(CacheError, match="not an HDF5 file"):
        info(tmp_path / "a.h5")


def test_a_sound_file_has_no_problems(tmp_path):
    path = write(tmp_path / "a.h5")
    store.add_text(path, text_set("mine"))
    assert verify(path) == [] and verify(import_npz(npz_file(tmp_path), **named(tmp_path))) == []


def put(name, at, value):
    return lambda file: file[name].__setitem__(at, value)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (put("splits/train/features", 5, np.nan), "rows 4 to 7 hold values that are not finite"),
        (put("splits/train/features", 5, 7.0), "rows 4 to 7 are damaged"),
        (put("splits/train/labels", 3, 9), r"label 9 has no class name \(3 names in prompts 'default'; 1 such rows\)"),
        (put("splits/train/status", 3, 0), "1 rows are still to do"),
        (put("splits/train/status", 3, 7), "status 7 is none of"),
        (put("splits/train/paths", 3, b"\xff"), "paths and labels does not match the image id"),
        (put("splits/train/views/aug_rows", 3, 77), "not ascending row numbers"),
        (put("text/mine/features", (0, 0, 0), np.inf), "prompts 'mine': not all text features"),
        (put("text/mine/classnames", 0, b"cow"), "prompts 'mine' do not match their id"),
        (lambda file: file["text/mine"].attrs.modify("logit_scale", -1.0), "prompts 'mine': logit scale -1.0"),
        (lambda file: file["text/mine"].attrs.modify("encoder_id", np.bytes_("e2")), "do not share a space"),
        (lambda file: file.attrs.modify("unit_rows", 1), "not of length one"),
        (lambda file: file.pop("splits/train/paths"), r"lost \['splits/train/paths'\]"),
        (lambda file: replaced(file, "splits/train/status", np.ones(9, np.uint8)), "status has 9 rows, expected 10"),
        (lambda file: replaced(file, "text/mine/features", np.ones((2, 3, 5), np.float16)), r"text is \(2, 3, 5\), expected \(2, 3, 6\)"),
    ],
)
def test_each_kind_of_damage_is_a_line(tmp_path, spoil, message):
    path = write(tmp_path / "a.h5")
    store.add_text(path, text_set("mine"))
    with h5py.File(path, "r+") as file:
        spoil(file)
    found = verify(path)
    assert any(re.search(message, line) for line in found) and not any("\n" in line for line in found)


def replaced(file, name, data):
    del file[name]
    file[name] = data


def test_a_file_that_does_not_open_is_a_line(tmp_path):
    assert "there is no cache file" in verify(tmp_path / "a.h5")[0]

"""The field's split files, `split_zhou_*.json`: one reader for draws, data sets and imports."""

import json

import pytest

from cliad.cache.datasets.base import DatasetError
from cliad.cache.datasets.split_file import SplitFileError, SplitRow, read_split_file

TRAIN = [["b/1.jpg", 1, "bee"], ["a/1.jpg", 0, "ant_hill"]]


def written(tmp_path, content):
    file = tmp_path / "split_zhou_Toy.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_rows_keep_their_order_and_class_names_stand_in_label_order(tmp_path):
    content = read_split_file(written(tmp_path, {"train": TRAIN, "test": [["c.jpg", 2, "cat"]]}))
    assert content.splits == {
        "train": [SplitRow("b/1.jpg", 1, "bee"), SplitRow("a/1.jpg", 0, "ant_hill")],
        "test": [SplitRow("c.jpg", 2, "cat")],
    }
    assert content.classnames == ["ant_hill", "bee", "cat"]


def test_only_splits_that_are_required_must_be_there(tmp_path):
    file = written(tmp_path, {"train": TRAIN})
    assert set(read_split_file(file, required=["train"]).splits) == {"train"}
    with pytest.raises(SplitFileError, match=r"Toy.json .*it has no 'val', only \['train'\]"):
        read_split_file(file, required=["train", "val", "test"])


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is not valid JSON"),
        ("[]", r"is not a split file \(it holds a list\)"),
        ('{"train": 3}', "is not a split file"),
        ('{"train": [["a.jpg", 0]]}', "is not a split file"),
        ('{"train": [["a.jpg", "x", "ant"]]}', "is not a split file"),
        ('{"train": [["a.jpg", null, "ant"]]}', "is not a split file"),
        ('{"train": [["a.jpg", Infinity, "ant"]]}', "is not a split file"),
        ('{"train": [["a.jpg", 1.5, "ant"]]}', "is not a split file"),
        ('{"train": [["a.jpg", true, "ant"]]}', "is not a split file"),
        ('{"train": [["a.jpg", "²", "ant"]]}', "is not a split file"),
        ('{"train": [["a.jpg", 0, null]]}', "is not a split file"),
        ('{"train": [[null, 0, "ant"]]}', "is not a split file"),
        ('{"train": ["abc"]}', "is not a split file"),
        ('{"train": [["", 0, "ant"]]}', "a path or name is empty"),
        ('{"train": [["a.jpg", 0, " "]]}', "a path or name is empty"),
        ('{"train": [["a\\u0000", 0, "ant"]]}', "a path or name is empty"),
        ('{"train": [["../../x.jpg", 0, "ant"]]}', r"names \.\./\.\./x.jpg, which is outside"),
        ('{"train": [["a/../../x.jpg", 0, "ant"]]}', "which is outside of the image folder"),
        ('{"train": [["/etc/passwd", 0, "ant"]]}', "names /etc/passwd, which is outside"),
        ('{"train": [["a", 0, "ant"]], "val": [["b", 0, "bee"]]}', r"'ant' and 'bee' \(val\)"),
        ('{"train": [["a", 0, "ant"], ["b", 2, "bee"]]}', "has labels 0 to 2 with gaps"),
        ('{"train": [["a", 1, "ant"]]}', "has labels 1 to 1 with gaps"),
    ],
)
def test_what_is_wrong_with_a_split_file_is_one_line_with_its_name(tmp_path, content, message):
    with pytest.raises(SplitFileError, match=message) as error:
        read_split_file(written(tmp_path, content))
    assert "split_zhou_Toy.json" in str(error.value) and "\n" not in str(error.value)


def test_a_split_file_that_is_not_there_is_an_error_of_the_data_set(tmp_path):
    with pytest.raises(DatasetError, match=r"there is no file .*gone\.json"):
        read_split_file(tmp_path / "gone.json")

"""A user's own folders: what is taken, what is left out and said, what is refused."""

import os
import shutil

import layouts
import pytest
from PIL import Image

from cliad.cache.datasets import find_dataset
from cliad.cache.datasets.base import DatasetError
from cliad.cache.datasets.folders import image_files
from cliad.cache.datasets.own import Allowed


def read(folder, **allowed):
    return find_dataset(f"folder:{folder}", Allowed(**allowed)).read(None, "field")


def lines(listing):
    return [note.line(shown=None) for note in listing.notes]


def split_folders(root, names=("cat", "dog")):
    for part, count in (("train", 3), ("test", 2)):
        layouts.class_folders(root / part, names, count, "png")


def taken(listing):
    return sum(len(rows) for rows in listing.splits.values())


def test_a_link_that_leads_into_a_loop_counts_each_folder_once(tmp_path):
    split_folders(tmp_path)
    (tmp_path / "train" / "cat" / "self").symlink_to("../cat")
    (tmp_path / "train" / "dog" / "up").symlink_to("..")
    listing = read(tmp_path)
    assert len(listing.splits["train"]) == 6
    assert lines(listing) == [
        "left out 2 links to folders already taken: train/cat/self, train/dog/up"
    ]
    assert len(image_files(tmp_path)) == 10


def test_a_class_folder_that_is_a_link_to_another_is_taken_once(tmp_path):
    split_folders(tmp_path)
    (tmp_path / "train" / "cat").rename(tmp_path / "train" / "tom")
    (tmp_path / "train" / "cat").symlink_to("tom")
    shutil.rmtree(tmp_path / "test" / "cat")
    listing = read(tmp_path)
    # The real folder has the images, although its link comes first in the alphabet.
    assert listing.classnames == ["dog", "tom"] and len(listing.splits["train"]) == 6


def test_the_data_set_itself_may_be_a_link(tmp_path):
    split_folders(tmp_path / "real")
    (tmp_path / "linked").symlink_to("real")
    assert taken(read(tmp_path / "linked")) == 10 and not read(tmp_path / "linked").notes


@pytest.mark.parametrize("place", ["train/cat/x", "train/cow", "train/cat/x.png", "val"])
def test_a_link_out_of_the_data_set_is_refused_by_name_unless_it_is_allowed(tmp_path, place):
    split_folders(tmp_path / "own")
    layouts.save(tmp_path / "other" / "more" / "a.png")
    is_file = place.endswith(".png")
    target = "other/more/a.png" if is_file else "other/more"
    if place == "val":
        target = "other"
    (tmp_path / "own" / place).symlink_to(tmp_path / target)
    with pytest.raises(
        DatasetError, match=rf"{place} is a link to .*{target}, outside of .*--root"
    ):
        read(tmp_path / "own")
    assert taken(read(tmp_path / "own", root=tmp_path)) == 11


def test_a_split_that_is_a_link_to_another_is_refused_unless_overlap_is_allowed(tmp_path):
    split_folders(tmp_path)
    (tmp_path / "val").symlink_to("test")
    with pytest.raises(DatasetError, match=r"one folder in two splits.*--allow-overlap"):
        read(tmp_path)
    assert len(read(tmp_path, overlap=True).splits["val"]) == 4


def test_images_are_known_by_their_first_bytes_and_other_files_are_counted(tmp_path):
    layouts.class_folders(tmp_path, ["cat", "dog"], 2, "png")
    for name, format in (("a.avif", "AVIF"), ("b.mpo", "MPO"), ("c.jp2", "JPEG2000")):
        layouts.save(tmp_path / "cat" / name, format=format)
    layouts.save(tmp_path / "cat" / "without", format="PNG")
    layouts.save(tmp_path / "cat" / "odd.image", format="JPEG")
    layouts.save(tmp_path / "cat" / "program.eps", format="EPS")
    layouts.lines(tmp_path / "cat" / "one.txt", "BM is how a bitmap begins, too")
    layouts.lines(tmp_path / "dog" / "two.TXT", "P1 is how a bitmap begins")
    listing = read(tmp_path)
    assert taken(listing) == 9
    assert lines(listing) == ["left out 3 files that are not images: 2 .txt, 1 .eps"]


def test_a_file_that_ends_like_an_image_stays_and_is_unreadable(tmp_path):
    layouts.class_folders(tmp_path, ["cat", "dog"], 2, "png")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    layouts.lines(tmp_path / "cat" / "text.png", "no image")
    assert taken(read(tmp_path)) == 6


def test_folders_of_systems_and_empty_ones_are_no_classes_and_named(tmp_path):
    layouts.class_folders(tmp_path, ["cat", "dog"], 2, "png")
    for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints", "lost+found", "cat/@eaDir"):
        layouts.save(tmp_path / name / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dog" / "._dog_0.png").write_bytes(b"what macOS puts there")
    listing = read(tmp_path)
    assert listing.classnames == ["cat", "dog"] and taken(listing) == 4
    assert "left out 1 folder without images: empty" in lines(listing)
    assert "left out 1 hidden file: dog/._dog_0.png" in lines(listing)
    assert (
        "left out 5 hidden or system folders:"
        " .ipynb_checkpoints, @eaDir, __MACOSX, cat/@eaDir, lost+found"
    ) in lines(listing)


def test_images_in_no_class_folder_and_folders_beside_the_splits_are_named(tmp_path):
    split_folders(tmp_path)
    layouts.save(tmp_path / "train" / "a.png")
    layouts.save(tmp_path / "unlabelled" / "a.png")
    assert lines(read(tmp_path)) == [
        f"left out 1 image that is in no class folder, but in {tmp_path / 'train'} itself",
        "left out 1 folder beside the splits: unlabelled",
    ]


def test_a_class_may_be_called_like_a_split(tmp_path):
    layouts.class_folders(tmp_path, ["bus", "car", "train", "tram"], 4, "png")
    listing = read(tmp_path)
    assert listing.classnames == ["bus", "car", "train", "tram"] and taken(listing) == 16


def test_splits_without_class_folders_are_refused(tmp_path):
    layouts.class_folders(tmp_path, ["train", "test"], 2, "png")
    with pytest.raises(DatasetError, match="images in test, train, but no folders per class"):
        read(tmp_path)


@pytest.mark.parametrize(
    "one, two", [("val", "valid"), ("dev", "validation"), ("train", "Training")]
)
def test_two_folders_for_one_split_are_refused_and_both_named(tmp_path, one, two):
    split_folders(tmp_path)
    for name in (one, two):
        layouts.class_folders(tmp_path / name, ["cat", "dog"], 1, "png")
    with pytest.raises(DatasetError, match=f"has ({one}/ and {two}/|{two}/ and {one}/)"):
        read(tmp_path)


@pytest.mark.parametrize(
    "one, two",
    [("golden retriever", "golden_retriever"), ("Cat", "cat"), ("\u00e9clair", "e\u0301clair")],
)
def test_two_classes_of_one_name_are_refused_and_both_named(tmp_path, one, two):
    layouts.class_folders(tmp_path / "train", [one, "dog"], 2, "png")
    layouts.class_folders(tmp_path / "test", [two, "dog"], 2, "png")
    with pytest.raises(DatasetError, match="have one name") as error:
        read(tmp_path)
    assert f"'{one}'" in str(error.value) and f"'{two}'" in str(error.value)


def test_two_classes_of_one_name_can_be_told_apart_by_the_settings(tmp_path):
    layouts.class_folders(tmp_path, ["A", "a"], 2, "png")
    layouts.lines(tmp_path / "cliad.toml", "[classnames]", 'a = "small a"')
    assert read(tmp_path).classnames == ["A", "small a"]


def test_a_class_without_training_images_is_a_problem_that_names_it(tmp_path):
    split_folders(tmp_path)
    layouts.class_folders(tmp_path / "test", ["cow"], 1, "png")
    (problem,) = read(tmp_path).problems
    assert problem.startswith(f"folder:{tmp_path} has no training images of 1 class: cow;")


def test_a_data_set_for_testing_alone_is_said(tmp_path):
    layouts.class_folders(tmp_path / "test", ["cat", "dog"], 2, "png")
    listing = read(tmp_path)
    assert not listing.problems
    assert lines(listing) == ["there are no training images: only zero-shot can be measured"]


def test_an_empty_test_split_is_said(tmp_path):
    layouts.class_folders(tmp_path, ["cat", "dog"], 1, "png")
    assert lines(read(tmp_path)) == ["test is empty: nothing can be measured on it"]


@pytest.mark.parametrize("name", [b"cat/\xff.png", b"\xed\xa0\x80/a.png", b"cat/\xff/a.png"])
def test_names_that_are_not_utf_8_are_refused_in_one_line(tmp_path, name):
    layouts.class_folders(tmp_path, ["cat", "dog"], 1, "png")
    file = os.fsencode(tmp_path) + b"/" + name
    os.makedirs(os.path.dirname(file), exist_ok=True)
    Image.new("L", (4, 4)).save(os.fsdecode(file))
    with pytest.raises(DatasetError, match=r"the name .*\\x.* in .* is not UTF-8; rename it"):
        read(tmp_path)


def test_a_data_set_whose_own_name_is_not_utf_8_is_refused():
    with pytest.raises(DatasetError, match=r"folder:\\xff is not UTF-8"):
        find_dataset("folder:\udcff")


# ------------------------------------------------------------------------------------- metadata

LABELS = ["file_name,label", "a.png,cat", "b.png,dog", "c.png,cat", "d.png,dog"]


def images_beside(folder):
    for number, name in enumerate("abcd"):
        layouts.save(folder / f"{name}.png", number)


def test_hugging_faces_metadata_names_the_classes(tmp_path):
    images_beside(tmp_path)
    layouts.save(tmp_path / "e.png")
    layouts.lines(tmp_path / "metadata.csv", *LABELS)
    listing = read(tmp_path)
    assert listing.classnames == ["cat", "dog"] and set(listing.splits["train"]) < {
        ("a.png", 0),
        ("b.png", 1),
        ("c.png", 0),
        ("d.png", 1),
    }
    assert lines(listing)[:2] == [
        f"classes are read from {tmp_path / 'metadata.csv'}",
        "left out 1 image that it does not list: e.png",
    ]


def test_metadata_in_lines_of_json_lies_in_each_split(tmp_path):
    for part in ("train", "test"):
        images_beside(tmp_path / part)
        rows = [f'{{"file_name": "{name}.png", "label": {k % 2}}}' for k, name in enumerate("abcd")]
        layouts.lines(tmp_path / part / "metadata.jsonl", *rows)
    listing = read(tmp_path)
    assert listing.classnames == ["0", "1"]
    assert listing.splits["test"][:2] == [("test/a.png", 0), ("test/b.png", 1)]
    assert listing.open("train/a.png").mode == "RGB"


def test_metadata_at_the_root_has_the_splits_in_its_paths(tmp_path):
    for part in ("train", "test"):
        images_beside(tmp_path / part)
    rows = [f"{part}/{name}.png,c{name}" for part in ("train", "test") for name in "abcd"]
    layouts.lines(tmp_path / "metadata.csv", "file_name,label", *rows)
    assert [len(rows) for rows in read(tmp_path).splits.values()] == [4, 4]


def test_class_folders_count_where_metadata_says_the_same(tmp_path):
    layouts.class_folders(tmp_path, ["cat", "dog"], 2, "png")
    before = read(tmp_path)
    rows = [f"{name}/{name}_{i}.png,{k}" for k, name in enumerate(["cat", "dog"]) for i in (0, 1)]
    layouts.lines(tmp_path / "metadata.csv", "file_name,label", *rows)
    after = read(tmp_path)
    assert (after.splits, after.classnames) == (before.splits, before.classnames)
    metadata = tmp_path / "metadata.csv"
    assert lines(after)[0] == f"classes are read from the folders, not from {metadata}"


@pytest.mark.parametrize(
    "name, rows, message",
    [
        ("metadata.csv", ["file_name,text", "a.png,x"], "columns file_name and label; it has"),
        ("metadata.csv", [*LABELS, "../a.png,cat"], r"line 6: \.\./a.png is outside of"),
        ("metadata.csv", [*LABELS, "x.png,"], "line 6: path or label is empty"),
        ("metadata.jsonl", ["[1]"], "line 1 holds a list; each line is like"),
        ("metadata.jsonl", ['{"file_name": 3'], "line 1 is not valid JSON"),
        ("metadata.jsonl", ['{"file_name": "a.png", "label": null}'], "line 1: path or label"),
        ("metadata.jsonl", ['{"file_name": "a.png", "label": 1.5}'], "label is a float"),
        ("metadata.jsonl", ['{"file_name": "a\\u0000", "label": 1}'], "zero byte"),
        ("metadata.jsonl", ['{"file_name": "a.png", "label": "\\ud800"}'], "half a letter"),
    ],
)
def test_wrong_metadata_is_one_line(tmp_path, name, rows, message):
    images_beside(tmp_path)
    layouts.lines(tmp_path / name, *rows)
    with pytest.raises(DatasetError, match=message) as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


def test_two_files_of_metadata_for_the_same_images_are_refused(tmp_path):
    images_beside(tmp_path)
    layouts.lines(tmp_path / "metadata.csv", *LABELS)
    layouts.lines(tmp_path / "metadata.jsonl", '{"file_name": "a.png", "label": "cat"}')
    with pytest.raises(DatasetError, match="are both there"):
        read(tmp_path)

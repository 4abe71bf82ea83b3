"""Shards as others make them: what counts, what is left out and said, what is refused in one line."""

import io
import json
import os
import tarfile

import layouts
import pytest

from cliad.cache.classnames import ClassnamesError
from cliad.cache.datasets import find_dataset
from cliad.cache.datasets.base import DatasetError
from cliad.cache.datasets.shard_index import class_in
from cliad.cache.datasets.shard_names import expand_braces


def picture(seed=0):
    stream = io.BytesIO()
    layouts.picture(seed).save(stream, "PNG")
    return stream.getvalue()


def shard(path, **files):
    """A shard of these files; `__` in a name stands for a dot, an ending in png for a picture."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("__", "."))
            content = picture() if content is None else content
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def two_splits(folder, **files):
    """A train shard with these files beside a plain sample of two classes, and a test shard."""
    plain = {"p__png": None, "p__cls": b"cat", "q__png": None, "q__cls": b"owl"}
    shard(folder / "test.tar", **plain)
    shard(folder / "train.tar", **plain, **files)
    return find_dataset(f"wds:{folder}").read(None, "field")


def keys(listing):
    return [path.rpartition("/")[2] for path, _ in listing.splits["train"]]


def lines(listing):
    return [note.line() for note in listing.notes]


def test_a_cls_counts_beside_a_json_without_a_class(tmp_path):
    listing = two_splits(tmp_path, a__png=None, a__json=b'{"url": "x"}', a__cls=b"owl")
    assert dict(listing.splits["train"])["train.tar/a"] == 1
    assert lines(listing) == []


@pytest.mark.parametrize("value", [None, True, [1], {"a": 1}, 1.5, -1, 10**12])
def test_a_label_that_is_no_class_is_refused_by_its_key(tmp_path, value):
    content = json.dumps({"label": value}).encode()
    with pytest.raises(DatasetError, match=r"a\.json: expected a class"):
        two_splits(tmp_path, a__png=None, a__json=content)


@pytest.mark.parametrize(
    "ending, content, label",
    [
        ("cls", b" 7\n", "7"),
        ("json", b"7", "7"),
        ("json", b'{"cls": 7.0}', "7"),
        ("json", b'{"class": "house  sparrow"}', "house sparrow"),
        ("json", b'{"url": "x"}', ""),
        ("cls", "²".encode(), "²"),
    ],
)
def test_what_a_label_file_says(ending, content, label):
    assert class_in(ending, content, "the file") == label


@pytest.mark.parametrize("content", [b"\xff", b"9" * 5000, b"-3", b"x" * 5000])
def test_a_cls_that_is_no_class_is_one_line(content):
    with pytest.raises(DatasetError, match="the file"):
        class_in("cls", content, "the file")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"9" * 5000, b'"\\ud800"', b"{"])
def test_a_json_that_cannot_be_read_is_one_line(content):
    with pytest.raises(DatasetError, match="the file"):
        class_in("json", content, "the file")


def test_what_is_left_out_is_said(tmp_path):
    listing = two_splits(
        tmp_path,
        a__png=None,
        b__cls=b"cat",
        c__crop__png=None,
        d__png=None,
        d__jpg=None,
        d__cls=b"owl",
    )
    assert keys(listing) == ["p", "q", "d"]
    said = " | ".join(lines(listing))
    assert (
        "left out 1 sample without a .cls, .label or .json that holds a class: train.tar/a" in said
    )
    assert "left out 1 sample without an image: train.tar/b" in said
    assert "1 image with several dots in the name" in said
    assert "train.tar/c.crop.png" in said
    assert "1 sample of which further images are not used: train.tar/d" in said


def test_shards_that_name_a_split_and_shards_that_do_not_are_not_mixed(tmp_path):
    shard(tmp_path / "more.tar", x__png=None, x__cls=b"cat")
    with pytest.raises(DatasetError, match=r"train\.tar|test\.tar.*do not, such as more\.tar"):
        two_splits(tmp_path)


def test_shards_without_a_split_are_split_by_chance_and_that_is_said(tmp_path):
    files = {}
    for number in range(10):
        files |= {f"a{number}__png": None, f"a{number}__cls": b"cat"}
        files |= {f"b{number}__png": None, f"b{number}__cls": b"owl"}
    shard(tmp_path / "0.tar", **files)
    listing = find_dataset(f"wds:{tmp_path}").read(None, "field")
    assert [len(listing.splits[name]) for name in ("train", "val", "test")] == [10, 4, 6]
    assert "split by chance" in lines(listing)[0]


def test_a_class_that_is_never_trained_is_a_problem(tmp_path):
    shard(tmp_path / "train.tar", a__png=None, a__cls=b"cat")
    shard(tmp_path / "test.tar", a__png=None, a__cls=b"cat", b__png=None, b__cls=b"owl")
    listing = find_dataset(f"wds:{tmp_path}").read(None, "field")
    assert "no training images of 1 class: owl" in listing.problems[0]


def test_an_empty_line_of_class_names_is_refused_as_it_would_shift_them(tmp_path):
    for split in ("train", "test"):
        shard(tmp_path / f"{split}.tar", a__png=None, a__cls=b"0", b__png=None, b__cls=b"1")
    (tmp_path / "classnames.txt").write_text("cat\n\nowl\n")
    with pytest.raises(ClassnamesError, match="line 2 is empty"):
        find_dataset(f"wds:{tmp_path}").read(None, "field")


def test_a_class_that_the_settings_misspell_is_named(tmp_path):
    (tmp_path / "cliad.toml").write_text('[classnames]\ncatt = "kitten"\n')
    with pytest.raises(DatasetError, match="names class 'catt'"):
        two_splits(tmp_path)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("name", ["train.tar", "train.tar.gz"])
def test_a_compressed_shard_says_what_it_is_and_the_way_out(tmp_path, mode, name):
    with tarfile.open(tmp_path / name, mode) as archive:
        archive.addfile(tarfile.TarInfo("a.cls"))
    with pytest.raises(DatasetError, match=r"compressed.*unpack"):
        find_dataset(f"wds:{tmp_path}").read(None, "field")


def test_a_pipe_in_place_of_a_shard_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "train.tar")
    with pytest.raises(DatasetError, match="pipe or a device"):
        find_dataset(f"wds:{tmp_path}").read(None, "field")


def test_a_shard_that_is_cut_is_refused(tmp_path):
    path = shard(tmp_path / "train.tar", a__png=None, a__cls=b"cat")
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DatasetError, match=r"train\.tar"):
        find_dataset(f"wds:{tmp_path}").read(None, "field")


def test_a_sample_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(DatasetError, match=r"has a\.png twice"):
        find_dataset(f"wds:{tmp_path}").read(None, "field")


def test_links_in_a_shard_are_not_followed(tmp_path):
    path = shard(tmp_path / "train.tar", p__png=None, p__cls=b"cat")
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("q.cls")
        link.type = tarfile.LNKTYPE
        link.linkname = "p.cls"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("q.png"))
    shard(tmp_path / "test.tar", p__png=None, p__cls=b"cat")
    listing = find_dataset(f"wds:{tmp_path}").read(None, "field")
    assert keys(listing) == ["p"]


@pytest.mark.parametrize(
    "pattern",
    ["{0..99999999999}.tar", "{0..999}{0..999}.tar", "{" + "9" * 5000 + ".." + "9" * 5001 + "}"],
)
def test_names_are_counted_before_they_are_made(pattern):
    with pytest.raises(DatasetError, match="at most 100,000 are allowed"):
        expand_braces(pattern)

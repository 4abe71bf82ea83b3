"""The data check, and the lists of data sets and models."""

import os

import layouts
import open_clip
import pytest
import torch

from cliad.cache import datasets
from cliad.pipelines.data_check import SplitCheck, data_check
from cliad.pipelines.listing import list_datasets, list_models


@pytest.fixture
def dtd(tmp_path):
    layouts.dtd(tmp_path)
    return tmp_path


def test_counts_and_classes_are_compared_with_what_they_should_be(dtd):
    found = data_check("dtd", data=dtd)
    assert found.root == dtd / "dtd" / "images" and not found.ok
    assert found.splits[0] == SplitCheck("train", 8, 2820, 0, 0)
    assert (
        "train lists 8 images, it should list 2,820" in found.problems
        and "there are 2 classes, there should be 47" in found.problems
    )
    assert found.per_class["test"] == {"banded": 3, "dotted": 3}


def test_missing_and_unreadable_images_are_named(dtd):
    images = dtd / "dtd" / "images"
    (images / "banded" / "banded_0001.jpg").unlink()
    (images / "banded" / "banded_0002.jpg").write_bytes(b"no picture")
    found = data_check("dtd", data=dtd)
    assert (found.splits[0].missing, found.splits[0].unreadable) == (1, 1) and found.per_class[
        "train"
    ]["banded"] == 2
    assert "banded/banded_0001.jpg: missing" in found.problems and any(
        line.startswith("banded/banded_0002.jpg: Unid") for line in found.problems
    )
    assert any("`cliad data download dtd` fetches 625 MB" in line for line in found.advice)
    assert (data_check("dtd", data=dtd, quick=True).splits[0].unreadable) == 0


def test_a_data_set_that_is_not_there_says_where_to_get_it(tmp_path):
    found = data_check("dtd", data=tmp_path)
    assert "has no folder dtd/" in found.problems[0] and any(
        "dtd-r1.0.1.tar.gz -> " in line for line in found.advice
    )
    assert any("image-net.org" in line for line in data_check("imagenet", data=tmp_path).advice)


def test_a_near_miss_of_the_folder_name_is_pointed_out(tmp_path):
    (tmp_path / "dtd_v2").mkdir()
    assert "is it dtd_v2/?" in data_check("dtd", data=tmp_path).problems[0]


def test_digits_is_whole_and_own_folders_can_be_checked(tmp_path):
    assert data_check("digits").ok and sum(data_check("digits").per_class["train"].values()) == 898
    layouts.class_folders(tmp_path, ["a", "b"], 4, "png")
    states = []
    assert data_check(
        f"folder:{tmp_path}", progress=lambda *state: states.append(state)
    ).ok and states[-1] == (8, 8)


def test_what_was_left_out_is_named_in_full_and_is_no_problem(tmp_path):
    layouts.class_folders(tmp_path, ["a", "b"], 4, "png")
    empty = [f"empty{number}" for number in range(8)]
    for name in empty:
        (tmp_path / name).mkdir()
    found = data_check(f"folder:{tmp_path}")
    assert found.ok
    assert found.notes == [f"left out 8 folders without images: {', '.join(empty)}"]


def test_a_class_that_cannot_be_learnt_is_a_problem(tmp_path):
    layouts.class_folders(tmp_path / "train", ["a", "b"], 2, "png")
    layouts.class_folders(tmp_path / "test", ["a", "b", "c"], 2, "png")
    (problem,) = data_check(f"folder:{tmp_path}").problems
    assert "has no training images of 1 class: c" in problem


def test_what_is_no_file_or_too_long_a_name_is_a_problem_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    layouts.save(tmp_path / "a.png")
    long = "x" * 5000
    layouts.lines(tmp_path / "list.csv", "path,label", "a.png,x", "pipe.png,x", f"{long},x")
    found = data_check(f"csv:{tmp_path / 'list.csv'}")
    assert set(found.problems) >= {"pipe.png: missing", f"{long}: missing"}


def test_the_list_of_data_sets_says_what_is_there(dtd, tmp_path):
    rows = {row.name: row for row in list_datasets(tmp_path / "caches", dtd)}
    assert (
        set(rows) == set(datasets.DATASETS)
        and rows["dtd"].on_disk == str(dtd / "dtd")
        and rows["food101"].on_disk is None
    )
    assert (
        rows["digits"].on_disk == "bundled"
        and rows["imagenet"].images == 1331167
        and not rows["dtd"].cached
    )


def test_the_list_of_models():
    rows = {row.name: row for row in list_models()}
    assert (
        rows["tiny"].default == "bundled"
        and rows["ViT-B-32"].default == "openai"
        and "laion2b_s34b_b79k" in rows["ViT-B-32"].pretrained
    )
    assert {row.name for row in list_models("siglip2")} < set(rows) and [
        row.name for row in list_models("RN50x64")
    ] == [
        "RN50x64",
        "RN50x64-quickgelu",
    ]
    assert all(
        any("metaclip" in tag for tag in row.pretrained) for row in list_models("metaclip-400m")
    )


def test_a_model_is_listed_with_what_people_choose_it_by():
    rows = {row.name: row for row in list_models()}
    # 151 million: OpenAI's model card of ViT-B/32; 102 million: that of RN50
    assert round(rows["ViT-B-32"].parameters / 1e6) == 151
    assert round(rows["RN50"].parameters / 1e6) == 102
    assert (rows["ViT-L-14-336"].image_size, rows["ViT-L-14-336"].dim) == (336, 768)
    of_tag = dict(zip(rows["ViT-B-32"].pretrained, rows["ViT-B-32"].activations, strict=True))
    assert (of_tag["openai"], of_tag["laion2b_s34b_b79k"]) == ("QuickGELU", "GELU")


@pytest.mark.parametrize("name", ["RN50", "ViT-B-32", "tiny"])
def test_parameters_are_those_of_the_built_model(name):
    from cliad.cache.encoders.network import TINY

    if name == "tiny":
        open_clip.add_model_config(TINY / "tiny.json")
    with torch.device("meta"):
        network = open_clip.create_model(name, device="meta")
    counted = sum(parameter.numel() for parameter in network.parameters())
    assert {row.name: row for row in list_models(name)}[name].parameters == counted

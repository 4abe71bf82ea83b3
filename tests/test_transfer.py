"""A head on other data sets of its encoder, and on classes that it never saw."""

import pytest
from conftest import toy_cache

from cliad.adapters import HEADS
from cliad.adapters.base import HeadError
from cliad.cache.store import open_cache
from cliad.pipelines.episode import make_episodes, pick_device
from cliad.pipelines.train import SpecError, train
from cliad.pipelines.transfer import base_half, base_to_new, harmonic, train_and_transfer, transfer

CPU = pick_device("cpu")


def test_a_head_is_scored_on_a_shifted_data_set(tmp_path):
    toy_cache(tmp_path, dataset="source", n_class=6)
    toy_cache(tmp_path, dataset="shifted", n_class=6, noise=0.9)
    result, _, rows = train_and_transfer(
        folder=tmp_path, dataset="source", test=["shifted", "source"], head="taskres", shots=4, device="cpu"
    )
    shifted, same = rows
    assert (shifted["dataset"], shifted["test_dataset"], same["test_dataset"]) == ("source", "shifted", "source")
    assert same["top1"] == result.values["top1"] and same["zero_shot_top1"] == result.values["zero_shot_top1"]
    assert 0.5 < shifted["top1"] <= same["top1"] and shifted["test_fingerprint"] and shifted["ece_t"] is None


def test_fewer_classes_are_compared_among_themselves_and_other_ones_need_a_head_that_can(tmp_path):
    toy_cache(tmp_path, dataset="source", n_class=5)
    toy_cache(tmp_path, dataset="fewer", n_class=3)
    toy_cache(tmp_path, dataset="more", n_class=7)
    ask = {"folder": tmp_path, "dataset": "source", "shots": 2, "device": "cpu"}
    assert train_and_transfer(**ask, test=["fewer"], head="gda")[2][0]["test_n_class"] == 3
    assert train_and_transfer(**ask, test=["more"], head="clip-adapter")[2][0]["top1"] > 0.3
    with pytest.raises(SpecError, match="2 classes that source lacks, such as 'class 5'") as caught:
        train_and_transfer(**ask, test=["more"], head="gda")
    assert "\n" not in str(caught.value)
    mapped = {"class 5": "class 0", "class 6": "class 1"}
    assert train_and_transfer(**ask, test=["more"], head="gda", class_map=mapped)[2][0]["top1"] is not None


def test_classes_of_one_name_are_matched_in_their_order(tmp_path):
    names = ["missile", "boat", "missile", "sunglasses", "sunglasses"]
    toy_cache(tmp_path, dataset="source", classnames=names)
    toy_cache(tmp_path, dataset="same", classnames=names)
    ask = {"folder": tmp_path, "dataset": "source", "head": "gda", "shots": 4, "device": "cpu"}
    result, _, (same,) = train_and_transfer(**ask, test=["same"])
    assert same["top1"] == result.values["top1"] > 0.9 and same["reliability"] == result.values["reliability"]


def test_another_encoder_is_refused(tmp_path):
    toy_cache(tmp_path, dataset="source", encoder="one")
    other = open_cache(toy_cache(tmp_path, dataset="target", encoder="two"))
    result, cache = train(folder=tmp_path, dataset="source", shots=1)
    with pytest.raises(SpecError, match="encoded by two"):
        transfer([result], cache, other, CPU)


def test_base_to_new_trains_on_the_first_half_and_scores_both(toy):
    first, second = base_to_new(folder=toy, shots=4, seeds=(1, 2), device="cpu")
    assert (first["n_base"], first["n_new"], first["seed"], second["seed"]) == (3, 2, 1, 2) and first["top1"] is None
    assert first["harmonic"] == pytest.approx(2 / (1 / first["base_top1"] + 1 / first["new_top1"])) and first["base_top1"] > 0.8
    (zero,) = base_to_new(folder=toy, shots=4, hyper={"alpha": 0}, device="cpu")
    assert (zero["base_top1"], zero["new_top1"]) == (zero["zero_shot_base_top1"], zero["zero_shot_new_top1"])
    assert first["index_hash"] == train(folder=toy, shots=4)[0].values["index_hash"]


def test_the_cut_comes_after_the_draw(toy):
    cache = open_cache(next(toy.rglob("*.h5")))
    (drawn,) = make_episodes(cache, [(4, 1, "coop")], CPU)
    half = base_half(drawn.episode, 3, drawn.episode.text[:, :3])
    assert half.y.tolist() == [y for y in drawn.episode.y.tolist() if y < 3] and len(half.val_y) == 12 and half.n_class == 3


@pytest.mark.parametrize("name", [name for name, head in HEADS.items() if head.per_class])
def test_heads_with_parameters_per_class_refuse_new_ones(toy, name):
    with pytest.raises(HeadError, match="cannot serve new ones; base-to-new takes zero-shot, clip-adapter") as caught:
        base_to_new(folder=toy, head=name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["zero-shot", "reg-linear"])
def test_heads_without_them_take_it(toy, name):
    (row,) = base_to_new(folder=toy, head=name, shots=2, device="cpu")
    assert row["new_top1"] >= row["zero_shot_new_top1"] - 0.2


def test_harmonic_mean():
    assert harmonic(0.5, 1.0) == pytest.approx(2 / 3) and harmonic(0.0, 0.0) == 0.0 and harmonic(None, 0.5) is None

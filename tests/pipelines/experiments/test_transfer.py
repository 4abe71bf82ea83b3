"""A head on other data sets of its encoder, and on classes that it never saw."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import toy_cache, train_and_test_on

from cliad.adapters import HEADS
from cliad.adapters.core.head import HeadError
from cliad.adapters.core.select import fit_all, fit_selected
from cliad.cache.file.read import open_cache
from cliad.pipelines.experiments.base_to_new import base_half, base_to_new, harmonic
from cliad.pipelines.experiments.episode import make_episodes, pick_device
from cliad.pipelines.experiments.spec import SpecError, make_head
from cliad.pipelines.experiments.train import train
from cliad.pipelines.experiments.transfer import transfer
from cliad.pipelines.fewshot.draw import DrawRequest

CPU = pick_device("cpu")


def test_a_head_is_scored_on_a_shifted_data_set(tmp_path):
    toy_cache(tmp_path, dataset="source", n_class=6)
    toy_cache(tmp_path, dataset="shifted", n_class=6, noise=0.9)
    result, _, rows = train_and_test_on(
        ["shifted", "source"], folder=tmp_path, dataset="source", head="taskres", shots=4
    )
    shifted, same = rows
    assert (shifted["dataset"], shifted["test_dataset"], same["test_dataset"]) == (
        "source",
        "shifted",
        "source",
    )
    assert (
        same["top1"] == result.test.scores.top1 and same["zero_shot_top1"] == result.zero_shot_top1
    )
    assert (
        0.5 < shifted["top1"] <= same["top1"]
        and shifted["test_fingerprint"]
        and shifted["ece_t"] is None
    )


def test_fewer_classes_are_compared_among_themselves_and_unknown_ones_need_another_head(tmp_path):
    toy_cache(tmp_path, dataset="source", n_class=5)
    toy_cache(tmp_path, dataset="fewer", n_class=3)
    toy_cache(tmp_path, dataset="more", n_class=7)
    ask = {"folder": tmp_path, "dataset": "source", "shots": 2, "device": "cpu"}
    assert train_and_test_on(["fewer"], **ask, head="gda")[2][0]["test_n_class"] == 3
    assert train_and_test_on(["more"], **ask, head="clip-adapter")[2][0]["top1"] > 0.3
    for head, reason in (
        ("gda", "Gda needs images of the classes that it serves"),
        ("taskres", "TaskRes serves only the classes that it was trained on"),
    ):
        expected = f"2 classes that source lacks, such as 'class 5'; {reason}; zero-shot, "
        with pytest.raises(SpecError, match=expected) as caught:
            train_and_test_on(["more"], **ask, head=head)
        assert "\n" not in str(caught.value)


def test_classes_of_one_name_are_matched_in_their_order(tmp_path):
    names = ["missile", "boat", "missile", "sunglasses", "sunglasses"]
    toy_cache(tmp_path, dataset="source", classnames=names)
    toy_cache(tmp_path, dataset="same", classnames=names)
    ask = {"folder": tmp_path, "dataset": "source", "head": "gda", "shots": 4, "device": "cpu"}
    result, _, (same,) = train_and_test_on(["same"], **ask)
    assert (
        same["top1"] == result.test.scores.top1 > 0.9
        and same["reliability"] == result.test.scores.reliability
    )


def test_another_encoder_is_refused(tmp_path):
    toy_cache(tmp_path, dataset="source", encoder="one")
    other = open_cache(toy_cache(tmp_path, dataset="target", encoder="two"))
    result, cache = train(folder=tmp_path, dataset="source", shots=1)
    with pytest.raises(SpecError, match="encoded by two"):
        transfer([result], cache, other, CPU)


def test_base_to_new_trains_on_the_first_half_and_scores_both(toy):
    first, second = base_to_new(folder=toy, shots=4, seeds=(1, 2), device="cpu")
    assert (first["n_base"], first["n_new"], first["seed"], second["seed"]) == (
        3,
        2,
        1,
        2,
    ) and first["top1"] is None
    assert (
        first["harmonic"] == pytest.approx(2 / (1 / first["base_top1"] + 1 / first["new_top1"]))
        and first["base_top1"] > 0.8
    )
    (zero,) = base_to_new(folder=toy, shots=4, hyper={"alpha": 0}, device="cpu")
    assert (zero["base_top1"], zero["new_top1"]) == (
        zero["zero_shot_base_top1"],
        zero["zero_shot_new_top1"],
    )
    assert first["index_hash"] == train(folder=toy, shots=4)[0].draw.index_hash


def test_the_cut_comes_after_the_draw(toy):
    cache = open_cache(next(toy.rglob("*.h5")))
    (drawn,) = make_episodes(cache, [DrawRequest(4, 1, "coop")], CPU)
    half = base_half(drawn.episode, 3, drawn.episode.text[:, :3])
    assert (
        half.y.tolist() == [y for y in drawn.episode.y.tolist() if y < 3]
        and len(half.val_y) == 12
        and half.n_class == 3
    )


@pytest.mark.parametrize("name", [name for name, head in HEADS.items() if head.new_classes == "no"])
def test_heads_with_parameters_per_class_refuse_new_ones(toy, name):
    with pytest.raises(
        HeadError, match="cannot serve new ones; base-to-new takes zero-shot, clip-adapter"
    ) as caught:
        base_to_new(folder=toy, head=name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["zero-shot", "reg-linear"])
def test_heads_without_parameters_per_class_serve_new_ones(toy, name):
    (row,) = base_to_new(folder=toy, head=name, shots=2, device="cpu")
    assert row["new_top1"] >= row["zero_shot_new_top1"] - 0.2


def test_the_harmonic_mean_of_zeros_is_zero_and_of_nothing_nothing():
    assert (
        harmonic(0.5, 1.0) == pytest.approx(2 / 3)
        and harmonic(0.0, 0.0) == 0.0
        and harmonic(None, 0.5) is None
    )


# ------------------------------------------------------------------------------- numbers, by hand


def unit_rows(x):
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.maximum(length, 1e-12)  # a row of zeros stays one


def zero_shot_by_hand(x, text):
    """Cosines (n, n_class) of x (n, dim) and text (n_template, n_class, dim)."""
    weights = unit_rows(unit_rows(text.astype(np.float64)).mean(axis=0))
    return unit_rows(x.astype(np.float64)) @ weights.T


def clip_adapter_by_hand(x, text, classifier, alpha):
    """Cosines (n, n_class) of CLIP-Adapter, from its two matrices."""
    x = unit_rows(x.astype(np.float64))
    hidden = np.maximum(x @ classifier.p["visual_w1"][0].numpy(), 0)
    adapted = np.maximum(hidden @ classifier.p["visual_w2"][0].numpy(), 0)
    return zero_shot_by_hand(alpha * adapted + (1 - alpha) * x, text)


def share_right(scores, labels):
    right = 0
    for row, label in zip(scores, labels, strict=True):
        right += int(max(range(len(row)), key=row.__getitem__) == label)
    return right / len(labels)


def mean_of_classes(scores, labels):
    shares = []
    for label in sorted(set(labels)):
        members = [row for row, own in enumerate(labels) if own == label]
        shares.append(share_right(scores[members], [label] * len(members)))
    return sum(shares) / len(shares)


def mean_loss(logits, labels):
    total = 0.0
    for row, label in zip(logits.tolist(), labels, strict=True):
        total += math.log(sum(math.exp(value) for value in row)) - row[label]
    return total / len(labels)


@pytest.fixture
def hard(tmp_path):
    """The folder of a cache of 7 classes in each other's way: no accuracy on it is 0 or 1."""
    toy_cache(tmp_path / "hard", n_class=7, noise=3.0, n=(24, 8, 60))
    return tmp_path / "hard"


def halves_of(cache):
    """(x, labels, text) of the first 4 classes and of the last 3, labels from 0 in each."""
    test, text = cache.split("test"), cache.text
    x, y = test.rows(), test.y.tolist()
    base = [row for row, label in enumerate(y) if label in (0, 1, 2, 3)]
    new = [row for row, label in enumerate(y) if label in (4, 5, 6)]
    return (
        (x[base], [y[row] for row in base], text[:, [0, 1, 2, 3]]),
        (x[new], [y[row] - 4 for row in new], text[:, [4, 5, 6]]),
    )


def test_base_and_new_accuracies_are_those_of_a_plain_loop(hard):
    cache = open_cache(next(hard.rglob("*.h5")))
    hyper = {"alpha": 0.6, "epochs": 20}
    rows = base_to_new(folder=hard, shots=4, seeds=(1, 2), hyper=hyper, device="cpu")
    base, new = halves_of(cache)
    head = make_head("clip-adapter", hyper)
    drawn = make_episodes(cache, [DrawRequest(4, 1, "coop"), DrawRequest(4, 2, "coop")], CPU)
    text = torch.from_numpy(base[2])
    fitted = fit_all([(head, base_half(one.episode, 4, text)) for one in drawn])
    for row, classifier, one in zip(rows, fitted, drawn, strict=True):
        top_base = share_right(clip_adapter_by_hand(base[0], base[2], classifier, 0.6), base[1])
        top_new = share_right(clip_adapter_by_hand(new[0], new[2], classifier, 0.6), new[1])
        zero_base = share_right(zero_shot_by_hand(base[0], base[2]), base[1])
        zero_new = share_right(zero_shot_by_hand(new[0], new[2]), new[1])
        assert len({top_base, top_new, zero_base, zero_new, 0, 1}) == 6  # nothing agrees by chance
        assert (row["base_top1"], row["new_top1"]) == pytest.approx((top_base, top_new))
        assert row["zero_shot_base_top1"] == pytest.approx(zero_base)
        assert row["zero_shot_new_top1"] == pytest.approx(zero_new)
        assert row["harmonic"] == pytest.approx(2 * top_base * top_new / (top_base + top_new))
        expected = 2 * zero_base * zero_new / (zero_base + zero_new)
        assert row["zero_shot_harmonic"] == pytest.approx(expected)
        assert (row["n_base"], row["n_new"], row["task"]) == (4, 3, "base-to-new")
        assert (row["alpha"], row["hyper"]) == (0.6, hyper)
        assert (row["index_hash"], row["val_per_class"]) == (one.index_hash, 4)
        assert row["fingerprint"] == cache.fingerprint
        assert (row["group_size"], row["diverged"], row["run"]) == (2, False, None)


def tip_adapter_by_hand(x, keys, labels, text, alpha, beta):
    """Tip-Adapter's logits, a key at a time."""
    logits = 20.0 * zero_shot_by_hand(x, text)
    queries = unit_rows(x.astype(np.float64))
    for key, label in zip(unit_rows(keys.astype(np.float64)), labels, strict=True):
        logits[:, label] += alpha * np.exp(-beta * (1 - queries @ key))
    return logits


def test_a_head_of_keys_has_the_drawn_images_of_the_new_classes(hard):
    cache = open_cache(next(hard.rglob("*.h5")))
    (row,) = base_to_new(
        folder=hard, head="tip-adapter", shots=4, select="fixed", hyper={"alpha": 8}, device="cpu"
    )
    (one,) = make_episodes(cache, [DrawRequest(4, 1, "coop")], CPU)
    keys, labels = one.episode.features[one.episode.index].numpy(), one.episode.y.numpy()
    base, new = halves_of(cache)
    for name, (x, y, text), inside in (
        ("base", base, labels < 4),
        ("new", new, labels >= 4),
    ):
        own = labels[inside] - (0 if name == "base" else 4)
        logits = tip_adapter_by_hand(x, keys[inside], own, text, 8.0, 5.5)
        assert row[f"{name}_top1"] == pytest.approx(share_right(logits, y))
        assert row[f"{name}_top1"] != row[f"zero_shot_{name}_top1"]
    assert row["new_shots"] == 4


@pytest.mark.parametrize("name", [name for name, head in HEADS.items() if head.new_classes != "no"])
def test_rows_say_how_many_images_a_head_has_of_each_new_class(toy, name):
    if HEADS[name].needs & {"pre_projection", "tower"}:
        pytest.skip("the toy cache lacks what it needs")
    (row,) = base_to_new(folder=toy, head=name, shots=2, device="cpu")
    assert row["new_shots"] == {"text": 0, "support": 2}[HEADS[name].new_classes]
    assert (row["prototype_new_top1"] is None) == (row["new_shots"] == 0)


def prototype_by_hand(x, keys, labels, text):
    """Cosines with the unit sums of each class's unit text and unit mean."""
    weights = unit_rows(unit_rows(text.astype(np.float64)).mean(axis=0))
    keys = unit_rows(keys.astype(np.float64))
    for label in range(len(weights)):
        mean = keys[labels == label].mean(axis=0)
        weights[label] += mean / np.linalg.norm(mean)
    return unit_rows(x.astype(np.float64)) @ unit_rows(weights).T


@pytest.mark.parametrize("name", ["prototype", "meta-adapter"])
def test_the_means_of_the_images_stand_beside_every_head_that_has_them(hard, name):
    cache = open_cache(next(hard.rglob("*.h5")))
    (row,) = base_to_new(folder=hard, head=name, shots=4, select="fixed", device="cpu")
    (one,) = make_episodes(cache, [DrawRequest(4, 1, "coop")], CPU)
    keys, labels = one.episode.features[one.episode.index].numpy(), one.episode.y.numpy()
    shares = []
    for (x, y, text), first, last in zip(halves_of(cache), (0, 4), (4, 7), strict=True):
        inside = (labels >= first) & (labels < last)
        logits = prototype_by_hand(x, keys[inside], labels[inside] - first, text)
        shares.append(share_right(logits, y))
    found = (row["prototype_base_top1"], row["prototype_new_top1"])
    assert found == pytest.approx(shares)
    assert row["prototype_harmonic"] == pytest.approx(2 / (1 / shares[0] + 1 / shares[1]))
    itself = (row["base_top1"], row["new_top1"])
    assert (itself == found) == (name == "prototype")


@pytest.mark.parametrize("name", [name for name, head in HEADS.items() if head.new_classes != "no"])
def test_images_of_new_classes_never_reach_what_is_fitted(hard, name):
    if HEADS[name].needs & {"pre_projection", "tower"}:
        pytest.skip("the cache lacks what it needs")
    cache = open_cache(next(hard.rglob("*.h5")))
    (one,) = make_episodes(cache, [DrawRequest(4, 1, "coop")], CPU)
    episode = one.episode
    features = episode.features.clone()
    features[episode.index[episode.y >= 4]] = torch.nan
    features[episode.val_index[episode.val_y >= 4]] = torch.nan
    head = make_head(name, {})
    x = torch.from_numpy(cache.split("test").rows())
    found = []
    for matrix in (episode.features, features):
        half = base_half(replace(episode, features=matrix), 4, episode.text[:, :4])
        (fitted,) = fit_selected([(head, half)]) if head.searches() else fit_all([(head, half)])
        found.append((fitted.head, fitted.logits(x)))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


def test_base_to_new_of_the_zero_shot_head_is_zero_shot_by_hand(hard):
    cache = open_cache(next(hard.rglob("*.h5")))
    (row,) = base_to_new(folder=hard, head="zero-shot", device="cpu")
    for name, (x, labels, text) in zip(("base", "new"), halves_of(cache), strict=True):
        expected = share_right(zero_shot_by_hand(x, text), labels)
        assert row[f"{name}_top1"] == row[f"zero_shot_{name}_top1"] == pytest.approx(expected)


def test_base_to_new_chooses_on_the_base_half_of_validation(hard):
    words = {"shots": 4, "hyper": {"epochs": 5}, "device": "cpu"}
    (row,) = base_to_new(folder=hard, select="val", **words)
    alphas = (0.2, 0.4, 0.6, 0.8, 1.0, 0.0)
    cache = open_cache(next(hard.rglob("*.h5")))
    (one,) = make_episodes(cache, [DrawRequest(4, 1, "coop")], CPU)
    half = base_half(one.episode, 4, one.episode.text[:, :4])
    keep = [place for place, y in enumerate(one.episode.val_y.tolist()) if y < 4]
    assert half.val_index.tolist() == one.episode.val_index[keep].tolist()
    assert half.val_y.tolist() == one.episode.val_y[keep].tolist()
    found = []
    for alpha in alphas:
        (fitted,) = fit_all([(make_head("clip-adapter", {"alpha": alpha, "epochs": 5}), half)])
        logits = 20.0 * clip_adapter_by_hand(half.val[0].numpy(), cache.text[:, :4], fitted, alpha)
        labels = half.val_y.tolist()
        found.append((share_right(logits, labels), -mean_loss(logits, labels)))
    assert row["selected_on"] == "val"
    assert row["alpha"] == row["found"]["alpha"] == alphas[found.index(max(found))]


def test_an_uneven_number_of_classes_is_cut_above_the_middle(tmp_path):
    for n_class, n_base in ((2, 1), (3, 2), (6, 3)):
        toy_cache(tmp_path / str(n_class), n_class=n_class)
        (row,) = base_to_new(folder=tmp_path / str(n_class), head="zero-shot", device="cpu")
        assert (row["n_base"], row["n_new"]) == (n_base, n_class - n_base)


def test_base_to_new_refuses_a_single_class(tmp_path):
    toy_cache(tmp_path, n_class=1)
    with pytest.raises(SpecError, match="text features of two classes or more; toy lacks them"):
        base_to_new(folder=tmp_path)


def test_a_run_that_diverged_has_no_accuracies(hard):
    (row,) = base_to_new(folder=hard, shots=1, hyper={"lr": 1e30}, device="cpu")
    assert row["diverged"] is True
    assert (row["base_top1"], row["new_top1"], row["harmonic"]) == (None, None, None)
    assert 0 < row["zero_shot_harmonic"] < 1


def test_scores_elsewhere_are_those_of_a_plain_loop_over_the_shared_classes(tmp_path):
    toy_cache(tmp_path, dataset="source", classnames=["ant", "bee", "cat", "dog", "emu"], noise=2.0)
    few = {"n_class": 3, "noise": 2.0, "n": (24, 8, 40)}
    toy_cache(tmp_path, dataset="there", classnames=["dog", "ant", "bee"], **few)
    toy_cache(tmp_path, dataset="unknown", classnames=["dog", "ant", "bug"], **few)
    asked = {"folder": tmp_path, "dataset": "source", "device": "cpu", "shots": 4}
    hyper = {"alpha": 0.6, "epochs": 20}
    asked |= {"hyper": hyper}
    result, _, (row, unknown) = train_and_test_on(["there", "unknown"], **asked)
    target, source = find_cache_of(tmp_path, "there"), find_cache_of(tmp_path, "source")
    x, labels = target.split("test").rows(), target.split("test").y.tolist()
    scores = clip_adapter_by_hand(x, source.text, result.classifier, 0.6)[:, [3, 0, 1]]
    assert row["top1"] == pytest.approx(share_right(scores, labels))
    assert row["mean_class"] == pytest.approx(mean_of_classes(scores, labels))
    assert row["nll"] == pytest.approx(mean_loss(20.0 * scores, labels), rel=1e-4)
    zero_shot = share_right(zero_shot_by_hand(x, target.text), labels)
    assert row["zero_shot_top1"] == pytest.approx(zero_shot)
    assert (row["test_n_class"], row["test_fingerprint"]) == (3, target.fingerprint)
    assert row["fingerprint"] == source.fingerprint
    assert (row["ece_t"], row["nll_t"]) == (None, None)
    # the source has no class named bug, so that the head is given the target's own texts
    target = find_cache_of(tmp_path, "unknown")
    x, labels = target.split("test").rows(), target.split("test").y.tolist()
    scores = clip_adapter_by_hand(x, target.text, result.classifier, 0.6)
    row = unknown
    assert row["top1"] == pytest.approx(share_right(scores, labels))
    assert row["nll"] == pytest.approx(mean_loss(20.0 * scores, labels), rel=1e-4)


def find_cache_of(folder, dataset):
    return open_cache(next(folder.glob(f"{dataset}/*.h5")))


def test_a_diverged_run_has_no_scores_elsewhere(tmp_path):
    toy_cache(tmp_path, dataset="source")
    toy_cache(tmp_path, dataset="there", noise=0.9)
    asked = {"folder": tmp_path, "dataset": "source", "shots": 1, "hyper": {"lr": 1e30}}
    _, _, (row,) = train_and_test_on(["there"], **asked, device="cpu")
    assert row["diverged"] is True
    assert [row[name] for name in ("top1", "nll", "ece", "reliability")] == [None] * 4
    assert row["zero_shot_top1"] > 0.2


@pytest.mark.parametrize(
    "a, b, mean",
    [(0.5, 1.0, 2 / 3), (0.8, 0.2, 0.32), (1.0, 1.0, 1.0), (0.0, 0.7, 0.0), (0.7, 0.0, 0.0)],
)
def test_the_harmonic_mean_is_as_written_here(a, b, mean):
    assert harmonic(a, b) == pytest.approx(mean)
    assert harmonic(a, None) is None

"""`predict --sets`: sets of classes, as large as the run's own images needed."""

import json

import pytest
import torch

from cliad.pipelines.runs.sets import (
    PERCENTS,
    SetsError,
    is_thresholds,
    meaning,
    set_size,
    threshold_at,
    thresholds_of,
)

SCORES = [number / 100 for number in range(1, 100)]  # 0.01 to 0.99: n = 99, n + 1 = 100


@pytest.mark.parametrize("share, threshold", [(0.5, 0.5), (0.9, 0.9), (0.99, 0.99)])
def test_the_threshold_is_the_score_of_that_place(share, threshold):
    assert threshold_at(thresholds_of(SCORES), share) == threshold


def test_too_few_images_for_a_share_take_all_classes():
    # ceil(0.9 * 9) = 9 > 8 images; ceil(0.8 * 9) = 8
    eight = [0.1] * 8
    assert threshold_at(thresholds_of(eight), 0.9) == 1.0
    assert threshold_at(thresholds_of(eight), 0.8) == 0.1
    assert thresholds_of([]) == [1.0] * len(PERCENTS)


def test_sets_cover_their_share_of_images_that_are_drawn_alike():
    """By simulation: scores of 200 images set the threshold, 2,000 others are judged by it."""
    generator = torch.Generator().manual_seed(0)
    covered = []
    for _ in range(40):
        own = torch.rand(200, generator=generator).sort().values.tolist()
        others = torch.rand(2000, generator=generator)
        covered.append((others <= threshold_at(thresholds_of(own), 0.9)).float().mean().item())
    # the mean over draws is between 0.9 and 0.9 + 1 / 201
    assert sum(covered) / 40 == pytest.approx(0.9, abs=0.015)


@pytest.mark.parametrize(
    "probabilities, threshold, size",
    [
        ([0.7, 0.2, 0.1], 0.3, 1),
        ([0.7, 0.2, 0.1], 0.8, 2),
        ([0.7, 0.2, 0.1], 1.0, 3),
        ([0.4, 0.35, 0.25], 0.1, 1),  # never empty
    ],
)
def test_a_set_has_the_classes_below_the_threshold_and_at_least_one(probabilities, threshold, size):
    assert set_size(probabilities, threshold) == size


@pytest.mark.parametrize("share", [0.0, 0.49, 1.0, 0.905, float("nan"), float("inf"), -1])
def test_other_shares_are_refused(share):
    with pytest.raises(SetsError, match=r"0.50 to 0.99 in steps of 0.01"):
        threshold_at(thresholds_of(SCORES), share)


def test_a_run_without_out_of_fold_scores_says_how_to_get_them():
    with pytest.raises(SetsError, match="--select cv, or --head auto"):
        threshold_at(None, 0.9)


def test_what_run_json_may_hold():
    good = thresholds_of(SCORES)
    assert is_thresholds(good) and is_thresholds(None)
    for bad in (good[:-1], good[::-1], [2.0] * 50, ["a"] * 50, [True] * 50, {}, 0.9):
        assert not is_thresholds(bad)


def test_nothing_is_promised():
    assert "guarantee" not in meaning(0.9) and "90 % of your own labelled images" in meaning(0.9)
    assert json.dumps(thresholds_of(SCORES))

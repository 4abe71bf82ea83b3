"""Folds of a support: who is judged by whom."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from worlds import N_CLASS, World, without

from cliad.adapters.core.classifier import validation
from cliad.adapters.core.fit import fit
from cliad.adapters.core.folds import (
    NO_FOLD,
    class_folds,
    class_halves,
    classes_with_images,
    folds_of,
    item_folds,
    n_fold_of,
)
from cliad.adapters.reg_linear import RegLinear
from cliad.adapters.zero_shot import ZeroShot

WORLD = World(n_class=7)


@pytest.mark.parametrize("shots, n_fold", [(1, 1), (2, 2), (3, 3), (4, 4), (16, 4)])
def test_there_are_as_many_folds_as_shots_and_at_most_four(shots, n_fold):
    assert n_fold_of(WORLD.episode(shots)) == n_fold


def test_uneven_classes_have_the_folds_of_their_mean():
    episode = WORLD.episode(4)
    first = (episode.y == 0).nonzero()[:, 0]
    keep = torch.ones(len(episode.y), dtype=torch.bool)
    keep[first[1:]] = False  # class 0 keeps one image of four
    assert n_fold_of(replace(episode, index=episode.index[keep], y=episode.y[keep])) == 3


@pytest.mark.parametrize("counts", [[4, 4, 4], [5, 3, 4], [16, 1, 2], [1, 1, 9]])
def test_each_class_is_spread_evenly_and_an_only_image_is_never_left_out(counts):
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    folds = folds_of(y, 4, seed=3)
    for label, count in enumerate(counts):
        of_class = folds[y == label]
        if count == 1:
            assert of_class.tolist() == [NO_FOLD]
            continue
        sizes = torch.bincount(of_class, minlength=4)
        assert sizes.sum() == count and sizes.max() - sizes.min() <= 1


def test_folds_follow_from_the_seed_and_differ_between_seeds():
    y = torch.arange(40) % 5
    assert torch.equal(folds_of(y, 4, 1), folds_of(y, 4, 1))
    assert not torch.equal(folds_of(y, 4, 1), folds_of(y, 4, 2))


def test_an_item_is_judged_once_by_what_had_not_seen_it():
    episode = WORLD.episode(6)
    judged = []
    for trial in item_folds(episode, 3):
        fitted_on = set(trial.fitted_on.index.tolist())
        held_out = trial.judged_on.val_index.tolist()
        assert not fitted_on & set(held_out)
        assert fitted_on | set(held_out) == set(episode.index.tolist())
        assert torch.equal(trial.judged_on.val_y, WORLD.labels[trial.judged_on.val_index])
        judged += held_out
    assert sorted(judged) == sorted(episode.index.tolist())


def test_halves_of_classes_are_disjoint_and_all_of_them():
    first, second = class_halves(7)
    assert sorted(first.tolist() + second.tolist()) == list(range(7))
    assert abs(len(first) - len(second)) == 1


def test_classes_not_seen_are_judged_among_themselves():
    """Zero-shot has no parameters: its logits are those of the texts of the unseen half."""
    episode = WORLD.episode(1)
    ((first, second),) = class_folds([episode])
    halves = class_halves(7)
    for trial, unseen in ((first, halves[1]), (second, halves[0])):
        assert not set(trial.fitted_on.index.tolist()) & set(trial.judged_on.val_index.tolist())
        (classifier,) = fit([(ZeroShot(), trial.fitted_on)])
        judged = trial.judge(classifier)
        x, y = validation(ZeroShot(), judged.episode)
        text = F.normalize(F.normalize(WORLD.text, dim=-1).mean(dim=0), dim=-1)[unseen]
        expected = 20 * F.normalize(x, dim=-1) @ text.T
        torch.testing.assert_close(judged.classifier.logits(x), expected)
        assert torch.equal(unseen[y], WORLD.labels[judged.episode.val_index])


def test_runs_share_the_texts_of_their_halves_so_that_they_train_together():
    runs = class_folds([WORLD.episode(1, seed) for seed in (1, 2)])
    first = [run[0].fitted_on for run in runs]
    assert first[0].text is first[1].text
    assert len(fit([(RegLinear(steps=2), episode) for episode in first])) == 2


def test_halves_need_texts():
    with pytest.raises(ValueError, match="expected class texts"):
        class_folds([replace(WORLD.episode(1), text=None)])
    assert N_CLASS >= 4


def test_an_image_that_counts_twice_is_in_one_fold():
    episode = WORLD.episode(4)
    twice = replace(
        episode, index=episode.index.repeat(2), y=episode.y.repeat(2), seed=episode.seed
    )
    assert n_fold_of(twice) == 4
    for trial in item_folds(twice, 4):
        held_out = set(trial.judged_on.val_index.tolist())
        assert not held_out & set(trial.fitted_on.index.tolist())
        assert len(trial.judged_on.val_index) == 2 * len(held_out)


@pytest.mark.parametrize("shots, n_fold", [(1, 1), (2, 2), (3, 3)])
def test_a_class_that_only_texts_know_has_no_say_in_the_folds(shots, n_fold):
    episode = WORLD.episode(shots)
    absent = (episode.y > 3).nonzero()[:, 0].tolist()
    assert n_fold_of(without(episode, *absent)) == n_fold


def test_halves_are_of_classes_that_have_images_in_all_episodes():
    first = without(WORLD.episode(1), 0)
    second = without(WORLD.episode(1, seed=2), 1)
    seen = set(range(7)) - {int(WORLD.episode(1).y[0]), int(WORLD.episode(1, seed=2).y[1])}
    assert set(classes_with_images([first, second]).tolist()) == seen
    for one, other in class_folds([first, second]):
        halves = (
            set(WORLD.labels[one.fitted_on.index].tolist()),
            set(WORLD.labels[other.fitted_on.index].tolist()),
        )
        assert halves[0] | halves[1] == seen and not halves[0] & halves[1]

"""Folds of a support: each item is judged by a classifier that was fitted without it.

No validation image is needed. An episode of a fold has the other items as its support, and the
fold's own as validation, so that all that works on validation works on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from cliad.adapters.core.classifier import Classifier
from cliad.adapters.core.episode import Episode, Support, of_classes, without_validation

MOST_FOLDS = 4
FEWEST_CLASSES = 4  # that can be cut in halves
NO_FOLD = -1  # of an item that is in the support of every fold


class Trial(NamedTuple):
    """Where a classifier is fitted, and on whose validation items it is judged."""

    fitted_on: Episode
    judged_on: Episode

    def judge(self, classifier: Classifier) -> Judged:
        """What was fitted, with the items that it is judged on."""
        text = self.judged_on.text
        if text is not None and text is not self.fitted_on.text:
            # their texts alone: their images are those that it is judged on
            unseen = self.judged_on
            classes = Support.of_text(text, classifier.logit_scale, unseen.names, unseen.tower)
            classifier = classifier.rebind(classes)
        return Judged(classifier, self.judged_on)


class Judged(NamedTuple):
    """A classifier, and the episode on whose validation items it is judged."""

    classifier: Classifier
    episode: Episode


def images_per_class(episode: Episode) -> int:
    """The mean number of a class's images, rounded down; an image that counts twice is one.

    Classes without images, which only texts know, do not count.
    """
    return len(episode.index.unique()) // max(len(episode.y.unique()), 1)


def n_fold_of(episode: Episode) -> int:
    """How many folds a support allows: as many as a class has images, at most MOST_FOLDS.

    Below 2 there are none: a class of one image cannot be judged by its other images.
    """
    return min(images_per_class(episode), MOST_FOLDS)


def folds_of(y: Tensor, n_fold: int, seed: int) -> Tensor:
    """The fold (n,) of each item, from labels y (n,) on the host; NO_FOLD for an only one.

    Each class is dealt to the folds in an order of its own, beginning with another fold than the
    class before, so that folds of uneven classes differ by little.
    """
    generator = Generator().manual_seed(seed)
    folds = torch.full_like(y, NO_FOLD)
    for number, label in enumerate(y.unique().tolist()):
        items = (y == label).nonzero()[:, 0]
        order = torch.randperm(len(items), generator=generator, device=y.device)
        if len(items) > 1:
            places = torch.arange(len(items), device=y.device)
            folds[items[order]] = (places + number) % n_fold
    return folds


def item_folds(episode: Episode, n_fold: int) -> list[Trial]:
    """The trial of each fold: its items are judged, all others are the support."""
    # An image that counts several times is in one fold: it must not judge itself.
    rows, place = episode.index.unique(return_inverse=True)
    labels = torch.empty_like(rows).scatter_(0, place, episode.y)
    folds = folds_of(labels, n_fold, episode.seed)[place]
    trials = []
    for number in range(n_fold):
        held_out = folds == number
        of_fold = replace(
            episode,
            index=episode.index[~held_out],
            y=episode.y[~held_out],
            val_index=episode.index[held_out],
            val_y=episode.y[held_out],
        )
        trials.append(Trial(of_fold, of_fold))
    return trials


# At one shot no class has a second image. A head that knows no class can be judged all the same:
# by classes that it has not seen.


def class_folds(episodes: Sequence[Episode]) -> list[list[Trial]]:
    """The two trials of each episode, by halves of the classes that have images in all episodes.

    Each is fitted on the items and texts of one half, and judged on those of the other: see
    `Trial.judge`. The episodes are of one group, which share features and texts.

    Raises:
        ValueError: there are no class texts, which name the classes that were not seen.
    """
    first = episodes[0]
    if first.text is None:
        raise ValueError("expected class texts, got an episode without them")
    seen_by_all = classes_with_images(episodes)
    halves = [seen_by_all[half] for half in class_halves(len(seen_by_all))]
    # One tensor for all runs: runs train together where they share their texts.
    texts = [first.text[:, half.to(first.text.device)] for half in halves]
    trials = []
    for episode in episodes:
        parts = [
            without_validation(of_classes(episode, half, text))
            for half, text in zip(halves, texts, strict=True)
        ]
        of_run = []
        for seen, unseen in ((0, 1), (1, 0)):
            judged_on = replace(parts[unseen], val_index=parts[unseen].index, val_y=parts[unseen].y)
            of_run.append(Trial(fitted_on=parts[seen], judged_on=judged_on))
        trials.append(of_run)
    return trials


def classes_with_images(episodes: Sequence[Episode]) -> Tensor:
    """The classes (k,), ascending, that have an image in every episode."""
    seen = episodes[0].y.new_zeros(episodes[0].n_class)
    for episode in episodes:
        seen[episode.y.unique()] += 1
    return (seen == len(episodes)).nonzero()[:, 0]


def class_halves(n_class: int) -> tuple[Tensor, Tensor]:
    """Two halves of the classes in ascending order, on the host; the same at every call."""
    order = torch.randperm(n_class, generator=Generator().manual_seed(0), device="cpu")
    first, second = order.tensor_split(2)
    return first.sort().values, second.sort().values

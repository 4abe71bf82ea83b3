"""GDA beside the released code's formula in numpy, and its invariants."""

import math
from dataclasses import replace

import numpy as np
import plain
import pytest
import torch
from fitting import WORLD, fitted, zero_shot
from torch.nn import functional as F
from worlds import World, without

from cliad.adapters.core.ops import unit
from cliad.adapters.gda import Gda, gaussians

X = WORLD.test[0]
HARD = World(noise=2.5, n_template=3, missing=[(1, 2)])
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def plain_gda(x, y, n_class):
    """W, b by numpy: class means, covariance of the centred samples, the ridge, pseudo-inverse.

    A class without samples has the mean of all.
    """
    x = x.double().numpy()
    y = y.numpy()
    means = []
    for class_ in range(n_class):
        own = x[y == class_]
        means.append(own.mean(axis=0) if len(own) else x.mean(axis=0))
    means = np.stack(means)
    centred = x - means[y]
    if not centred.any():  # one sample to a class: the covariance about the mean of all
        centred = x - x.mean(axis=0)
    covariance = centred.T @ centred / (len(x) - 1)
    ridged = (len(x) - 1) * covariance + np.trace(covariance) * np.eye(x.shape[1])
    precision = x.shape[1] * np.linalg.pinv(ridged)
    weights = []
    biases = []
    for mean in means:
        weights.append(precision @ mean)
        biases.append(math.log(1 / n_class) - mean @ precision @ mean / 2)
    return torch.tensor(np.stack(weights)), torch.tensor(biases)


def assert_gda_is(episode, x, y, alpha=0.5):
    """The head's logits are zero-shot's plus alpha times those of the samples' Gaussians."""
    w, b = plain_gda(x, y, episode.n_class)
    query = F.normalize(X.double(), dim=1)
    text = plain.class_text(episode.text)
    expected = 20.0 * query @ text.T + alpha * (query @ w.T + b)
    got = fitted(Gda(alpha=alpha), episode).logits(X)
    torch.testing.assert_close(got.double(), expected, **CLOSE)


@pytest.mark.parametrize("shots", [1, 2, 4, 16])
def test_gda_is_its_formula(shots):
    episode = HARD.episode(shots, seed=7)
    assert_gda_is(episode, unit(episode.features[episode.index]), episode.y)


def test_uneven_classes_have_their_own_means_and_even_priors():
    episode = without(HARD.episode(4), 0, 1, 2, 9)
    assert_gda_is(episode, unit(episode.features[episode.index]), episode.y)


def test_a_class_without_samples_has_the_mean_of_all():
    episode = without(HARD.episode(4), 1, 8, 9, 10, 11)  # all items of class 2
    assert_gda_is(episode, unit(episode.features[episode.index]), episode.y)


def test_every_view_is_a_sample():
    world = World(noise=2.5, n_view=3)
    episode = without(world.episode(2), 3)
    x = unit(world.views[:, episode.index]).flatten(0, 1)
    assert_gda_is(episode, x, episode.y.repeat(3))


def test_a_shift_of_all_features_moves_no_prediction():
    g = torch.Generator().manual_seed(0)
    y = torch.arange(40) % 5
    shift = torch.randn(16, generator=g)
    x = torch.randn(40, 16, generator=g) + torch.eye(5, 16)[y] * 3
    query = torch.randn(30, 16, generator=g)
    w, b = gaussians(x, y, 5)
    w2, b2 = gaussians(x + shift, y, 5)
    before = (query @ w.T + b).argmax(dim=1)
    after = ((query + shift) @ w2.T + b2).argmax(dim=1)
    assert torch.equal(before, after)


def test_few_samples_in_many_dimensions_are_solved():
    g = torch.Generator().manual_seed(0)
    x = unit(torch.randn(10, 64, generator=g))
    y = torch.arange(10) % 5
    w, b = gaussians(x, y, 5)
    w2, b2 = plain_gda(x, y, 5)
    torch.testing.assert_close(w.double(), w2, **CLOSE)
    torch.testing.assert_close(b.double(), b2, **CLOSE)


def test_one_view_and_one_shot_do_not_fall_back_to_zero_shot():
    classifier = fitted(Gda(), WORLD.episode(1))
    assert classifier.c["w"].abs().max() > 0 and torch.isfinite(classifier.logits(X)).all()
    assert torch.equal(fitted(Gda(alpha=0.0), WORLD.episode(1)).logits(X), zero_shot())
    assert replace(classifier, head=Gda(alpha=1e-4)).logits(X).isfinite().all()

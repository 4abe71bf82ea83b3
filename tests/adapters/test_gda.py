"""GDA beside the released code's formula in numpy, and its invariants."""

import math
from dataclasses import replace

import numpy as np
import plain
import pytest
import torch
from fitting import WORLD, fitted, zero_shot
from scipy.stats import multivariate_normal
from torch.nn import functional as F
from worlds import World, without

from cliad.adapters.core.classifier import logits_of
from cliad.adapters.core.ops import unit
from cliad.adapters.core.select import fit_all
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


@pytest.mark.parametrize("shots", [1, 2, 4, 16])
def test_at_the_natural_scale_logits_are_log_likelihood_ratios(shots):
    """scipy's Gaussians: their covariance is the scatter by its degrees of freedom, and a ridge."""
    episode = HARD.episode(shots, seed=7)
    x = unit(episode.features[episode.index]).double().numpy()
    y = episode.y.numpy()
    n = len(x)
    means = np.stack([x[y == class_].mean(axis=0) for class_ in range(5)])
    within = x - (means[y] if shots > 1 else x.mean(axis=0))
    dof = n - 5 if shots > 1 else n - 1
    scatter = within.T @ within
    covariance = (scatter + np.trace(scatter) / (n - 1) * np.eye(16)) / dof
    query = F.normalize(X.double(), dim=1)
    log_p = np.stack([multivariate_normal(mean, covariance).logpdf(query) for mean in means], 1)
    without_text = fitted(Gda(), replace(episode, text=None)).logits(X).double().numpy()
    with_text = fitted(Gda(), episode).logits(X).double().numpy()
    zero = 20 * (query @ plain.class_text(episode.text).T).numpy()
    for found, expected in ((without_text, log_p), (with_text, log_p + zero)):
        found = found - found[:, :1]
        np.testing.assert_allclose(found, expected - expected[:, :1], rtol=1e-3, atol=2e-3)


def test_a_number_for_alpha_and_the_natural_scale_share_a_batch():
    episode = HARD.episode(4)
    natural, one = fit_all([(Gda(), episode), (Gda(alpha=1.0), episode)])
    # 20 items of 5 classes in 16 dimensions
    same = fitted(Gda(alpha=15 / 16), episode).logits(X)
    torch.testing.assert_close(natural.logits(X), same, **CLOSE)
    torch.testing.assert_close(one.logits(X), fitted(Gda(alpha=1.0), episode).logits(X), **CLOSE)
    torch.testing.assert_close(logits_of([natural, one], X)[0], same, **CLOSE)


def test_a_class_without_samples_takes_no_degree_of_freedom():
    episode = without(HARD.episode(4), 1, 8, 9, 10, 11)  # 15 items of 4 classes
    same = fitted(Gda(alpha=11 / 16), episode).logits(X)
    torch.testing.assert_close(fitted(Gda(), episode).logits(X), same, **CLOSE)


def test_a_run_saved_before_there_was_a_natural_weight_means_what_it_meant():
    classifier = fitted(Gda(alpha=1.0), HARD.episode(4))
    older = {name: value for name, value in classifier.c.items() if name != "natural"}
    assert torch.equal(replace(classifier, c=older).logits(X), classifier.logits(X))

"""GDA beside the released code's formula, and its invariants."""

import math
from dataclasses import replace

import numpy as np
import torch
from test_heads import WORLD, fitted, zero_shot
from worlds import World

from cliad.adapters.base import unit
from cliad.adapters.gda import Gda, gaussians

X = WORLD.test[0]


def plain_gda(x, y, n_class):
    """W, b by numpy: class means, covariance of the centred samples, Kubokawa-Srivastava's ridge, pseudo-inverse."""
    x, y = x.double().numpy(), y.numpy()
    mean = np.stack([x[y == k].mean(axis=0) for k in range(n_class)])
    centred = x - mean[y]
    s = np.cov(centred.T)
    precision = x.shape[1] * np.linalg.pinv((len(x) - 1) * s + np.trace(s) * np.eye(x.shape[1]))
    w = mean @ precision
    return torch.tensor(w).float(), torch.tensor(math.log(1 / n_class) - (w * mean).sum(axis=1) / 2).float()


def test_gda_is_its_formula():
    episode = WORLD.episode(4)
    x = unit(episode.features[episode.index])
    w, b = plain_gda(x, episode.y, 5)
    got = fitted(Gda(alpha=0.5), episode).logits(X)
    torch.testing.assert_close(got, zero_shot() + 0.5 * (unit(X) @ w.T + b), rtol=1e-3, atol=1e-3)


def test_every_view_is_a_sample():
    world = World(n_view=3)
    episode = world.episode(1)
    x, y = unit(world.views[:, episode.index]).flatten(0, 1), episode.y.repeat(3)
    w, b = plain_gda(x, y, 5)
    classifier = fitted(Gda(), episode)
    torch.testing.assert_close(classifier.c["w"][0], w, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(classifier.c["b"][0], b, rtol=1e-3, atol=1e-3)


def test_a_shift_of_all_features_moves_no_prediction():
    g = torch.Generator().manual_seed(0)
    y, shift = torch.arange(40) % 5, torch.randn(16, generator=g)
    x, query = torch.randn(40, 16, generator=g) + torch.eye(5, 16)[y] * 3, torch.randn(30, 16, generator=g)
    (w, b), (w2, b2) = gaussians(x, y, 5), gaussians(x + shift, y, 5)
    assert torch.equal((query @ w.T + b).argmax(dim=1), ((query + shift) @ w2.T + b2).argmax(dim=1))


def test_few_samples_in_many_dimensions_are_solved():
    g = torch.Generator().manual_seed(0)
    x, y = unit(torch.randn(10, 64, generator=g)), torch.arange(10) % 5
    w, b = gaussians(x, y, 5)
    w2, b2 = plain_gda(x, y, 5)
    torch.testing.assert_close(w, w2, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(b, b2, rtol=1e-3, atol=1e-3)


def test_one_view_and_one_shot_still_says_something():
    classifier = fitted(Gda(), WORLD.episode(1))
    assert classifier.c["w"].abs().max() > 0 and torch.isfinite(classifier.logits(X)).all()
    assert torch.equal(fitted(Gda(alpha=0.0), WORLD.episode(1)).logits(X), zero_shot())
    assert replace(classifier, head=Gda(alpha=1e-4)).logits(X).isfinite().all()

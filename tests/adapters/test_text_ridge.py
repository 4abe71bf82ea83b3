"""text-ridge beside numpy's least squares, and for other classes."""

from dataclasses import replace

import numpy as np
import plain
import pytest
import torch
from fitting import fitted
from torch.nn import functional as F
from worlds import World, without

from cliad.adapters.core.classifier import inputs
from cliad.adapters.core.episode import Support, stack
from cliad.adapters.core.head import hypers
from cliad.adapters.core.ops import unit
from cliad.adapters.text_ridge import TextRidge

HARD = World(noise=2.5, n_template=3, missing=[(1, 2)])
X = HARD.test[0]
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def least_squares(episode, text, ridge):
    """Logits for classes of raw text, by numpy: |Z M - Tc[y]|^2 + r |M|^2 as one least squares."""
    x = unit(episode.features[episode.index]).double().numpy()
    own_text = plain.class_text(episode.text).numpy()
    target = (own_text - own_text.mean(axis=0))[episode.y.numpy()]
    mean = x.mean(axis=0)
    z = x - mean
    dim = x.shape[1]
    r = ridge * np.square(z).sum() / dim
    rows = np.concatenate([z, np.sqrt(r) * np.eye(dim)])
    targets = np.concatenate([target, np.zeros((dim, dim))])
    learned, *_ = np.linalg.lstsq(rows, targets, rcond=None)
    asked = plain.class_text(text).numpy()
    centred = asked - asked.mean(axis=0)
    query = F.normalize(X.double(), dim=1).numpy()
    return (query - mean) @ learned @ centred.T / np.square(centred).sum(axis=1).mean()


def episodes():
    four = HARD.episode(4, seed=7)
    return [
        HARD.episode(1, seed=7),
        HARD.episode(16, seed=7),
        without(four, 0, 1, 2, 9),
        without(four, 0, 1, 2, 3),
    ]


@pytest.mark.parametrize("ridge", [0.3, 3.0])
@pytest.mark.parametrize("episode", episodes(), ids=["one shot", "16 shots", "uneven", "none"])
def test_the_map_is_that_of_least_squares(episode, ridge):
    found = fitted(TextRidge(ridge=ridge), episode).logits(X).double().numpy()
    np.testing.assert_allclose(found, least_squares(episode, episode.text, ridge), **CLOSE)


def test_it_serves_other_classes_by_their_texts():
    episode = HARD.episode(4)
    classifier = fitted(TextRidge(), episode)
    text = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(3))
    found = classifier.rebind(Support.of_text(text, 20.0)).logits(X).double().numpy()
    np.testing.assert_allclose(found, least_squares(episode, text, 0.3), **CLOSE)
    same = classifier.rebind(Support.of_text(episode.text, 20.0)).logits(X)
    assert torch.equal(same, classifier.logits(X))


def test_one_class_has_logits_of_zero():
    one = Support.of_text(HARD.text[:, :1], 20.0)
    classifier = fitted(TextRidge(), HARD.episode(4)).rebind(one)
    assert torch.equal(classifier.logits(X), torch.zeros(len(X), 1))


def test_a_padded_run_of_another_ridge_is_solved_as_if_it_were_alone():
    long, short = HARD.episode(4), without(HARD.episode(4, seed=3), 0, 1, 9)
    heads = [TextRidge(), TextRidge(ridge=2.0)]
    support, _ = stack([long, short], inputs(heads[0], long))
    h = hypers(heads, support.x)
    together = heads[0].start(heads[0].bind(support, h), h, [])
    for run, (head, episode) in enumerate(zip(heads, (long, short), strict=True)):
        alone = fitted(head, episode)
        for name in ("map", "mean"):
            torch.testing.assert_close(together[name][run], alone.p[name][0], rtol=1e-4, atol=1e-4)


def test_items_that_are_all_one_point_give_finite_logits():
    episode = HARD.episode(4)
    same = replace(episode, features=HARD.features[:1].expand_as(episode.features))
    logits = fitted(TextRidge(), same).logits(X)
    # What they have in common says nothing of classes, and its rounding is not made large.
    assert torch.equal(logits, torch.zeros_like(logits))

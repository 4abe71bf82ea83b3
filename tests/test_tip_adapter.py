"""Tip-Adapter, Tip-Adapter-F, APE: identities of METHODS-style caches, and plain loops beside the vectorised code."""

import math
from dataclasses import replace

import pytest
import torch
from test_heads import WORLD, at_start, fitted, zero_shot
from worlds import World

from cliad.adapters.ape import Ape, channels
from cliad.adapters.base import class_weights, unit
from cliad.adapters.keys import slots
from cliad.adapters.select import fit_selected
from cliad.adapters.tip_adapter import TipAdapter
from cliad.adapters.tip_adapter_f import TipAdapterF

X, Y = WORLD.test[0], WORLD.test[2]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def plain_tip(episode, x, alpha, beta, keys=None):
    """logits = s f T^T + alpha exp(-beta (1 - f F^T)) L, an image and a key at a time."""
    keys = unit(episode.features[episode.index]) if keys is None else keys
    logits = episode.logit_scale * unit(x) @ class_weights(episode.text).T
    for i, f in enumerate(unit(x)):
        for key, label in zip(keys, episode.y.tolist(), strict=True):
            logits[i, label] += alpha * math.exp(-beta * (1 - float(f @ key)))
    return logits


def test_tip_is_its_formula():
    episode = WORLD.episode(3)
    got = fitted(TipAdapter(alpha=2.0, beta=4.0), episode).logits(X[:9])
    torch.testing.assert_close(got, plain_tip(episode, X[:9], 2.0, 4.0), **CLOSE)


def test_a_key_is_the_unit_mean_of_the_raw_views():
    world = World(n_view=3)
    episode = world.episode(2)
    keys = unit(world.views[:, episode.index].mean(dim=0))
    got = fitted(TipAdapter(alpha=2.0, beta=4.0), episode).logits(X[:5])
    torch.testing.assert_close(got, plain_tip(episode, X[:5], 2.0, 4.0, keys), **CLOSE)


def test_the_order_of_the_support_is_free():
    episode = WORLD.episode(4)
    order = torch.randperm(len(episode.y), generator=torch.Generator().manual_seed(0))
    other = replace(episode, index=episode.index[order], y=episode.y[order])
    torch.testing.assert_close(fitted(TipAdapter(), episode).logits(X), fitted(TipAdapter(), other).logits(X), **CLOSE)


def test_a_sharp_cache_is_the_nearest_key():
    episode = WORLD.episode(4)
    sharp = fitted(TipAdapter(alpha=1000.0, beta=1000.0), replace(episode, text=torch.zeros_like(episode.text)))
    nearest = episode.y[(unit(X) @ unit(episode.features[episode.index]).T).argmax(dim=1)]
    reached = sharp.logits(X).amax(dim=1) > 0  # where all keys are far the cache is silent
    assert reached.any() and (sharp.logits(X).argmax(dim=1) == nearest)[reached].all()


def test_tip_f_before_its_first_step_is_tip_and_learns_its_keys():
    episode = WORLD.episode(4)
    tip = fitted(TipAdapter(alpha=2.0, beta=3.0), episode)
    torch.testing.assert_close(at_start(TipAdapterF(alpha=2.0, beta=3.0), episode, unit(X)), tip.logits(X), **CLOSE)
    trained = fitted(TipAdapterF(alpha=2.0, beta=3.0), episode)
    assert sum(value.numel() for value in trained.p.values()) == len(episode.y) * X.shape[1]
    assert not torch.allclose(trained.logits(X), tip.logits(X))


@pytest.mark.parametrize("head", [TipAdapter, TipAdapterF, Ape])
def test_the_search_finds_what_one_by_one_finds(head):
    """All candidates at once along the run axis score as each alone; of equally many right the lowest loss wins."""
    episode = WORLD.episode(2)
    (found,) = fit_selected([(head(), episode)])
    x, y = episode.val
    score = lambda h: (lambda z: ((z.argmax(1) == y).sum().item(), -torch.nn.functional.cross_entropy(z, y).item()))(
        replace(found, head=h).logits(x)
    )
    best = score(found.head)
    others = [replace(found.head, alpha=alpha, beta=beta) for alpha in (0.1, 1.0, 10.0, 50.0) for beta in (0.5, 5.5, 20.0, 50.0)]
    assert all(score(other) <= (best[0], best[1] + 1e-5) for other in others)


def test_slots_hold_every_item_once():
    y, mask = torch.tensor([[2, 0, 2, 0, 0], [1, 1, 2, 0, 0]]), torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    at, value = slots(y, mask, 4)
    assert at.shape == (2, 4, 3)
    held = [[sorted(at[r, c][value[r, c] > 0].tolist()) for c in range(4)] for r in range(2)]
    assert held == [[[1, 3, 4], [], [0, 2], []], [[], [0, 1], [2], []]]


def test_ape_with_all_channels_and_no_gamma_is_tip():
    episode = WORLD.episode(4)
    ape = fitted(Ape(share=1.0, gamma=0.0, alpha=2.0, beta=4.0), episode)
    torch.testing.assert_close(ape.logits(X), fitted(TipAdapter(alpha=2.0, beta=4.0), episode).logits(X), **CLOSE)


def test_ape_is_its_formula():
    episode = WORLD.episode(3)
    text, keys = class_weights(episode.text), unit(episode.features[episode.index])
    samples = [(t, k) for k, t in enumerate(text)] + list(zip(keys, episode.y.tolist(), strict=True))
    similarity, pairs = torch.zeros(X.shape[1]), 0
    for a, k in samples:  # the four loops of the released code
        for b, j in samples:
            if k != j:
                similarity, pairs = similarity + a * b, pairs + 1
    score = -0.6 * similarity / pairs + 0.4 * text.var(dim=0)
    kept = score.topk(8).indices
    f, k, t = (unit(part[:, kept]) for part in (X[:7], keys, text))
    p = (k @ t.T).softmax(dim=1)[torch.arange(len(k)), episode.y]
    weight = (0.5 * torch.log2((1 + 1e-6) / (p + 1e-6))).exp()
    cache = (-(4.0 * (1 - f @ k.T))).exp() @ (weight[:, None] * torch.nn.functional.one_hot(episode.y, 5).float())
    got = fitted(Ape(share=0.5, w=0.6, gamma=0.5, alpha=2.0, beta=4.0), episode).logits(X[:7])
    torch.testing.assert_close(got, zero_shot()[:7] + 2.0 * cache, **CLOSE)


def test_channels_keep_the_share_asked():
    g = torch.Generator().manual_seed(0)
    text, keys = torch.randn(5, 16, generator=g), torch.randn(2, 5, 3, 16, generator=g)
    kept = channels(text, keys, torch.ones(2, 5, 3), torch.tensor([0.25, 1.0]), torch.tensor([0.5, 0.5]))
    assert kept.sum(dim=1).tolist() == [4, 16]

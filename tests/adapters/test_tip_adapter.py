"""Tip-Adapter, Tip-Adapter-F, APE: identities of their caches, and plain loops beside the code."""

import itertools
import math
from dataclasses import replace

import numpy as np
import plain
import pytest
import torch
from fitting import WORLD, at_start, fitted
from plain import assert_moved_alike
from torch import nn
from torch.nn import functional as F
from worlds import World, without

from cliad.adapters.ape import Ape, channels
from cliad.adapters.core.head import hypers
from cliad.adapters.core.keys import slots
from cliad.adapters.core.ops import unit
from cliad.adapters.core.select import fit_selected
from cliad.adapters.tip_adapter import TipAdapter
from cliad.adapters.tip_adapter_f import TipAdapterF

X = WORLD.test[0]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
HARD = World(noise=2.5, n_template=3, missing=[(1, 2)])
HARD_VIEWS = World(noise=2.5, n_template=3, n_view=3, missing=[(1, 2)])
SCALE = 20.0


def plain_keys(episode):
    """A unit row to an item: its feature, or the mean of its raw views."""
    if episode.views is None:
        return plain.unit_support(episode)
    views = episode.views[:, episode.index].double()
    return F.normalize(views.mean(dim=0), dim=1)


def plain_tip(episode, x, alpha, beta):
    """logits = s f T^T + alpha exp(-beta (1 - f F^T)) L, an image and a key at a time."""
    queries = F.normalize(x.double(), dim=1)
    logits = SCALE * queries @ plain.class_text(episode.text).T
    for i, query in enumerate(queries):
        for key, label in zip(plain_keys(episode), episode.y.tolist(), strict=True):
            logits[i, label] += alpha * math.exp(-beta * (1 - float(query @ key)))
    return logits


@pytest.mark.parametrize("world", [HARD, HARD_VIEWS], ids=["plain", "views"])
def test_tip_is_its_formula(world):
    """A key is the unit mean of the raw views where there are any; the classes are uneven."""
    episode = without(world.episode(3, seed=7), 0, 1, 5)
    got = fitted(TipAdapter(alpha=2.0, beta=4.0), episode).logits(X[:9])
    torch.testing.assert_close(got.double(), plain_tip(episode, X[:9], 2.0, 4.0), **CLOSE)


def test_the_order_of_the_support_does_not_matter():
    episode = WORLD.episode(4)
    order = torch.randperm(len(episode.y), generator=torch.Generator().manual_seed(0))
    other = replace(episode, index=episode.index[order], y=episode.y[order])
    one = fitted(TipAdapter(), episode).logits(X)
    torch.testing.assert_close(one, fitted(TipAdapter(), other).logits(X), **CLOSE)


def test_a_sharp_cache_is_the_nearest_key():
    episode = replace(WORLD.episode(4), text=torch.zeros_like(WORLD.text))
    logits = fitted(TipAdapter(alpha=1000.0, beta=1000.0), episode).logits(X)
    nearest = episode.y[(unit(X) @ unit(episode.features[episode.index]).T).argmax(dim=1)]
    reached = logits.amax(dim=1) > 0  # where all keys are far the cache is silent
    assert reached.any()
    assert (logits.argmax(dim=1) == nearest)[reached].all()


def test_tip_f_before_its_first_step_is_tip_and_learns_its_keys():
    episode = WORLD.episode(4)
    tip = fitted(TipAdapter(alpha=2.0, beta=3.0), episode).logits(X)
    start = at_start(TipAdapterF(alpha=2.0, beta=3.0), episode, unit(X))
    torch.testing.assert_close(start, tip, **CLOSE)
    trained = fitted(TipAdapterF(alpha=2.0, beta=3.0), episode)
    assert sum(value.numel() for value in trained.p.values()) == len(episode.y) * X.shape[1]
    assert not torch.allclose(trained.logits(X), tip)


@pytest.mark.parametrize("seed", [1, 7])
@pytest.mark.parametrize("world", [HARD, HARD_VIEWS], ids=["plain", "views"])
def test_a_loop_of_pytorch_trains_tip_f_alike(world, seed):
    """AdamW with eps 1e-4, cosine per step; keys are not normalised again while they move."""
    episode = without(world.episode(4, seed), 1, 2, 9)
    x = plain.unit_support(episode)
    text = plain.class_text(episode.text)
    start = plain_keys(episode)
    keys = nn.Parameter(start.clone())
    values = F.one_hot(episode.y, 5).double()
    generator = torch.Generator().manual_seed(seed)
    steps = 8 * 3
    if world is HARD:
        batches = [(x[items], items) for items in plain.minibatches(17, 3, steps, generator)]
    else:
        views = F.normalize(episode.views[:, episode.index].double(), dim=2)
        drawn = plain.minibatches_of_views(17, 3, 3, steps, generator)
        batches = [(views[view, items], items) for items, view in drawn]

    def loss(batch):
        queries, items = batch
        near = torch.exp(-3.0 * (1 - queries @ keys.T)) @ values
        return F.cross_entropy(SCALE * queries @ text.T + 2.0 * near, episode.y[items])

    optimiser = torch.optim.AdamW([keys], lr=5e-3, weight_decay=0.5, eps=1e-4)
    plain.train(optimiser, plain.cosine(steps, 5e-3), batches, loss)
    head = TipAdapterF(alpha=2.0, beta=3.0, lr=5e-3, weight_decay=0.5, epochs=8, batch=6)
    classifier = fitted(head, episode)
    filled = classifier.c["values"].flatten() > 0  # a class's empty slots hold no key
    assert_moved_alike(classifier.p["keys"][0, filled], keys, start)
    queries = F.normalize(HARD.test[0].double(), dim=1)
    near = torch.exp(-3.0 * (1 - queries @ keys.detach().T)) @ values
    expected = SCALE * queries @ text.T + 2.0 * near
    torch.testing.assert_close(classifier.logits(HARD.test[0]).double(), expected, **CLOSE)


def right_and_loss(classifier, episode):
    x, y = episode.val
    logits = classifier.logits(x)
    return (logits.argmax(dim=1) == y).sum().item(), F.cross_entropy(logits, y).item()


@pytest.mark.parametrize("head", [TipAdapter, TipAdapterF, Ape])
def test_the_search_finds_what_one_by_one_finds(head):
    """All candidates at once score as each alone; of equally many right the lowest loss wins."""
    episode = HARD.episode(2)
    (found,) = fit_selected([(head(), episode)])
    most, least = right_and_loss(found, episode)
    for alpha in (0.1, 1.0, 5.0, 10.0):
        for beta in (0.5, 5.5, 20.0, 50.0):
            other = replace(found, head=replace(found.head, alpha=alpha, beta=beta))
            right, loss = right_and_loss(other, episode)
            assert right < most or (right == most and loss >= least - 1e-5)


@pytest.mark.parametrize("head", [TipAdapter, TipAdapterF, Ape])
def test_candidates_of_one_beta_come_at_once_and_never_all(head):
    """Each of them has the logits of its own alpha, beta and gamma, as one classifier gives them."""
    classifier = fitted(head(), HARD.episode(2))
    heads = []
    for alpha, beta in itertools.product((0.0, 0.5, 10.0), (0.0, 1.0, 20.0)):
        heads.append(replace(classifier.head, alpha=alpha, beta=beta))
    x = unit(HARD.test[0])
    seen = []
    with torch.no_grad():
        h = hypers(heads, x)
        for part in classifier.head.candidates(classifier.p, classifier.c, h, x[None]):
            assert len(part.logits) == 3
            for run, logits in zip(part.runs.tolist(), part.logits, strict=True):
                alone = replace(classifier, head=heads[run]).logits(x)
                torch.testing.assert_close(logits, alone, **CLOSE)
                seen.append(run)
    assert sorted(seen) == list(range(9))


def test_candidates_of_ape_differ_in_gamma_too():
    classifier = fitted(Ape(), HARD.episode(2))
    heads = [replace(classifier.head, gamma=gamma) for gamma in (0.0, 1.0, 0.0)]
    x = unit(HARD.test[0])
    with torch.no_grad():
        parts = list(
            classifier.head.candidates(classifier.p, classifier.c, hypers(heads, x), x[None])
        )
    assert [part.runs.tolist() for part in parts] == [[0, 2], [1]]
    for part in parts:
        alone = replace(classifier, head=heads[part.runs[0]]).logits(x)
        torch.testing.assert_close(part.logits[0], alone, **CLOSE)


def test_slots_hold_every_item_once():
    y = torch.tensor([[2, 0, 2, 0, 0], [1, 1, 2, 0, 0]])
    mask = torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    at, value = slots(y, mask, 4, n_slot=3)
    assert at.shape == (2, 4, 3)
    expected = [[[1, 3, 4], [], [0, 2], []], [[], [0, 1], [2], []]]
    for run in range(2):
        for class_ in range(4):
            filled = value[run, class_] > 0
            assert at[run, class_][filled].tolist() == expected[run][class_]


def test_ape_with_all_channels_and_no_gamma_is_tip():
    episode = WORLD.episode(4)
    ape = fitted(Ape(share=1.0, gamma=0.0, alpha=2.0, beta=4.0), episode).logits(X)
    tip = fitted(TipAdapter(alpha=2.0, beta=4.0), episode).logits(X)
    torch.testing.assert_close(ape, tip, **CLOSE)


def plain_channels(text, keys, labels, n_channel, w):
    """The four loops of the released code: similarity over all pairs of samples of two classes."""
    samples = [*text, *keys]
    classes = [*range(len(text)), *labels]
    total = np.zeros(text.shape[1])
    pairs = 0
    for one, class_of_one in zip(samples, classes, strict=True):
        for other, class_of_other in zip(samples, classes, strict=True):
            if class_of_one != class_of_other:
                total += one * other
                pairs += 1
    score = -w * total / pairs + (1 - w) * text.var(axis=0, ddof=1)
    return np.argsort(-score)[:n_channel]


def plain_softmax(row):
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def plain_ape(episode, x, *, alpha, beta, gamma, n_channel, w):
    """APE in numpy, an image and a key at a time."""
    text = plain.class_text(episode.text).numpy()
    keys = plain_keys(episode).numpy()
    labels = episode.y.tolist()
    queries = F.normalize(x.double(), dim=1).numpy()
    chosen = plain_channels(text, keys, labels, n_channel, w)

    def cut(rows):
        return rows[:, chosen] / np.linalg.norm(rows[:, chosen], axis=1, keepdims=True)

    short_text, short_keys, short_queries = cut(text), cut(keys), cut(queries)
    logits = SCALE * queries @ text.T
    for i, query in enumerate(short_queries):
        for key, label in zip(short_keys, labels, strict=True):
            onehot = np.eye(len(text))[label]
            probability = plain_softmax(short_text @ key)
            divergence = (onehot * np.log2((onehot + 1e-6) / (probability + 1e-6))).sum()
            say = np.exp(gamma * divergence)
            logits[i, label] += alpha * say * math.exp(-beta * (1 - query @ key))
    return torch.tensor(logits)


@pytest.mark.parametrize("world", [HARD, HARD_VIEWS], ids=["plain", "views"])
@pytest.mark.parametrize("share, n_channel, w", [(0.5, 8, 0.6), (0.6, 10, 0.2), (0.2, 3, 1.0)])
def test_ape_is_its_formula(world, share, n_channel, w):
    """Of 16 channels; 0.6 of them are 9.6 and 0.2 are 3.2, the nearest number counts."""
    episode = without(world.episode(3, seed=7), 0, 1, 5)
    values = {"alpha": 2.0, "beta": 4.0, "gamma": 0.5, "w": w}
    expected = plain_ape(episode, X[:7], n_channel=n_channel, **values)
    got = fitted(Ape(share=share, **values), episode).logits(X[:7])
    torch.testing.assert_close(got.double(), expected, **CLOSE)


def test_ape_chooses_the_channels_that_four_plain_loops_choose():
    """So many w that the scale of both terms shows: a factor on one moves some of the choices."""
    episode = HARD.episode(2, seed=7)
    text = plain.class_text(episode.text)
    keys = plain_keys(episode)
    stacked = keys.view(1, 5, 2, 16)  # the items come class by class
    for w in torch.linspace(0.02, 0.98, 49, dtype=torch.float64):
        chosen = plain_channels(text.numpy(), keys.numpy(), episode.y.tolist(), 8, w.item())
        half = torch.tensor([0.5], dtype=torch.float64)
        kept = channels(text, stacked, torch.ones(1, 5, 2), half, w[None])
        assert kept[0].nonzero().flatten().tolist() == sorted(chosen)


def test_as_many_channels_are_chosen_as_the_share_says():
    g = torch.Generator().manual_seed(0)
    text = torch.randn(5, 16, generator=g)
    keys = torch.randn(2, 5, 3, 16, generator=g)
    share = torch.tensor([0.25, 1.0])
    kept = channels(text, keys, torch.ones(2, 5, 3), share, torch.tensor([0.5, 0.5]))
    assert kept.sum(dim=1).tolist() == [4, 16]

"""Prototypes and Meta-Adapter, whose new classes bring images, against short loops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fitting import fitted
from torch.nn import functional as F
from worlds import World, without

from cliad.adapters.core.classifier import support_of
from cliad.adapters.core.episode import Batch, Support
from cliad.adapters.core.fit import fit
from cliad.adapters.core.head import hypers
from cliad.adapters.meta_adapter import MetaAdapter, affinities, gates
from cliad.adapters.prototype import Prototype

HARD = World(noise=2.5)
X, Y = HARD.test[0], HARD.labels
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def unit_rows(x):
    return x / x.norm(dim=-1, keepdim=True)


def text_of(episode):
    """Unit class weights (n_class, dim) of zero-shot."""
    return unit_rows(unit_rows(episode.text.double()).mean(dim=0))


def keys_of(episode, label):
    """The unit features of a class's images, their unit means over views where there are any."""
    rows = episode.index[episode.y == label]
    if episode.views is None:
        return unit_rows(episode.features[rows].double())
    return unit_rows(episode.views[:, rows].double().mean(dim=0))


def permuted(episode, order):
    """The episode with its items in another order."""
    return replace(episode, index=episode.index[order], y=episode.y[order])


def of_classes(episode, classes):
    """The episode of some classes, in the order in which they are named."""
    rows = [episode.index[episode.y == label] for label in classes]
    labels = [torch.full_like(rows[place], place) for place in range(len(classes))]
    return replace(
        episode,
        index=torch.cat(rows),
        y=torch.cat(labels),
        text=episode.text[:, list(classes)],
        n_class=len(classes),
    )


def uneven():
    """Four, three, two, one and no images of a class."""
    return without(HARD.episode(4), 4, 8, 9, 12, 13, 14, 16, 17, 18, 19)


EPISODES = {
    "one shot": HARD.episode(1),
    "four shots": HARD.episode(4, seed=3),
    "uneven": uneven(),
    "views": World(noise=2.5, n_view=3).episode(4),
}
EVERY_EPISODE = pytest.mark.parametrize("episode", EPISODES.values(), ids=EPISODES)


# --------------------------------------------------------------- prototypes


@EVERY_EPISODE
@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_a_prototype_is_the_text_plus_the_unit_mean_of_the_images(episode, alpha):
    rows = []
    for label, text in enumerate(text_of(episode).numpy()):
        images = keys_of(episode, label).numpy()
        mean = images.sum(axis=0)
        length = np.sqrt((mean**2).sum())
        w = text + alpha * mean / length if len(images) else text
        rows.append(w / np.sqrt((w**2).sum()))
    expected = 20 * unit_rows(X.double()).numpy() @ np.array(rows).T
    found = fitted(Prototype(alpha=alpha), episode).logits(X)
    np.testing.assert_allclose(found.double().numpy(), expected, **CLOSE)


def test_a_class_without_images_is_its_text():
    episode = uneven()
    assert (episode.y != 4).all()
    zero_shot = 20 * unit_rows(X.double()) @ text_of(episode)[4]
    found = fitted(Prototype(), episode).logits(X)[:, 4]
    torch.testing.assert_close(found.double(), zero_shot, **CLOSE)


# --------------------------------------------------------------- Meta-Adapter


def meta_adapter_weights(p, text, memories, hidden=None):
    """w (n_class, dim) of the released formulas, a class at a time.

    memories: the keys (n, dim) of each class. hidden: (class, place) of a key that is left out.
    """
    rows = []
    for label, own in enumerate(text):
        keys = memories[label]
        if hidden is not None and hidden[0] == label:
            kept = [place for place in range(len(keys)) if place != hidden[1]]
            keys = keys[kept]
        memory = torch.cat([own[None], keys])
        scores = (own @ p["q"]) @ (memory @ p["k"]).T / len(own) ** 0.5
        seen = F.softmax(scores, dim=0) @ memory
        gate = torch.sigmoid(p["u"] @ own + p["b"])
        rows.append(unit_rows(own + gate * seen))
    return torch.stack(rows)


def random_parameters(dim=16, seed=2):
    """Parameters far from their start, so that attention is sharp, as (1, ...) and by hand."""
    g = torch.Generator().manual_seed(seed)
    p = {
        "q": torch.randn(1, dim, dim, generator=g),
        "k": torch.randn(1, dim, dim, generator=g),
        "u": torch.randn(1, dim, generator=g),
        "b": torch.randn(1, generator=g),
    }
    return p, {name: value[0].double() for name, value in p.items()}


def bound(episode, p=None):
    """c, h and a classifier of given parameters on an episode."""
    head = MetaAdapter()
    support, _ = support_of(head, [episode])
    h = hypers([head], support.x)
    c = head.bind(support, h)
    classifier = fitted(replace(head, epochs=1), episode)
    return c, h, replace(classifier, p=p or classifier.p).rebind(support)


@EVERY_EPISODE
def test_logits_are_those_of_the_released_formulas(episode):
    p, by_hand = random_parameters()
    memories = [keys_of(episode, label) for label in range(5)]
    w = meta_adapter_weights(by_hand, text_of(episode), memories)
    expected = 20 * unit_rows(X.double()) @ w.T
    _, _, classifier = bound(episode, p)
    torch.testing.assert_close(classifier.logits(X).double(), expected, **CLOSE)


@EVERY_EPISODE
def test_attention_sums_to_one_and_leaves_empty_slots_out(episode):
    p, _ = random_parameters()
    c, _, _ = bound(episode)
    attention = affinities(p, c).softmax(dim=-1)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(1, 5))
    images = torch.bincount(episode.y, minlength=5)
    assert (attention > 0).sum(dim=-1)[0].tolist() == (1 + images).tolist()


def test_the_gate_starts_at_the_sigmoid_of_one():
    c, _, _ = bound(HARD.episode(4))
    p, _ = random_parameters()
    start = MetaAdapter().start(c, {}, [torch.Generator().manual_seed(0)])
    blind = start | {"u": torch.zeros_like(p["u"])}
    torch.testing.assert_close(gates(blind, c), torch.full((1, 5), 0.7310586))


def test_parameters_start_as_xavier_has_it():
    c, _, _ = bound(HARD.episode(4))
    start = MetaAdapter().start(c, {}, [torch.Generator().manual_seed(seed) for seed in (0, 1)])
    assert {name: tuple(value.shape) for name, value in start.items()} == {
        "q": (2, 16, 16),
        "k": (2, 16, 16),
        "u": (2, 16),
        "b": (2,),
    }
    # the square roots of 6 / 32 and of 6 / 17
    for name, bound_of in (("q", 0.433013), ("k", 0.433013), ("u", 0.594089)):
        size = start[name].abs()
        assert 0.8 * bound_of < size.max() < bound_of
        assert not torch.equal(start[name][0], start[name][1])
    assert not torch.equal(start["q"], start["k"]) and start["b"].tolist() == [1, 1]


def test_the_order_of_a_classs_images_does_not_matter():
    p, _ = random_parameters()
    episode = HARD.episode(4, seed=3)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    logits = [bound(one, p)[2].logits(X) for one in (episode, permuted(episode, order))]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", [Prototype(), MetaAdapter(epochs=3)], ids=["mean", "attention"])
@pytest.mark.parametrize("classes", [(3, 0, 4, 2, 1), (2, 4), (1,)])
def test_other_classes_are_a_choice_of_columns(head, classes):
    """Permuted classes permute the logits, and one class more leaves the others' as they are."""
    episode = HARD.episode(4, seed=3)
    classifier = fitted(head, episode)
    support, _ = support_of(head, [of_classes(episode, classes)])
    found = classifier.rebind(support).logits(X)
    torch.testing.assert_close(found, classifier.logits(X)[:, list(classes)], **CLOSE)


@pytest.mark.parametrize("head", [Prototype(), MetaAdapter()], ids=["mean", "attention"])
def test_slots_that_are_padding_change_nothing(head):
    p, _ = random_parameters()
    p = {} if isinstance(head, Prototype) else p
    short, long = uneven(), HARD.episode(16)
    support, _ = support_of(head, [short, long])
    h = hypers([head, head], support.x)
    c = head.bind(support, h)
    both = {name: value.expand(2, *value.shape[1:]) for name, value in p.items()}
    x = unit_rows(X)[None]
    together = head.logits(head.finish(both, c, h), c, h, x)
    for run, episode in enumerate((short, long)):
        alone, _ = support_of(head, [episode])
        h_alone = hypers([head], alone.x)
        c_alone = head.bind(alone, h_alone)
        expected = head.logits(head.finish(p, c_alone, h_alone), c_alone, h_alone, x)[0]
        torch.testing.assert_close(together[run], expected, rtol=1e-5, atol=1e-5)


def test_without_images_a_class_is_its_text():
    """Attention to the text alone gives the text, whatever the gate."""
    episode = HARD.episode(4)
    classifier = fitted(MetaAdapter(epochs=3), episode)
    found = classifier.rebind(Support.of_text(episode.text, 20.0)).logits(X)
    expected = 20 * unit_rows(X.double()) @ text_of(episode).T
    torch.testing.assert_close(found.double(), expected, **CLOSE)


def query_logits(p, episode, places, x, *, closed=True):
    """The logits (b, n_class) of queries x (b, dim), each with its own key left out."""
    memories = [keys_of(episode, label) for label in range(episode.n_class)]
    rows = []
    for place, query in zip(places, x, strict=True):
        label = int(episode.y[place])
        own = int((episode.y[:place] == label).sum())
        hidden = (label, own) if closed else None
        w = meta_adapter_weights(p, text_of(episode), memories, hidden)
        rows.append(20 * w @ query)
    return torch.stack(rows)


def loss_and_gradients(episode, places, x):
    """What the head says of a batch of these places in the support, showing x (b, dim)."""
    p, by_hand = random_parameters()
    for value in p.values():
        value.requires_grad_()
    c, h, _ = bound(episode)
    weight = torch.linspace(1, 2, len(places))
    weight = (weight / weight.sum())[None]
    batch = Batch(x[None], episode.y[places][None], weight, torch.tensor(places)[None])
    loss = MetaAdapter().loss(p, c, h, batch)
    return by_hand, weight[0].double(), loss, torch.autograd.grad(loss.sum(), list(p.values()))


@pytest.mark.parametrize("name", ["four shots", "uneven", "one shot"])
def test_the_loss_closes_each_querys_own_slot(name):
    episode = EPISODES[name]
    places = [2, 0, len(episode.y) - 1]
    x = unit_rows(episode.features[episode.index[places]])
    by_hand, weight, loss, grads = loss_and_gradients(episode, places, x)
    p = {key: value.requires_grad_() for key, value in by_hand.items()}
    logits = query_logits(p, episode, places, x.double())
    expected = (F.cross_entropy(logits, episode.y[places], reduction="none") * weight).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for found, theirs in zip(grads, torch.autograd.grad(expected, list(p.values())), strict=True):
        torch.testing.assert_close(found[0].double(), theirs, rtol=1e-3, atol=1e-5)
    # and it matters that they are closed
    is_open = query_logits(p, episode, places, x.double(), closed=False)
    other = (F.cross_entropy(is_open, episode.y[places], reduction="none") * weight).sum()
    assert abs(loss.item() - other.item()) > 0.01


@pytest.mark.parametrize("shots, closed", [(1, False), (4, True)])
def test_a_query_that_is_a_view_keeps_the_only_image_of_its_class(shots, closed):
    episode = World(noise=2.5, n_view=3).episode(shots)
    places = [0, 2, 4]
    x = unit_rows(episode.views[1, episode.index[places]])
    by_hand, weight, loss, _ = loss_and_gradients(episode, places, x)
    logits = query_logits(by_hand, episode, places, x.double(), closed=closed)
    expected = (F.cross_entropy(logits, episode.y[places], reduction="none") * weight).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def trained_by_a_plain_loop(episode, head):
    """Meta-Adapter's parameters from torch's AdamW, an item at a time; in double precision."""
    generator = torch.Generator().manual_seed(episode.seed)
    p = {}
    for name, shape in (("q", (16, 16)), ("k", (16, 16)), ("u", (16, 1))):
        spread = math.sqrt(6 / sum(shape))
        drawn = (torch.rand(*shape, generator=generator) * 2 - 1) * spread
        p[name] = drawn.double().squeeze(1).requires_grad_()
    p["b"] = torch.ones((), dtype=torch.float64, requires_grad=True)
    start = {name: value.detach().clone() for name, value in p.items()}
    optimiser = torch.optim.AdamW(p.values(), lr=head.lr, weight_decay=head.weight_decay, eps=1e-4)
    n = len(episode.y)
    per_epoch = -(-n // head.batch)
    n_step = head.epochs * per_epoch
    x = unit_rows(episode.features[episode.index].double())
    for epoch in range(head.epochs):
        order = torch.randperm(n, generator=generator)
        for number, places in enumerate(order.tensor_split(per_epoch)):
            done = (epoch * per_epoch + number) / n_step
            optimiser.param_groups[0]["lr"] = head.lr * (1 + math.cos(math.pi * done)) / 2
            logits = query_logits(p, episode, places.tolist(), x[places])
            optimiser.zero_grad()
            F.cross_entropy(logits, episode.y[places]).backward()
            optimiser.step()
    return start, {name: value.detach() for name, value in p.items()}


def test_training_is_that_of_a_plain_loop():
    head = MetaAdapter(lr=0.02, epochs=3, batch=8)
    episodes = [HARD.episode(4, seed) for seed in (1, 2)]
    fits = fit([(head, episode) for episode in episodes])
    for episode, classifier in zip(episodes, fits, strict=True):
        start, expected = trained_by_a_plain_loop(episode, head)
        for name, last in expected.items():
            movement = (last - start[name]).norm()
            error = (classifier.p[name][0].double() - last).norm()
            assert movement > 0.01 and error < 0.01 * movement, name


def test_training_helps_on_its_own_classes_and_the_paper_rate_hardly_moves():
    episode = HARD.episode(8)
    moved = {}
    for preset in ("paper", "fast"):
        start = fitted(MetaAdapter(preset=preset, lr=0.0), episode).logits(X)
        last = fitted(MetaAdapter(preset=preset), episode).logits(X)
        moved[preset] = (last - start).abs().max().item()
        losses = [F.cross_entropy(logits, Y).item() for logits in (start, last)]
        assert losses[1] < losses[0]
    assert moved["paper"] < 0.1 * moved["fast"]

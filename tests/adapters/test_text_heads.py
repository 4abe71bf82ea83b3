"""Heads that start at the class texts: each beside a plain loop of PyTorch, and what holds them."""

from dataclasses import replace

import plain
import pytest
import torch
from fitting import WORLD, at_start, fitted, zero_shot
from plain import assert_moved_alike
from torch import nn
from torch.nn import functional as F
from worlds import World, without

from cliad.adapters.clap import Clap, mean_own_probability
from cliad.adapters.core.classifier import inputs
from cliad.adapters.core.episode import Support, stack
from cliad.adapters.core.fit import fit
from cliad.adapters.core.head import hypers
from cliad.adapters.core.ops import raw_class_weights, unit
from cliad.adapters.cross_modal import CrossModal
from cliad.adapters.cross_modal_adapter import CrossModalAdapter
from cliad.adapters.lp_plus_plus import LpPlusPlus
from cliad.adapters.prolip import ProLip
from cliad.adapters.reg_linear import RegLinear
from cliad.adapters.taskres import TaskRes
from cliad.adapters.zs_lp import ZsLp

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
X = WORLD.test[0]
# gradients stay large here; class 2 lacks one of its three sentences, class 4 two of them
HARD = World(noise=2.5, n_template=3, missing=[(1, 2), (0, 4), (2, 4)])
HARD_VIEWS = World(noise=2.5, n_template=3, n_view=3, missing=[(1, 2)])
SCALE = 20.0
SEEDS = pytest.mark.parametrize("seed", [1, 7])


def uneven(seed, world=HARD):
    """17 items: four to a class, less three."""
    return without(world.episode(4, seed), 1, 2, 9)


def own_generator(episode):
    return torch.Generator().manual_seed(episode.seed)


def test_zero_shot_is_the_cosine_with_the_mean_of_unit_sentences():
    expected = SCALE * F.normalize(HARD.test[0].double(), dim=1) @ plain.class_text(HARD.text).T
    torch.testing.assert_close(zero_shot(HARD).double(), expected, **CLOSE)


@pytest.mark.parametrize("head", [TaskRes, ZsLp, Clap])
def test_step_zero_is_zero_shot_of_the_raw_mean_text(head):
    weights = F.normalize(plain.raw_class_text(HARD.text), dim=1)
    x = unit(HARD.test[0])
    got = at_start(head(), HARD.episode(2), x).double()
    torch.testing.assert_close(got, SCALE * x.double() @ weights.T, **CLOSE)


@pytest.mark.parametrize("head", [RegLinear, CrossModal, ProLip])
def test_step_zero_is_zero_shot_of_the_unit_mean_text(head):
    x, _ = HARD.scored_on(head)
    x = x if "raw" in head.needs else unit(x)
    expected = SCALE * F.normalize(HARD.test[0].double(), dim=1) @ plain.class_text(HARD.text).T
    torch.testing.assert_close(at_start(head(), HARD.episode(2), x).double(), expected, **CLOSE)


@pytest.mark.parametrize("head", [Clap, RegLinear, ProLip])
def test_a_very_large_penalty_keeps_zero_shot(head):
    world = World(n_template=1)
    x, _ = world.scored_on(head)
    held = fitted(head(strength=1e6, lr=1e-8), world.episode(4)).logits(x)
    torch.testing.assert_close(held, zero_shot(world), rtol=1e-2, atol=1e-2)


def test_unit_text_is_given_the_length_of_raw_text():
    lengths = raw_class_weights(unit(WORLD.text[:1])).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((5,), 10.0))


def test_the_raw_mean_text_is_over_the_sentences_that_a_class_has():
    expected = plain.raw_class_text(HARD.text).float()
    torch.testing.assert_close(raw_class_weights(HARD.text), expected)
    torch.testing.assert_close(raw_class_weights(HARD.text)[4], HARD.text[1, 4])


# --- ZS-LP and CLAP


@SEEDS
def test_a_loop_of_pytorch_trains_zs_lp_alike(seed):
    """SGD on minibatches of views, cosine per epoch after one epoch at 1e-5."""
    episode = uneven(seed, HARD_VIEWS)
    views = F.normalize(episode.views[:, episode.index].double(), dim=2)
    start = plain.raw_class_text(episode.text)
    w = nn.Parameter(start.clone())
    batches = plain.minibatches_of_views(17, 3, 3, 8 * 3, own_generator(episode))

    def loss(batch):
        items, view = batch
        logits = SCALE * views[view, items] @ F.normalize(w, dim=1).T
        return F.cross_entropy(logits, episode.y[items])

    optimiser = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    plain.train(optimiser, plain.dassl(8, 3, 0.1), batches, loss)
    got = fitted(ZsLp(lr=0.1, epochs=8, batch=5), episode).p["w"][0]
    assert_moved_alike(got, w, start)


def plain_trust(episode, text):
    """The mean probability that zero-shot gives a class on its own items."""
    x = plain.unit_support(episode)
    probability = (SCALE * x @ F.normalize(text, dim=1).T).softmax(dim=1)
    trust = []
    for class_ in range(episode.n_class):
        own = probability[episode.y == class_, class_]
        trust.append(own.mean() if len(own) else torch.tensor(0.0))
    return torch.stack(trust)


@SEEDS
@pytest.mark.parametrize(
    "strength, weights",
    [(0.3, "class"), (3.0, "constant"), (1.0, "balanced")],
)
def test_a_loop_of_pytorch_trains_clap_alike(strength, weights, seed):
    episode = uneven(seed)
    x = plain.unit_support(episode)
    start = plain.raw_class_text(episode.text)
    trust = plain_trust(episode, start)
    if weights == "constant":
        trust = trust.mean().expand(5)
    if weights == "balanced":
        trust = torch.ones(5)
    w = nn.Parameter(start.clone())

    def loss(_):
        penalty = (trust * (w - start).square().sum(dim=1)).mean()
        logits = SCALE * x @ F.normalize(w, dim=1).T
        return F.cross_entropy(logits, episode.y) + strength * penalty

    optimiser = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    plain.train(optimiser, plain.dassl(25, 1, 0.1), range(25), loss)
    head = Clap(strength=strength, weights=weights, lr=0.1, epochs=25)
    assert_moved_alike(fitted(head, episode).p["w"][0], w, start)


def test_claps_penalty_holds_and_no_penalty_is_zs_lp():
    episode = HARD.episode(4)
    start = plain.raw_class_text(HARD.text)
    free = fitted(ZsLp(epochs=20), episode).p["w"][0]
    without_penalty = fitted(Clap(strength=0.0, epochs=20), episode).p["w"][0]
    held = fitted(Clap(strength=3.0, epochs=20), episode).p["w"][0]
    assert_moved_alike(without_penalty, free, start)
    assert (held - start).norm() < 0.9 * (free - start).norm()


def clap_lambda(episode, weights):
    support, _ = stack([episode], inputs(Clap(), episode))
    head = Clap(weights=weights)
    return head.bind(support, hypers([head], X))["_lambda"][0].double()


def test_clap_trusts_a_class_as_zero_shot_knows_it_and_one_without_images_not_at_all():
    episode = without(HARD.episode(3), 12, 13, 14)  # all items of class 4
    expected = plain_trust(episode, plain.raw_class_text(HARD.text))
    assert expected[4] == 0
    torch.testing.assert_close(clap_lambda(episode, "class"), expected, **CLOSE)
    torch.testing.assert_close(clap_lambda(episode, "constant"), expected.mean().expand(5), **CLOSE)
    assert (clap_lambda(episode, "balanced") == 1).all()


# --- TaskRes


@SEEDS
def test_a_loop_of_pytorch_trains_taskres_alike(seed):
    episode = uneven(seed)
    x = plain.unit_support(episode)
    text = plain.raw_class_text(episode.text)
    residual = nn.Parameter(torch.zeros_like(text))
    batches = plain.minibatches(17, 2, 15 * 2, own_generator(episode))

    def loss(items):
        weights = F.normalize(text + 0.3 * residual, dim=1)
        return F.cross_entropy(SCALE * x[items] @ weights.T, episode.y[items])

    optimiser = torch.optim.Adam([residual], lr=0.01, weight_decay=0.05)
    plain.train(optimiser, plain.dassl(15, 2, 0.01), batches, loss)
    head = TaskRes(alpha=0.3, lr=0.01, weight_decay=0.05, epochs=15, batch=8)
    assert_moved_alike(fitted(head, episode).p["residual"][0], residual, torch.zeros(5, 16))


# --- cross-modal


@SEEDS
@pytest.mark.parametrize("wise", [0.0, 0.3])
def test_a_loop_of_pytorch_trains_the_cross_modal_probe_alike(wise, seed):
    """AdamW, 50 steps of warm-up, then a cosine; every sentence is one more item of its class."""
    episode = uneven(seed)
    x = plain.unit_support(episode)
    text, text_y = plain.text_items(episode.text)
    assert len(text) == 12
    start = plain.class_text(episode.text)
    w = nn.Parameter(start.clone())
    batches = plain.minibatches(17, 3, 80, own_generator(episode))

    def loss(items):
        images = F.cross_entropy(SCALE * x[items] @ w.T, episode.y[items])
        return images + F.cross_entropy(SCALE * text @ w.T, text_y)

    optimiser = torch.optim.AdamW([w], lr=2e-3, weight_decay=0.5)
    plain.train(optimiser, plain.cosine(80, 2e-3, warmup=50), batches, loss)
    expected = (1 - wise) * w + wise * start
    head = CrossModal(lr=2e-3, weight_decay=0.5, wise=wise, steps=80, batch=7)
    assert_moved_alike(fitted(head, episode).p["w"][0], expected, start)


@SEEDS
@pytest.mark.parametrize("wise", [0.0, 0.3])
def test_a_loop_of_pytorch_trains_the_cross_modal_adapter_alike(wise, seed):
    episode = uneven(seed)
    x = plain.unit_support(episode)
    text, text_y = plain.text_items(episode.text)
    generator = own_generator(episode)
    adapter = plain.Bottleneck(16, 4, generator)
    down, up = adapter.down.weight.detach().clone(), adapter.up.weight.detach().clone()
    start = plain.class_text(episode.text)
    w = nn.Parameter(start.clone())
    batches = plain.minibatches(17, 3, 80, generator)

    def logits(rows):
        blended = 0.3 * adapter(rows) + 0.7 * rows
        return SCALE * F.normalize(blended, dim=1) @ w.T

    def loss(items):
        images = F.cross_entropy(logits(x[items]), episode.y[items])
        return images + F.cross_entropy(logits(text), text_y)

    parameters = [*adapter.parameters(), w]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.5)
    plain.train(optimiser, plain.cosine(80, 2e-3, warmup=50), batches, loss)
    head = CrossModalAdapter(ratio=0.3, lr=2e-3, weight_decay=0.5, wise=wise, steps=80, batch=7)
    classifier = fitted(head, episode)
    assert_moved_alike(classifier.p["w1"][0].T, adapter.down.weight, down)
    # AdamW makes a step even of a gradient that is near zero, where rounding decides
    assert_moved_alike(classifier.p["w2"][0].T, adapter.up.weight, up, share=5e-3)
    w = nn.Parameter((1 - wise) * w.detach() + wise * start)
    assert_moved_alike(classifier.p["w"][0], w, start)
    query = F.normalize(HARD.test[0].double(), dim=1)
    torch.testing.assert_close(classifier.logits(query.float()).double(), logits(query), **CLOSE)


def test_cross_modal_learns_from_texts_as_from_images():
    """Without images of its own class, a text alone keeps the class right."""
    episode = without(WORLD.episode(4), 16, 17, 18, 19)  # all items of class 4
    logits = fitted(CrossModal(), episode).logits(unit(WORLD.text).flatten(0, 1))
    assert (logits.argmax(dim=1) == torch.arange(5).repeat(2)).all()


# --- the regularised linear adapter and ProLIP


@SEEDS
def test_a_loop_of_pytorch_trains_the_regularised_linear_adapter_alike(seed):
    """A square matrix that starts at the identity; 17 items of 5 classes are 3.4 shots."""
    episode = uneven(seed)
    x = plain.unit_support(episode)
    text = plain.class_text(episode.text)
    identity = torch.eye(16, dtype=torch.float64)
    matrix = nn.Parameter(identity.clone())
    batches = plain.minibatches(17, 3, 40, own_generator(episode))

    def loss(items):
        logits = SCALE * F.normalize(x[items] @ matrix, dim=1) @ text.T
        penalty = (matrix - identity).square().sum()
        return F.cross_entropy(logits, episode.y[items]) + 2.0 / 3.4 * penalty

    optimiser = torch.optim.Adam([matrix], lr=5e-3, eps=1e-4)
    plain.train(optimiser, plain.cosine(40, 5e-3), batches, loss)
    classifier = fitted(RegLinear(strength=2.0, lr=5e-3, steps=40, batch=6), episode)
    assert_moved_alike(classifier.p["residual"][0], matrix - identity, torch.zeros(16, 16))
    query = F.normalize(HARD.test[0].double(), dim=1)
    expected = SCALE * F.normalize(query @ matrix.detach(), dim=1) @ text.T
    torch.testing.assert_close(classifier.logits(query.float()).double(), expected, **CLOSE)


@SEEDS
def test_prolip_trains_as_the_projection_itself_would(seed):
    """x = v W with W from W0 by torch's Adam moves as the residual form does."""
    episode = uneven(seed)
    before = HARD.pre_projection[episode.index].double()
    text = plain.class_text(episode.text)
    projection = HARD.projection.double()
    w = nn.Parameter(projection.clone())
    batches = plain.minibatches(17, 3, 40, own_generator(episode))

    def loss(items):
        logits = SCALE * F.normalize(before[items] @ w, dim=1) @ text.T
        penalty = (w - projection).square().sum()
        return F.cross_entropy(logits, episode.y[items]) + 2.0 / 3.4 * penalty

    optimiser = torch.optim.Adam([w], lr=5e-3, eps=1e-4)
    plain.train(optimiser, plain.cosine(40, 5e-3), batches, loss)
    classifier = fitted(ProLip(strength=2.0, lr=5e-3, steps=40, batch=6), episode)
    assert_moved_alike(classifier.p["residual"][0], w - projection, torch.zeros(24, 16))
    x, _ = HARD.scored_on(ProLip)
    expected = SCALE * F.normalize(HARD.test[1].double() @ w.detach(), dim=1) @ text.T
    torch.testing.assert_close(classifier.logits(x).double(), expected, **CLOSE)


# --- LP++


class PlainLpPlusPlus:
    """LP++ by torch's SGD, `a` stepping after every tenth step; it remembers all steps."""

    def __init__(self, episode, steps):
        self.text = plain.class_text(episode.text)
        x, y = plain.unit_support(episode), episode.y
        cosine = x @ self.text.T
        sums, means = [], []
        for class_ in range(5):
            own = y == class_
            sums.append(x[own].sum(dim=0))
            means.append(cosine[own, class_].mean())
        self.lr_w = 4 * len(x) / torch.linalg.eigvalsh(x.T @ x).max().item()
        self.lr_a = len(x) / (4 * cosine.square().sum(dim=0).max().item())
        # the bias starts as nn.Linear's: uniform within 1 over the root of 16
        bias = (2 * torch.rand(16, 5, generator=own_generator(episode)) - 1)[0] / 4
        self.w = nn.Parameter(torch.stack(sums))
        self.b = nn.Parameter(bias.double())
        self.a = nn.Parameter((250 * torch.stack(means).mean()).expand(5).clone())
        self.history = [self.parameters()]
        optimiser = torch.optim.SGD([self.w, self.b], lr=self.lr_w, momentum=0.9)
        for step in range(1, steps + 1):
            self.a.grad = None
            optimiser.zero_grad()
            F.cross_entropy(self.logits(x), y).backward()
            optimiser.step()
            if step % 10 == 0:
                self.a.data -= self.lr_a * self.a.grad
            self.history.append(self.parameters())

    def logits(self, x):
        return x @ self.w.T + self.b + self.a * (x @ self.text.T)

    def parameters(self):
        values = {"w": self.w, "b": self.b, "a": self.a}
        return {name: value.detach().clone() for name, value in values.items()}


def assert_lp_plus_plus_is(classifier, expected, start):
    for name, value in expected.items():
        assert_moved_alike(classifier.p[name][0], value, start[name])


@SEEDS
def test_a_loop_of_pytorch_trains_lp_plus_plus_alike(seed):
    episode = uneven(seed)
    reference = PlainLpPlusPlus(episode, 45)
    start, *_, end = reference.history
    assert not torch.equal(end["a"], start["a"])
    assert_lp_plus_plus_is(fit([(LpPlusPlus(epochs=45), episode)])[0], end, start)


def lp_plus_plus_constants(episode):
    support, _ = stack([episode], inputs(LpPlusPlus(), episode))
    return LpPlusPlus().bind(support, {})


@SEEDS
def test_lp_plus_plus_has_its_steps_in_closed_form(seed):
    episode = uneven(seed)
    reference = PlainLpPlusPlus(episode, 0)
    constants = lp_plus_plus_constants(episode)
    assert constants["_lr_w"].item() == pytest.approx(reference.lr_w, rel=1e-4)
    assert constants["_lr_a"].item() == pytest.approx(reference.lr_a, rel=1e-4)
    twice = replace(episode, index=episode.index.repeat(2), y=episode.y.repeat(2))
    for name in ("_lr_w", "_lr_a"):
        torch.testing.assert_close(lp_plus_plus_constants(twice)[name], constants[name])


def test_lp_plus_plus_keeps_the_last_of_the_best_steps_only_where_it_selects():
    episode = World(noise=2.5).episode(4)
    reference = PlainLpPlusPlus(episode, 40)
    x, y = F.normalize(episode.val[0].double(), dim=1), episode.val_y
    right = []
    for p in reference.history[1:]:
        logits = x @ p["w"].T + p["b"] + p["a"] * (x @ reference.text.T)
        right.append((logits.argmax(dim=1) == y).sum().item())
    best = max(step for step, score in enumerate(right, start=1) if score == max(right))
    start, *_, end = reference.history
    assert 10 < best < 40 and right.count(max(right)) > 1
    selected = fitted(LpPlusPlus(epochs=40), episode, "val")
    assert_lp_plus_plus_is(selected, reference.history[best], start)
    assert_lp_plus_plus_is(fitted(LpPlusPlus(epochs=40), episode), end, start)


def test_claps_trust_in_a_class_is_the_mean_probability_of_its_own_items():
    # Three classes: two items of the first, one of the second, none of the third; one row of padding.
    probability = torch.tensor(
        [[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.9, 0.05, 0.05]]
    )
    support = Support(
        items=torch.zeros(1, 4, 2),
        y=torch.tensor([[0, 0, 1, 0]]),
        mask=torch.tensor([[1.0, 1.0, 1.0, 0.0]]),
        text=None,
        logit_scale=1.0,
        n_class=3,
        counts=[3],
        largest_class=2,
    )
    trust = mean_own_probability(support, probability.log()[None])
    torch.testing.assert_close(trust, torch.tensor([[0.6, 0.6, 0.0]]))

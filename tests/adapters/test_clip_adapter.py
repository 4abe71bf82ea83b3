"""CLIP-Adapter: the paper's identities, and every variant trained by a plain loop of PyTorch."""

import itertools
import math
from dataclasses import replace

import plain
import pytest
import torch
from fitting import WORLD, fitted, zero_shot
from plain import assert_moved_alike
from torch import nn
from torch.nn import functional as F
from worlds import World, without

from cliad.adapters.clip_adapter import ClipAdapter
from cliad.adapters.core.episode import Support
from cliad.adapters.core.head import HeadError, hypers
from cliad.adapters.core.ops import class_weights, unit
from cliad.adapters.taskres import TaskRes

X, _, Y = WORLD.test
CLOSE = {"rtol": 1e-3, "atol": 1e-3}
BRANCHES = ("visual", "text", "both")
RATIOS = ("fixed", "learned", "conditioned")
VARIANTS = list(itertools.product(BRANCHES, RATIOS, (True, False)))
HARD = World(noise=2.5, dim=32, n_template=3, missing=[(1, 2)])
SCALE = 20.0


@pytest.mark.parametrize("branch", BRANCHES)
def test_alpha_and_beta_zero_are_zero_shot_bit_for_bit(branch):
    got = fitted(ClipAdapter(branch=branch, alpha=0.0, beta=0.0), WORLD.episode(2)).logits(X)
    torch.testing.assert_close(got, zero_shot(), rtol=1e-6, atol=1e-5)
    assert torch.equal(got.argmax(dim=1), zero_shot().argmax(dim=1))
    assert branch != "visual" or torch.equal(got, zero_shot())


class PlainBranch(nn.Module):
    """ratio * adapter(x) + (1 - ratio) * x, the ratio of any of the three kinds."""

    def __init__(self, dim, ratio, kind, final_relu, generator):
        super().__init__()
        self.ratio = ratio
        self.kind = kind
        self.adapter = plain.Bottleneck(dim, dim // 4, generator, final_relu=final_relu)
        if kind != "fixed":
            start = math.log(ratio / (1 - ratio))
            self.number = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        if kind == "conditioned":
            self.network = plain.Bottleneck(dim, dim // 16, generator, final_relu=False)
            self.network.up = nn.Linear(dim // 16, 1, bias=False, dtype=torch.float64)
            nn.init.zeros_(self.network.up.weight)

    def forward(self, x):
        ratio = self.ratio
        if self.kind == "learned":
            ratio = torch.sigmoid(self.number)
        if self.kind == "conditioned":
            ratio = torch.sigmoid(self.number + self.network(F.normalize(x, dim=1)))
        return ratio * self.adapter(x) + (1 - ratio) * x

    def named(self, branch):
        """The parameters by the names and in the memory order of the head's."""
        named = {"w1": self.adapter.down.weight.T, "w2": self.adapter.up.weight.T}
        if self.kind != "fixed":
            named["ratio"] = self.number
        if self.kind == "conditioned":
            named |= {"q1": self.network.down.weight.T, "q2": self.network.up.weight.T}
        return {f"{branch}_{name}": value.detach().clone() for name, value in named.items()}


class PlainClipAdapter(nn.Module):
    """Images and class texts, each through its own branch where it is adapted."""

    def __init__(self, episode, head, generator):
        super().__init__()
        self.text = plain.class_text(episode.text)
        dim = self.text.shape[1]
        self.branches = nn.ModuleDict()
        for name, ratio in (("visual", head.alpha), ("text", head.beta)):
            if head.branch in (name, "both"):
                kind = head.ratio
                branch = PlainBranch(dim, ratio, kind, head.final_relu, generator)
                self.branches[name] = branch

    def forward(self, x):
        text = self.text
        if "visual" in self.branches:
            x = self.branches["visual"](x)
        if "text" in self.branches:
            text = self.branches["text"](text)
        return SCALE * F.normalize(x, dim=1) @ F.normalize(text, dim=1).T

    def named(self):
        named = {}
        for name, branch in self.branches.items():
            named |= branch.named(name)
        return named


def assert_trained_alike(head, episode, make_optimiser, rates, per_epoch):
    """The head and a plain loop end with the same parameters and logits."""
    generator = torch.Generator().manual_seed(episode.seed)
    model = PlainClipAdapter(episode, head, generator)
    start = model.named()
    batches = plain.minibatches(len(episode.y), per_epoch, len(rates), generator)
    x = plain.unit_support(episode)

    def loss(items):
        return F.cross_entropy(model(x[items]), episode.y[items])

    plain.train(make_optimiser(model.parameters()), rates, batches, loss)
    classifier = fitted(head, episode)
    assert set(classifier.p) == set(start)
    for name, value in model.named().items():
        assert_moved_alike(classifier.p[name][0].view_as(value), value, start[name])
    with torch.no_grad():
        expected = model(F.normalize(HARD.test[0].double(), dim=1))
    torch.testing.assert_close(classifier.logits(HARD.test[0]).double(), expected, **CLOSE)


@pytest.mark.parametrize("branch, ratio, final_relu", VARIANTS)
def test_a_loop_of_pytorch_trains_the_fast_preset_alike(branch, ratio, final_relu):
    """AdamW; 7 epochs of 3 minibatches are 21 steps, 6 of them to warm up."""
    episode = without(HARD.episode(4, seed=7), 1, 2, 9)
    head = ClipAdapter(
        branch=branch,
        ratio=ratio,
        final_relu=final_relu,
        alpha=0.3,
        beta=0.4,
        lr=5e-3,
        weight_decay=0.3,
        epochs=7,
        batch=6,
    )

    def adamw(parameters):
        return torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.3)

    assert_trained_alike(head, episode, adamw, plain.cosine(21, 5e-3, warmup=6), per_epoch=3)


@pytest.mark.parametrize("seed", [1, 7])
@pytest.mark.parametrize("branch", BRANCHES)
def test_a_loop_of_pytorch_trains_the_paper_preset_alike(branch, seed):
    """SGD with momentum, decay in the gradient, cosine per epoch after one epoch at 1e-5."""
    episode = without(HARD.episode(4, seed), 1, 2, 9)
    head = ClipAdapter(
        preset="paper",
        branch=branch,
        alpha=0.6,
        beta=0.5,
        lr=0.05,
        weight_decay=0.02,
        epochs=10,
        batch=6,
    )

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.02)

    assert_trained_alike(head, episode, sgd, plain.dassl(10, 3, 0.05), per_epoch=3)


@pytest.mark.parametrize("branch, ratio, final_relu", VARIANTS)
def test_every_variant_learns(branch, ratio, final_relu):
    head = ClipAdapter(branch=branch, ratio=ratio, final_relu=final_relu)
    episode = WORLD.episode(8)
    support = WORLD.features[episode.index]
    classifier = fitted(head, episode)
    assert (classifier.logits(X).argmax(dim=1) == Y).float().mean() > 0.85
    loss = F.cross_entropy(classifier.logits(support), episode.y)
    before = F.cross_entropy(fitted(ClipAdapter(alpha=0.0), episode).logits(support), episode.y)
    assert loss < before


@pytest.mark.parametrize("branch, ratio, final_relu", VARIANTS)
def test_lengths_of_features_and_texts_do_not_matter(branch, ratio, final_relu):
    head = ClipAdapter(branch=branch, ratio=ratio, final_relu=final_relu, epochs=3)
    episode = WORLD.episode(4)
    g = torch.Generator().manual_seed(0)
    scale = torch.rand(len(WORLD.features), 1, generator=g) + 0.5
    other = replace(episode, features=WORLD.features * scale, text=WORLD.text * 3)
    expected = fitted(head, episode).logits(X)
    torch.testing.assert_close(fitted(head, other).logits(X * 7), expected, **CLOSE)


def test_the_lengths_do_not_reach_the_gradients_and_a_bias_would():
    """The reason, on the maps themselves: raw and unit rows give the same logits and gradients."""
    head = ClipAdapter()
    c = {"text": class_weights(WORLD.text)[None], "scale": torch.tensor([20.0])}
    h = hypers([head], X)
    p = head.start(c, h, [torch.Generator().manual_seed(0)])
    for value in p.values():
        value.requires_grad_()
    results = []
    for x in (X, unit(X)):
        logits = head.logits(p, c, h, x[None])
        loss = F.cross_entropy(logits[0], Y)
        results.append((logits, *torch.autograd.grad(loss, list(p.values()))))
    for raw, short in zip(*results, strict=True):
        torch.testing.assert_close(raw, short, rtol=1e-3, atol=1e-5)
    biased = []
    for x in (X, unit(X)):
        hidden = torch.relu(x @ p["visual_w1"][0] + 1)
        adapted = torch.relu(hidden @ p["visual_w2"][0])
        biased.append(F.normalize(0.8 * x + 0.2 * adapted))
    assert not torch.allclose(*biased, atol=1e-3)


def n_parameter(**options):
    classifier = fitted(ClipAdapter(epochs=1, **options), WORLD.episode(1))
    return sum(value.numel() for value in classifier.p.values())


@pytest.mark.parametrize("hidden, width", [("D", 16), ("D/4", 4), ("D/16", 1), ("3", 3)])
def test_parameters_are_two_matrices_to_a_branch(hidden, width):
    assert n_parameter(hidden=hidden) == 2 * 16 * width
    assert n_parameter(hidden=hidden, branch="text") == 2 * 16 * width
    assert n_parameter(hidden=hidden, branch="both") == 4 * 16 * width
    assert n_parameter(hidden=hidden, ratio="learned") == 2 * 16 * width + 1


@pytest.mark.parametrize("hidden", ["0", "-3", "2.5", "wide", "7/2", "D/0", "D/-1", "d/4"])
def test_a_width_that_is_neither_a_number_nor_a_share_is_refused(hidden):
    with pytest.raises(HeadError, match=r"expected hidden to be a number .* where D is 16"):
        n_parameter(hidden=hidden)


def test_a_share_of_less_than_one_is_one():
    assert n_parameter(hidden="D/100") == 2 * 16


@pytest.mark.parametrize("final_relu", [True, False])
def test_the_adapter_can_lower_a_feature_only_without_the_final_relu(final_relu):
    """With alpha 1 and unit vectors as class texts, logits are the adapted feature itself."""
    classifier = fitted(ClipAdapter(alpha=1.0, final_relu=final_relu), WORLD.episode(4))
    adapted = classifier.rebind(Support.of_text(torch.eye(16)[None], 20.0)).logits(X)
    assert adapted.max() > 1
    assert adapted.min() >= 0 if final_relu else adapted.min() < -1


def test_a_learned_ratio_starts_at_alpha_and_moves():
    episode = WORLD.episode(8)
    ratios = []
    for lr in (0.0, 3e-3):
        classifier = fitted(ClipAdapter(ratio="learned", alpha=0.3, lr=lr), episode)
        ratios.append(classifier.p["visual_ratio"].sigmoid().item())
    assert math.isclose(ratios[0], 0.3, abs_tol=1e-6)
    assert abs(ratios[1] - 0.3) > 1e-3


@pytest.mark.parametrize(
    "options",
    [{"alpha": 0.0}, {"alpha": 1.0}, {"branch": "text", "beta": 0.0}],
)
def test_a_learned_ratio_cannot_start_at_either_end(options):
    with pytest.raises(HeadError, match="between 0 and 1"):
        ClipAdapter(ratio="learned", **options)


def test_the_same_parameters_serve_other_classes():
    classifier = fitted(ClipAdapter(), WORLD.episode(4))
    other = classifier.rebind(Support.of_text(WORLD.text[:, [3, 1]], 20.0))
    torch.testing.assert_close(other.logits(X), classifier.logits(X)[:, [3, 1]], **CLOSE)
    with pytest.raises(HeadError, match="cannot serve others"):
        fitted(TaskRes(epochs=1), WORLD.episode(1)).rebind(Support.of_text(WORLD.text, 20.0))

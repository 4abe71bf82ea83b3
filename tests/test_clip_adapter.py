"""CLIP-Adapter: the paper's identities, its variants, and CoOp's recipe by torch's own optimiser."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from test_heads import WORLD, fitted, zero_shot
from torch.nn import functional as F

from cliad.adapters.base import HeadError, class_weights, unit
from cliad.adapters.clip_adapter import ClipAdapter
from cliad.adapters.optimise import fit, hypers
from cliad.adapters.taskres import TaskRes

X, _, Y = WORLD.test
CLOSE = {"rtol": 1e-3, "atol": 1e-3}
VARIANTS = list(itertools.product(("visual", "text", "both"), ("fixed", "learned", "conditioned"), (True, False)))


@pytest.mark.parametrize("branch", ["visual", "text", "both"])
def test_alpha_and_beta_zero_are_zero_shot_bit_for_bit(branch):
    got = fitted(ClipAdapter(branch=branch, alpha=0.0, beta=0.0), WORLD.episode(2)).logits(X)
    torch.testing.assert_close(got, zero_shot(), rtol=1e-6, atol=1e-5)
    assert torch.equal(got.argmax(dim=1), zero_shot().argmax(dim=1))
    assert branch != "visual" or torch.equal(got, zero_shot())


@pytest.mark.parametrize("branch, ratio, final_relu", VARIANTS)
def test_every_variant_learns(branch, ratio, final_relu):
    head = ClipAdapter(branch=branch, ratio=ratio, final_relu=final_relu)
    episode = WORLD.episode(8)
    logits = fitted(head, episode).logits(X)
    loss = lambda z: F.cross_entropy(z, episode.y)
    support = WORLD.features[episode.index]
    assert (logits.argmax(dim=1) == Y).float().mean() > 0.85
    assert loss(fitted(head, episode).logits(support)) < loss(fitted(ClipAdapter(alpha=0.0), episode).logits(support))


@pytest.mark.parametrize("branch, ratio, final_relu", VARIANTS)
def test_lengths_of_features_and_texts_do_not_matter(branch, ratio, final_relu):
    head = ClipAdapter(branch=branch, ratio=ratio, final_relu=final_relu, epochs=3)
    episode = WORLD.episode(4)
    scale = torch.rand(len(WORLD.features), 1, generator=torch.Generator().manual_seed(0)) + 0.5
    other = replace(episode, features=WORLD.features * scale, text=WORLD.text * 3)
    torch.testing.assert_close(fitted(head, episode).logits(X), fitted(head, other).logits(X * 7), **CLOSE)


def test_the_lengths_do_not_reach_the_gradients_and_a_bias_would():
    """METHODS' reason, on the maps themselves: raw and unit rows give the same logits and weight gradients."""
    head, g = ClipAdapter(), torch.Generator().manual_seed(0)
    c = {"text": class_weights(WORLD.text)[None], "scale": torch.tensor([20.0])}
    h = hypers([head], X)
    p = {name: value.requires_grad_() for name, value in head.start(c, h, [g]).items()}
    results = []
    for x in (X, unit(X)):
        logits = head.logits(p, c, h, x[None])
        results.append((logits, *torch.autograd.grad(F.cross_entropy(logits[0], Y), list(p.values()))))
    for raw, short in zip(*results, strict=True):
        torch.testing.assert_close(raw, short, rtol=1e-3, atol=1e-5)
    biased = [F.normalize(0.8 * x + 0.2 * torch.relu(torch.relu(x @ p["visual_w1"][0] + 1) @ p["visual_w2"][0])) for x in (X, unit(X))]
    assert not torch.allclose(*biased, atol=1e-3)


@pytest.mark.parametrize("hidden, width", [("D", 16), ("D/4", 4), ("D/16", 1), ("3", 3)])
def test_parameters_are_two_matrices_to_a_branch(hidden, width):
    count = lambda **options: sum(
        value.numel() for value in fitted(ClipAdapter(hidden=hidden, epochs=1, **options), WORLD.episode(1)).p.values()
    )
    assert count() == count(branch="text") == 2 * 16 * width
    assert count(branch="both") == 4 * 16 * width and count(ratio="learned") == 2 * 16 * width + 1


def test_the_final_relu_adds_nothing_negative():
    p = fitted(ClipAdapter(), WORLD.episode(4)).p
    assert (torch.relu(torch.relu(unit(X) @ p["visual_w1"][0]) @ p["visual_w2"][0]) >= 0).all()


def test_a_learned_ratio_starts_at_alpha_and_moves():
    episode = WORLD.episode(8)
    start, end = (fitted(ClipAdapter(ratio="learned", alpha=0.3, lr=lr), episode).p["visual_ratio"].sigmoid() for lr in (0.0, 3e-3))
    assert math.isclose(start.item(), 0.3, abs_tol=1e-6) and abs(end.item() - 0.3) > 1e-3
    with pytest.raises(HeadError, match="between 0 and 1"):
        ClipAdapter(ratio="learned", alpha=0.0)


def test_only_what_the_branch_uses_is_searched():
    assert set(ClipAdapter().searches()) == {"alpha"} and set(ClipAdapter(branch="text").searches()) == {"beta"}
    assert set(ClipAdapter(branch="both").searches()) == {"alpha", "beta"} and not ClipAdapter(ratio="learned").searches()


def test_the_paper_preset_is_coops_recipe():
    head = ClipAdapter(preset="paper")
    assert (head.lr, head.weight_decay, head.batch) == (2e-3, 5e-4, 32)
    plans = [head.plan(shots * 10, 10) for shots in (1, 2, 4, 8, 16)]
    assert [plan.steps // plan.per_epoch for plan in plans] == [50, 100, 100, 200, 200]
    assert ClipAdapter(preset="paper", lr=0.1, epochs=7).lr == 0.1 and ClipAdapter(preset="paper", epochs=7).plan(32, 2).steps == 7


def test_a_loop_of_pytorch_trains_the_paper_preset_alike():
    episode, head = WORLD.episode(4), ClipAdapter(preset="paper", epochs=10, alpha=0.6, lr=0.05)
    c = {"text": class_weights(WORLD.text)[None], "scale": torch.tensor([20.0])}
    p = head.start(c, hypers([head], X), [torch.Generator().manual_seed(episode.seed)])
    w1, w2 = (torch.nn.Parameter(p[name][0]) for name in ("visual_w1", "visual_w2"))
    optimiser = torch.optim.SGD([w1, w2], lr=0.05, momentum=0.9, weight_decay=5e-4)
    x = WORLD.features[episode.index]
    for epoch in range(10):
        optimiser.param_groups[0]["lr"] = 1e-5 if epoch == 0 else 0.05 * (1 + math.cos(math.pi * (epoch - 1) / 10)) / 2
        optimiser.zero_grad()
        blend = 0.6 * torch.relu(torch.relu(x @ w1) @ w2) + 0.4 * x
        F.cross_entropy(20.0 * F.normalize(blend, dim=1) @ c["text"][0].T, episode.y).backward()
        optimiser.step()
    got = fit([(head, episode)])[0].p
    torch.testing.assert_close(got["visual_w1"][0], w1.detach(), **CLOSE)
    torch.testing.assert_close(got["visual_w2"][0], w2.detach(), **CLOSE)


def test_the_same_parameters_serve_other_classes():
    classifier = fitted(ClipAdapter(), WORLD.episode(4))
    other = classifier.rebind(WORLD.text[:, [3, 1]])
    torch.testing.assert_close(other.logits(X), classifier.logits(X)[:, [3, 1]], **CLOSE)
    with pytest.raises(HeadError, match="cannot serve others"):
        fitted(TaskRes(epochs=1), WORLD.episode(1)).rebind(WORLD.text)

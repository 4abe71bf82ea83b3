"""Heads that start at the class texts: step 0 is zero-shot, and what holds them there."""

from dataclasses import replace

import pytest
import torch
from test_heads import WORLD, at_start, fitted, zero_shot
from torch.nn import functional as F
from worlds import World

from cliad.adapters.base import Support, class_weights, raw_class_weights, unit
from cliad.adapters.clap import Clap
from cliad.adapters.cross_modal import CrossModal
from cliad.adapters.cross_modal_adapter import CrossModalAdapter
from cliad.adapters.lp_plus_plus import LpPlusPlus
from cliad.adapters.optimise import fit, hypers, inputs, stack
from cliad.adapters.prolip import ProLip
from cliad.adapters.reg_linear import RegLinear
from cliad.adapters.taskres import TaskRes
from cliad.adapters.zs_lp import ZsLp

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
X = WORLD.test[0]


@pytest.mark.parametrize("head", [TaskRes, ZsLp, Clap])
def test_step_zero_is_zero_shot_of_the_raw_mean_text(head):
    weights = unit(WORLD.text.mean(dim=0))
    torch.testing.assert_close(at_start(head(), WORLD.episode(2), unit(X)), 20.0 * unit(X) @ weights.T, **CLOSE)


@pytest.mark.parametrize("head", [RegLinear, CrossModal])
def test_step_zero_is_zero_shot_of_the_unit_mean_text(head):
    torch.testing.assert_close(at_start(head(), WORLD.episode(2), unit(X)), zero_shot(), **CLOSE)


def test_step_zero_of_prolip_is_zero_shot():
    x, _ = WORLD.scored_on(ProLip)
    torch.testing.assert_close(at_start(ProLip(), WORLD.episode(2), x), zero_shot(), **CLOSE)


@pytest.mark.parametrize("head", [Clap, RegLinear, ProLip])
def test_a_great_penalty_stays_at_zero_shot(head):
    world = World(n_template=1)
    x, _ = world.scored_on(head)
    held = fitted(head(strength=1e6, lr=1e-8), world.episode(4)).logits(x)
    torch.testing.assert_close(held, zero_shot(world), rtol=1e-2, atol=1e-2)


def test_clap_without_penalty_is_zs_lp():
    episode = WORLD.episode(4)
    torch.testing.assert_close(
        fitted(Clap(strength=0.0, epochs=20), episode).logits(X), fitted(ZsLp(epochs=20), episode).logits(X), **CLOSE
    )


def test_clap_trusts_a_class_as_zero_shot_knows_it():
    episode = WORLD.episode(3)
    support, _ = stack([episode], inputs(Clap(), episode))
    probability = (20.0 * support.x[0] @ unit(raw_class_weights(WORLD.text)).T).softmax(dim=1)
    expected = torch.stack([probability[episode.y == k, k].mean() for k in range(5)])
    bound = lambda weights: Clap(weights=weights).bind(support, hypers([Clap()], X))["_lambda"][0]
    torch.testing.assert_close(bound("class"), expected, **CLOSE)
    torch.testing.assert_close(bound("constant"), expected.mean().expand(5), **CLOSE)
    assert (bound("balanced") == 1).all()


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_a_loop_of_pytorch_trains_clap_alike(strength):
    """SGD, cosine per epoch after one epoch at 1e-5, on all items: torch's own optimiser and autograd."""
    episode, head = WORLD.episode(4), Clap(strength=strength, epochs=12, lr=0.05)
    x, text = unit(episode.features[episode.index]), raw_class_weights(WORLD.text)
    trust = torch.stack([(20.0 * x @ unit(text).T).softmax(dim=1)[episode.y == k, k].mean() for k in range(5)])
    w = torch.nn.Parameter(text.clone())
    optimiser = torch.optim.SGD([w], lr=0.05, momentum=0.9)
    for epoch in range(12):
        optimiser.param_groups[0]["lr"] = (
            1e-5 if epoch == 0 else 0.05 * (1 + torch.cos(torch.tensor(torch.pi * (epoch - 1) / 12)).item()) / 2
        )
        optimiser.zero_grad()
        penalty = (trust * (w - text).square().sum(dim=1)).mean()
        (F.cross_entropy(20.0 * x @ F.normalize(w, dim=1).T, episode.y) + strength * penalty).backward()
        optimiser.step()
    torch.testing.assert_close(fitted(head, episode).p["w"][0], w.detach(), rtol=1e-3, atol=1e-3)


def test_a_loop_of_pytorch_trains_taskres_alike():
    episode = WORLD.episode(4)
    x, text = unit(episode.features[episode.index]), raw_class_weights(WORLD.text)
    residual = torch.nn.Parameter(torch.zeros_like(text))
    optimiser = torch.optim.Adam([residual], lr=2e-3, weight_decay=5e-4)
    for epoch in range(10):
        optimiser.param_groups[0]["lr"] = (
            1e-5 if epoch == 0 else 2e-3 * (1 + torch.cos(torch.tensor(torch.pi * (epoch - 1) / 10)).item()) / 2
        )
        optimiser.zero_grad()
        F.cross_entropy(20.0 * x @ F.normalize(text + 0.5 * residual, dim=1).T, episode.y).backward()
        optimiser.step()
    torch.testing.assert_close(fitted(TaskRes(epochs=10), episode).p["residual"][0], residual.detach(), rtol=1e-2, atol=1e-4)


def test_unit_text_is_given_the_length_of_raw_text():
    assert torch.allclose(raw_class_weights(unit(WORLD.text[:1])).norm(dim=1), torch.tensor(10.0))
    torch.testing.assert_close(raw_class_weights(WORLD.text), WORLD.text.mean(dim=0))


def lp_plus_plus_constants(x, y):
    return LpPlusPlus().bind(Support(x[None], y[None], torch.ones(1, len(y)), WORLD.text, 20.0, 5), {})


def test_lp_plus_plus_steps_scale_as_they_must():
    episode = WORLD.episode(4)
    x, y = unit(episode.features[episode.index]), episode.y
    once, double, twice = (lp_plus_plus_constants(*data) for data in ((x, y), (2 * x, y), (x.repeat(2, 1), y.repeat(2))))
    for name in ("_lr_w", "_lr_a"):
        torch.testing.assert_close(double[name], once[name] / 4)
        torch.testing.assert_close(twice[name], once[name])
    assert torch.allclose(once["_lr_w"], 4 * len(x) / torch.linalg.svdvals(x)[0] ** 2)
    own = (x @ class_weights(WORLD.text).T)[torch.arange(len(y)), y]
    assert torch.allclose(once["_a"], 250 * torch.stack([own[y == k].mean() for k in range(5)]).mean())
    torch.testing.assert_close(once["_w"][0], torch.stack([x[y == k].sum(dim=0) for k in range(5)]))


def test_a_loop_of_pytorch_trains_lp_plus_plus_alike():
    episode = WORLD.episode(4)
    x, y, text = unit(episode.features[episode.index]), episode.y, class_weights(WORLD.text)
    support, _ = stack([episode], unit(WORLD.features))
    c = LpPlusPlus().bind(support, {})
    p = {k: torch.nn.Parameter(v[0]) for k, v in LpPlusPlus().start(c, {}, [torch.Generator().manual_seed(1)]).items()}
    lr_w, lr_a = c["_lr_w"].item(), c["_lr_a"].item()
    optimiser = torch.optim.SGD([p["w"], p["b"]], lr=lr_w, momentum=0.9)
    for step in range(40):
        p["a"].grad = None
        optimiser.zero_grad()
        F.cross_entropy(x @ p["w"].T + p["b"] + p["a"] * (x @ text.T), y).backward()
        optimiser.step()
        if step % 10 == 9:
            p["a"].data -= lr_a * p["a"].grad
    got = fit([(LpPlusPlus(epochs=40), episode)])[0].p
    for name, value in p.items():
        torch.testing.assert_close(got[name][0], value.detach(), rtol=1e-3, atol=1e-3)


def test_lp_plus_plus_keeps_the_best_step_only_where_it_selects():
    episode = WORLD.episode(1)
    last, best = fitted(LpPlusPlus(), episode), fitted(LpPlusPlus(), episode, "val")
    x, y = episode.val
    right = lambda classifier: (classifier.logits(x).argmax(dim=1) == y).sum()
    assert right(best) >= right(last)


def test_cross_modal_learns_from_texts_as_from_images():
    """Without images of its own class, a text alone keeps the class right."""
    episode = WORLD.episode(4)
    only = episode.y != 4
    less = replace(episode, index=episode.index[only], y=episode.y[only])
    logits = fitted(CrossModal(), less).logits(unit(WORLD.text).flatten(0, 1))
    assert (logits.argmax(dim=1) == torch.arange(5).repeat(2)).all()


@pytest.mark.parametrize("head", [CrossModal, CrossModalAdapter])
def test_wise_is_the_mean_of_trained_and_text_weights(head):
    episode = WORLD.episode(4)
    plain, half, full = (fitted(head(wise=wise, steps=30), episode).p["w"] for wise in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, (plain + full) / 2)
    torch.testing.assert_close(full[0], class_weights(WORLD.text))


def test_prolip_trains_as_the_projection_itself_would():
    """x = v W with W from W0 by torch's Adam gives the same logits as the residual form."""
    episode, head = WORLD.episode(4), ProLip(steps=20)
    v, y, text = WORLD.pre_projection[episode.index], episode.y, class_weights(WORLD.text)
    w0 = torch.linalg.lstsq(WORLD.pre_projection, WORLD.features).solution
    w = torch.nn.Parameter(w0.clone())
    optimiser = torch.optim.Adam([w], lr=1e-3, eps=1e-4)
    for step in range(20):
        optimiser.param_groups[0]["lr"] = 1e-3 * (1 + torch.cos(torch.tensor(torch.pi * step / 20)).item()) / 2
        optimiser.zero_grad()
        (F.cross_entropy(20.0 * F.normalize(v @ w, dim=1) @ text.T, y) + (w - w0).square().sum() / 4).backward()
        optimiser.step()
    x, _ = WORLD.scored_on(head)
    expected = 20.0 * F.normalize(WORLD.test[1] @ w.detach(), dim=1) @ text.T
    torch.testing.assert_close(fitted(head, episode).logits(x), expected, rtol=1e-2, atol=1e-2)

"""whitened-lr and offset-lr beside scipy's minimiser of the same objectives, written in numpy."""

from dataclasses import replace

import numpy as np
import plain
import pytest
import torch
from fitting import fitted
from scipy.linalg import inv, sqrtm
from scipy.optimize import minimize
from torch.nn import functional as F
from worlds import World, without

from cliad.adapters.core.classifier import inputs
from cliad.adapters.core.episode import stack
from cliad.adapters.core.head import hypers
from cliad.adapters.core.ops import unit
from cliad.adapters.offset_lr import OffsetLr
from cliad.adapters.whitened_lr import WhitenedLr, whitening

HARD = World(noise=2.5)
X = HARD.test[0]
QUERY = F.normalize(X.double(), dim=1)
N_CLASS, DIM = HARD.text.shape[1:]
EXACT = {"tol": 1e-9, "max_iter": 1000}


def rows_of(episode):
    return unit(episode.features[episode.index]).double(), episode.y


def text_of(episode):
    """Zero-shot's class weights times the scale; zeros without texts."""
    if episode.text is None:
        return torch.zeros(N_CLASS, DIM, dtype=torch.float64)
    return 20 * plain.class_text(episode.text)


def objective(weights, z, y, offset, strength, bias_strength):
    """The loss to minimise, of weights (n_class, dim + 1) with the intercept behind."""
    v, b = weights[:, :-1], weights[:, -1]
    loss = F.cross_entropy(offset + z @ v.T + b, y, reduction="sum")
    return loss + strength * v.square().sum() / 2 + bias_strength * b.square().sum() / 2


def scipys_minimum(z, *others):
    """The V (n_class, dim) and b (n_class,) that scipy finds."""

    def value_and_gradient(flat):
        weights = torch.tensor(flat.reshape(N_CLASS, -1), requires_grad=True)
        value = objective(weights, z, *others)
        (gradient,) = torch.autograd.grad(value, weights)
        return value.item(), gradient.numpy().ravel()

    options = {"maxiter": 5000, "maxfun": 10**5, "ftol": 1e-15, "gtol": 1e-9}
    start = np.zeros(N_CLASS * (z.shape[1] + 1))
    found = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
    weights = torch.from_numpy(found.x.reshape(N_CLASS, -1))
    return weights[:, :-1], weights[:, -1]


def plain_whitening(x, y):
    """m and P by numpy and scipy's power of a matrix."""
    x = x.numpy()
    seen = sorted(set(y.tolist()))
    within = np.concatenate(
        [x[y == class_] - x[y == class_].mean(axis=0) for class_ in seen],
    )
    dof = max(len(x) - len(seen), 1)
    mean = x.mean(axis=0)
    if len(x) == len(seen):
        within = 0.6**0.5 * (x - mean)
        dof = len(x) - 1
    covariance = within.T @ within / dof
    ridged = covariance + np.trace(covariance) / dof * np.eye(x.shape[1])
    return torch.from_numpy(mean), torch.from_numpy(inv(sqrtm(ridged).real))


def episodes():
    four = HARD.episode(4, seed=7)
    return {
        "one shot": HARD.episode(1, seed=7),
        "fewer items than dimensions": HARD.episode(2, seed=7),
        "more items than dimensions": HARD.episode(16, seed=7),
        "uneven classes": without(four, 0, 1, 2, 9),
        "a class of one image": without(four, 0, 1, 2),
        "a class of none": without(four, 0, 1, 2, 3),
        "no text": replace(four, text=None),
        "one shot and no text": replace(HARD.episode(1), text=None),
    }


EPISODES = pytest.mark.parametrize("episode", episodes().values(), ids=episodes().keys())


@EPISODES
def test_whitened_lr_is_at_scipys_minimum(episode):
    x, y = rows_of(episode)
    text = 0.7 * text_of(episode)
    mean, whiten = plain_whitening(x, y)
    v, b = scipys_minimum((x - mean) @ whiten, y, x @ text.T, 2.0, 0.3)
    expected = QUERY @ text.T + (QUERY - mean) @ whiten @ v.T + b
    head = WhitenedLr(strength=2.0, bias_strength=0.3, text_weight=0.7, **EXACT)
    found = fitted(head, episode).logits(X).double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    # As it comes, with its looser tolerance.
    rough = fitted(replace(head, tol=1e-3, max_iter=60), episode).logits(X).double()
    torch.testing.assert_close(rough, expected, rtol=1e-2, atol=1e-2)


@EPISODES
def test_offset_lr_is_at_scipys_minimum(episode):
    x, y = rows_of(episode)
    text = text_of(episode) / 1.5
    v, b = scipys_minimum(x, y, x @ text.T, 0.1, 0.1)
    expected = 1.5 * (QUERY @ text.T + QUERY @ v.T + b)
    found = fitted(OffsetLr(**EXACT), episode).logits(X).double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_gradient_at_the_solution_is_zero():
    episode = HARD.episode(4)
    x, y = rows_of(episode)
    classifier = fitted(OffsetLr(sharpen=1.0, **EXACT), episode)
    text = text_of(episode)
    v = classifier.p["w"][0].double() - text
    weights = torch.cat([v, classifier.p["b"][0].double()[:, None]], dim=1).requires_grad_()
    value = objective(weights, x, y, x @ text.T, 0.1, 0.1)
    (gradient,) = torch.autograd.grad(value, weights)
    start = torch.zeros_like(weights).requires_grad_()
    (first,) = torch.autograd.grad(objective(start, x, y, x @ text.T, 0.1, 0.1), start)
    assert gradient.norm() < 1e-4 * first.norm()


@pytest.mark.parametrize("kind", [WhitenedLr, OffsetLr])
def test_a_padded_run_of_another_strength_is_solved_as_if_it_were_alone(kind):
    """The plan keeps runs of unequal size apart; the arithmetic need not."""
    long, short = HARD.episode(4), without(HARD.episode(4, seed=3), 0, 1, 9)
    heads = [kind(**EXACT), kind(strength=3.0, **EXACT)]
    support, _ = stack([long, short], inputs(heads[0], long))
    h = hypers(heads, support.x)
    c = heads[0].bind(support, h)
    together = heads[0].start(c, h, [])
    for run, (head, episode) in enumerate(zip(heads, (long, short), strict=True)):
        alone = fitted(head, episode)
        for name in ("w", "b"):
            torch.testing.assert_close(together[name][run], alone.p[name][0], rtol=1e-4, atol=1e-4)


def test_whitening_makes_the_ridged_scatter_the_identity():
    x, y = rows_of(HARD.episode(4))
    mean, whiten = whitening(x[None], F.one_hot(y, N_CLASS).double()[None])
    expected_mean, expected = plain_whitening(x, y)
    torch.testing.assert_close(mean[0, 0], expected_mean)
    torch.testing.assert_close(whiten[0], expected)


def test_items_that_are_all_one_point_give_finite_logits():
    episode = HARD.episode(4)
    same = replace(episode, features=torch.ones_like(episode.features))
    assert torch.isfinite(fitted(WhitenedLr(), same).logits(X)).all()


@pytest.mark.parametrize("head", [WhitenedLr(strength=1e9), OffsetLr(strength=1e9)])
def test_a_very_large_penalty_leaves_zero_shot_and_a_bias(head):
    held = fitted(replace(head, bias_strength=1e9), HARD.episode(4)).logits(X).double()
    expected = QUERY @ text_of(HARD.episode(4)).T
    torch.testing.assert_close(held, expected, rtol=1e-3, atol=1e-3)

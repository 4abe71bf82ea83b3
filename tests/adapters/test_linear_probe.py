"""The linear probe beside scikit-learn's logistic regression, the same objective."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fitting import WORLD, fitted
from sklearn.linear_model import LogisticRegression
from worlds import World

from cliad.adapters.core import logistic
from cliad.adapters.core.classifier import inputs
from cliad.adapters.core.episode import stack
from cliad.adapters.core.fit import fit
from cliad.adapters.core.head import hypers
from cliad.adapters.core.lbfgs import lbfgs
from cliad.adapters.core.logistic import Objective, in_full_space, reduced_basis
from cliad.adapters.linear_probe import LinearProbe

HARD = World(noise=2.5)


def objective(w, b, x, y, C):
    """C sum CE + |W|^2 / 2 in double precision."""
    w, b, x = (torch.as_tensor(part).double() for part in (w, b, x))
    losses = torch.nn.functional.cross_entropy(x @ w.T + b, y, reduction="sum")
    return C * losses.item() + 0.5 * (w**2).sum().item()


def twin(x, y, C):
    """scikit-learn's minimum."""
    probe = LogisticRegression(C=C, solver="newton-cg", max_iter=20000, tol=1e-10)
    return probe.fit(np.asarray(x, np.float64), y.numpy())


def assert_as_good(ours, theirs, x, y, C, rel):
    """Our objective is scikit-learn's, or below."""
    reached = objective(ours.p["w"][0], ours.p["b"][0], x, y, C)
    assert reached <= objective(theirs.coef_, theirs.intercept_, x, y, C) * (1 + rel)


@pytest.mark.parametrize("C", LinearProbe.space["C"])
@pytest.mark.parametrize("shots", [2, 16])
def test_the_probe_reaches_scikit_learns_objective(C, shots):
    episode, (query, _, _) = WORLD.episode(shots), WORLD.test
    x, y = episode.features[episode.index], episode.y
    theirs = twin(x, y, C)
    ours = fitted(LinearProbe(C=C, tol=1e-7, max_iter=4000), episode)
    assert_as_good(ours, theirs, x, y, C, 1e-4)
    agree = ours.logits(query).argmax(dim=1).numpy() == theirs.predict(np.asarray(query))
    assert agree.mean() == 1.0


@pytest.mark.parametrize("shots", [1, 2, 3, 16])
@pytest.mark.parametrize("C", [0.01, 1.0])
def test_weights_equal_scikit_learns_for_fewer_and_for_more_items_than_dimensions(shots, C):
    episode = HARD.episode(shots, seed=7)
    x, y = episode.features[episode.index], episode.y
    theirs = twin(x, y, C)
    ours = fitted(LinearProbe(C=C, tol=1e-9, max_iter=4000), episode)
    w, b = torch.from_numpy(theirs.coef_).float(), torch.from_numpy(theirs.intercept_).float()
    assert (ours.p["w"][0] - w).norm() < 1e-3 * w.norm()
    # softmax does not see a constant that all intercepts share
    ours_b = ours.p["b"][0] - ours.p["b"].mean()
    assert (ours_b - b + b.mean()).norm() < 1e-3 * b.norm() + 1e-4


@pytest.mark.parametrize("double_up_to", [2**24, 0])
@pytest.mark.parametrize("shots", [2, 6])
def test_runs_of_different_strength_are_solved_at_once(shots, double_up_to, monkeypatch):
    monkeypatch.setattr(logistic, "DOUBLE_UP_TO", double_up_to)
    runs = []
    for C, seed in ((1.0, 7), (1e-3, 8), (0.1, 9)):
        head = LinearProbe(C=C, tol=1e-7, max_iter=2000)
        runs.append((head, HARD.episode(shots, seed)))
    for (head, episode), ours in zip(runs, fit(runs), strict=True):
        x, y = episode.features[episode.index], episode.y
        assert_as_good(ours, twin(x, y, head.C), x, y, head.C, 1e-4)


def test_a_padded_run_is_solved_as_if_it_were_alone():
    """The plan keeps sizes apart today; the solver itself takes padding."""
    long, short = HARD.episode(4, 7), HARD.episode(2, 8)
    head = LinearProbe(C=0.1, tol=1e-8)
    features = inputs(head, long)
    support, _ = stack([long, short], features)
    h = hypers([head, head], features)
    p = head.start(head.bind(support, h), h, [])
    for run, episode in enumerate((long, short)):
        alone = fit([(head, episode)])[0]
        error = (p["w"][run] - alone.p["w"][0]).norm()
        assert error < 1e-3 * alone.p["w"].norm()
        torch.testing.assert_close(p["b"][run], alone.p["b"][0], rtol=1e-2, atol=1e-3)


def test_the_intercept_is_not_penalised():
    # so strong a penalty that only intercepts are left: they are the logs of the class shares
    episode = HARD.episode(16)
    first, second = (torch.nonzero(episode.y == label)[:, 0] for label in (0, 1))
    keep = torch.cat([first[:12], second[:3]])
    two = replace(episode, index=episode.index[keep], y=episode.y[keep], n_class=2)
    ours = fitted(LinearProbe(C=1e-9, tol=1e-9), two)
    assert ours.p["w"].abs().max() < 1e-4
    b = ours.p["b"][0]
    assert (b[0] - b[1]).item() == pytest.approx(np.log(12 / 3), rel=1e-3)


def bowl(steps, tolerance, floor=10.0):
    """L-BFGS on (w - 1)^2 + floor from 0, one number to a run; how often it asked, and the end."""
    asked = []

    def value_and_gradient(w, run):
        asked.append(run.tolist())
        return ((w - 1) ** 2).sum(dim=(1, 2)) + floor, 2 * (w - 1)

    # right for the first run, half of what is right for the second
    metric = torch.tensor([0.5, 0.25]).view(2, 1, 1)
    start = torch.zeros(2, 1, 1)

    def metric_at(w, run):
        return metric[run]

    w = lbfgs(value_and_gradient, start, metric_at, steps=steps, tolerance=tolerance)
    return asked, w.flatten().tolist()


def test_lbfgs_stops_at_the_third_step_in_a_row_that_promises_less_than_the_tolerance():
    # the first step promises 1 to the first run, whose value is 10 after it, and 0.5 to the second,
    # whose value is 10.25 after it; the further steps promise nothing
    asked, w = bowl(steps=50, tolerance=0.11)
    assert asked == [[0, 1]] * 4 and w == [1, 1]
    asked, w = bowl(steps=50, tolerance=0.09)
    assert asked == [*[[0, 1]] * 4, [0]] and w == [1, 1]
    asked, w = bowl(steps=50, tolerance=0.04)
    assert asked == [[0, 1]] * 5 and w == [1, 1]


def test_the_number_of_steps_is_bounded():
    asked, w = bowl(steps=1, tolerance=0.0)
    assert len(asked) == 2 and w == [1, 0.5]


def test_the_tolerance_decides_how_near_the_minimum_is():
    episode = HARD.episode(4)
    x, y = episode.features[episode.index], episode.y
    theirs = twin(x, y, 1.0)
    best = objective(theirs.coef_, theirs.intercept_, x, y, 1.0)
    excess = []
    for tol in (1e3, 1.0, 1e-3, 1e-8):
        ours = fitted(LinearProbe(C=1.0, tol=tol, max_iter=1000), episode)
        excess.append(objective(ours.p["w"][0], ours.p["b"][0], x, y, 1.0) / best - 1)
    assert excess[0] > excess[1] > excess[2] > excess[3]
    assert excess[1] < 0.1 and excess[2] < 0.01 and excess[3] < 1e-5


def test_items_fewer_than_dimensions_are_written_in_a_basis_of_their_span():
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    short, basis = reduced_basis(x)
    assert short.shape == (2, 3, 3) and basis.shape == (2, 3, 8)
    torch.testing.assert_close(short @ basis, x)
    torch.testing.assert_close(basis @ basis.mT, torch.eye(3).double().expand(2, 3, 3))
    w = torch.ones(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(x @ in_full_space(w, basis).mT, short @ w.mT)


def test_items_as_many_as_dimensions_stay_as_they_are():
    x = torch.ones(2, 8, 8)
    short, basis = reduced_basis(x)
    assert short is x and basis is None
    assert in_full_space(x, basis) is x


def random_objective():
    """Two runs of 6 items of 4 dimensions and 3 classes; the second has 2 rows of padding."""
    g = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 6, dtype=torch.float64)
    mask[1, 4:] = 0
    x = torch.randn(2, 6, 4, generator=g, dtype=torch.float64) * mask[..., None]
    y = torch.randint(3, (2, 6), generator=g)
    onehot = torch.nn.functional.one_hot(y, 3) * mask[..., None]
    C = torch.tensor([2.0, 0.3], dtype=torch.float64)
    return (
        Objective.of(x, onehot=onehot, mask=mask, C=C),
        x,
        y,
    )


def test_the_objective_is_the_probes_divided_by_c_and_the_items():
    made, x, y = random_objective()
    w = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values, _ = made(w, torch.tensor([0, 1]))
    for run, (n, C) in enumerate([(6, 2.0), (4, 0.3)]):
        expected = objective(w[run, :, :4], w[run, :, 4], x[run, :n], y[run, :n], C) / (C * n)
        assert values[run].item() == pytest.approx(expected, rel=1e-9)


def test_the_gradient_equals_that_of_autograd():
    made, _, _ = random_objective()
    w = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w.requires_grad_()
    values, gradient = made(w, torch.tensor([1, 0]))
    torch.testing.assert_close(gradient, torch.autograd.grad(values.sum(), w)[0])


def test_the_inverse_hessian_undoes_that_of_autograd_for_directions_of_zero_mean_over_classes():
    made, _, _ = random_objective()
    direction = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1)).double()
    direction -= direction.mean(dim=1, keepdim=True)

    def gradient(w):
        return made(w, torch.tensor([0, 1]))[1]

    _, bent = torch.autograd.functional.jvp(gradient, made.zeros(), direction)
    inverse = made.inverse_hessian(made.zeros(), torch.tensor([0, 1]))
    torch.testing.assert_close(bent @ inverse, direction, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("C", [1e3, 1e5, 1e7])
def test_the_minimum_is_reached_where_the_penalty_is_next_to_nothing(C):
    """scikit-learn's Newton solver, which factorises the whole Hessian, gets no lower."""
    episode = HARD.episode(3)
    x = episode.features[episode.index].double().numpy()
    y = episode.y.numpy()
    theirs = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-10, max_iter=1000).fit(x, y)

    def value(w, b):
        log_p = torch.from_numpy(x @ w.T + b).log_softmax(dim=-1)
        loss = -log_p[torch.arange(len(y)), episode.y].sum().item()
        return C * loss + (w**2).sum() / 2

    ours = fitted(LinearProbe(C=C), episode)
    found = value(ours.p["w"][0].double().numpy(), ours.p["b"][0].double().numpy())
    reached = value(theirs.coef_, theirs.intercept_)
    assert reached * (1 - 1e-3) < found < reached * (1 + 1e-4)


@pytest.mark.parametrize("shots", [1, 2, 3, 8])
def test_the_last_bits_of_the_features_do_not_choose_C(shots):
    """Other threads and other company change a sum in its last bits, as this noise does."""
    noise = 1 + 1e-6 * torch.randn(HARD.features.shape, generator=torch.Generator().manual_seed(0))
    for seed in (1, 2, 3):
        episode = HARD.episode(shots, seed)
        shaken = replace(episode, features=episode.features * noise)
        chosen = [fitted(LinearProbe(), one, "val").head.C for one in (episode, shaken)]
        assert chosen[0] == chosen[1]

"""Weights of a stack, beside a general solver."""

import numpy as np
import pytest
import scipy.optimize
import torch

from cliad.adapters.core.stacking import Judgement, stacking_weights

PRIOR = torch.tensor([0.1, 0.9, 4.0])


def judgement(seed, n=40, n_class=5, scales=(3.0, 1.0, 0.2)):
    """Members of different size and worth: the first follows the labels, the last is noise."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(n_class, (1, n), generator=g)
    own = torch.nn.functional.one_hot(y, n_class)[:, None].float()
    worth = torch.tensor([1.0, 0.5, 0.0])[None, :, None, None]
    noise = torch.randn(1, 3, n, n_class, generator=g)
    logits = torch.tensor(scales)[None, :, None, None] * (worth * own + noise)
    return Judgement(logits, y, torch.ones(1, n))


def objective(w, parts, deviation):
    """What the weights minimise, by NumPy in double precision."""
    total = (((w - PRIOR.numpy()) / (deviation * PRIOR.numpy())) ** 2).sum() / 2
    for part in parts:
        z = np.einsum("m,mnk->nk", w, part.logits[0].double().numpy())
        y = part.y[0].numpy()
        peak = z.max(axis=1)
        log_sum = peak + np.log(np.exp(z - peak[:, None]).sum(axis=1))
        losses = log_sum - z[np.arange(len(y)), y]
        total += (losses * part.weight[0].numpy()).sum()
    return total


@pytest.mark.parametrize("deviation", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("seeds", [(0,), (1, 2), (3, 4, 5)])
def test_they_are_where_a_general_solver_finds_the_minimum(seeds, deviation):
    parts = [judgement(seed) for seed in seeds]
    ours = stacking_weights(parts, PRIOR, deviation)[0].double().numpy()
    theirs = scipy.optimize.minimize(
        objective,
        PRIOR.double().numpy(),
        args=(parts, deviation),
        method="L-BFGS-B",
        bounds=[(0, None)] * 3,
        options={"ftol": 1e-15, "gtol": 1e-9},
    )
    np.testing.assert_allclose(ours, theirs.x, rtol=1e-3, atol=1e-4)
    assert ours.min() >= 0


def test_a_member_that_misleads_has_weight_0():
    wrong = judgement(0)
    logits = wrong.logits.clone()
    logits[:, 2] = -3 * logits[:, 0]
    weights = stacking_weights([Judgement(logits, wrong.y, wrong.weight)], PRIOR, 1.0)
    assert weights[0, 2] == 0 and weights[0, 0] > 0


def test_padding_and_company_change_nothing():
    first, second = judgement(0), judgement(1)
    alone = [stacking_weights([one], PRIOR, 1.0)[0] for one in (first, second)]
    padded = torch.cat([first.logits, 100 * torch.ones(1, 3, 6, 5)], dim=2)
    more = torch.cat([second.logits, torch.zeros(1, 3, 6, 5)], dim=2)
    zeros = torch.zeros(1, 6)
    together = Judgement(
        torch.cat([padded, more]),
        torch.cat([torch.cat([one.y, zeros.long()], dim=1) for one in (first, second)]),
        torch.cat([torch.cat([one.weight, zeros], dim=1) for one in (first, second)]),
    )
    found = stacking_weights([together], PRIOR, 1.0)
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_without_items_the_weights_are_the_prior():
    nothing = Judgement(torch.zeros(1, 3, 0, 5), torch.zeros(1, 0).long(), torch.zeros(1, 0))
    torch.testing.assert_close(stacking_weights([nothing], PRIOR, 1.0)[0], PRIOR)


def test_the_stack_is_the_weighted_sum_of_its_members():
    one = judgement(0)
    w = torch.tensor([[0.5, 0.0, 2.0]])
    expected = 0.5 * one.logits[0, 0] + 2 * one.logits[0, 2]
    torch.testing.assert_close(one.stacked(w)[0], expected)


def test_two_large_members_that_say_nearly_the_same_are_weighed():
    """In single precision their Hessian has a negative eigenvalue."""
    y = torch.zeros(1, 6, dtype=torch.long)
    wrong = torch.zeros(1, 6, 3)
    wrong[..., 1:] = torch.tensor([20000.0, 19999.5])
    logits = torch.stack([wrong, 0.999 * wrong, torch.zeros_like(wrong)], dim=1)
    part = Judgement(logits, y, torch.ones(1, 6))
    weights = stacking_weights([part], PRIOR, 1.0)[0].double().numpy()
    assert objective(weights, [part], 1.0) < objective(PRIOR.double().numpy(), [part], 1.0) / 100

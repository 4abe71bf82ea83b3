"""The stacked optimiser against torch's own, and runs that do not notice each other."""

import pytest
import torch

from cliad.adapters.base import Plan
from cliad.adapters.optimise import Optimiser, rate


def stepped(plan, start, grads, lr, decay):
    """Stacked parameters (n_run, 3, 4) after some steps of our optimiser."""
    p = {"w": start.clone().requires_grad_()}
    optimiser = Optimiser(plan, p, {"lr": torch.tensor(lr), "weight_decay": torch.tensor(decay)}, {})
    for step, grad in enumerate(grads):
        p["w"].grad = grad
        optimiser.step(step)
    return p["w"].detach()


@pytest.mark.parametrize("name, theirs", [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
@pytest.mark.parametrize("lr, decay", [([0.1, 0.1], [0.2, 0.2]), ([0.1, 0.01], [0.2, 0.0])])
def test_each_run_moves_as_torch_moves_it_alone(name, theirs, lr, decay):
    generator = torch.Generator().manual_seed(0)
    start, grads = torch.randn(2, 3, 4, generator=generator), torch.randn(5, 2, 3, 4, generator=generator)
    plan = Plan(steps=5, optimiser=name, schedule="constant")
    ours = stepped(plan, start, grads, lr, decay)
    for run in range(2):
        w = start[run].clone().requires_grad_()
        options = {"momentum": plan.momentum} if name == "sgd" else {"eps": plan.eps}
        optimiser = theirs([w], lr=lr[run], weight_decay=decay[run], **options)
        for grad in grads[:, run]:
            w.grad = grad
            optimiser.step()
        torch.testing.assert_close(ours[run], w.detach(), rtol=1e-5, atol=1e-6)


def test_rates_rise_then_fall_to_zero():
    plan = Plan(steps=100, warmup=30)
    values = [rate(plan, step, 1.0) for step in range(100)]
    assert values.index(max(values)) in (29, 30) and values[0] < 0.1 and values[-1] < 0.01
    assert [rate(plan, step, 2.0) for step in range(100)] == pytest.approx([2 * value for value in values])
    coop = Plan.epochs(64, epochs=10, batch=32, schedule="cosine-epoch", warmup=2, warmup_rate=1e-5)
    values = [rate(coop, step, 1.0) for step in range(coop.steps)]
    assert values[:2] == [1e-5] * 2 and values[2:4] == [1, 1] and values[4:6] == pytest.approx([0.9755] * 2, abs=1e-4)

"""L-BFGS for many independent problems at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PATIENCE = 3  # steps


def lbfgs(
    objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    w: Tensor,
    metric: Tensor,
    *,
    steps: int,
    memory: int = 10,
    tolerance: float = 1e-5,
) -> Tensor:
    """Minimise n_run smooth functions at once (Nocedal and Wright, Algorithm 7.5, with backtracking); none sees the others.

    objective(w, run) gives values (n,) and gradients like w (n, n_class, dim) of the runs (n,) that still move; metric
    (n_run, dim, dim) is the first guess of the inverse Hessian of a class's weights. A run stops where PATIENCE steps in a row promise
    less than the share `tolerance` of its value (half the squared Newton decrement; one poor guess of the Hessian may promise little
    far from the end), or where no step goes down any more.
    """
    done, run = w.clone(), torch.arange(len(w), device=w.device)
    value, grad = objective(w, run)
    pairs: list[tuple[Tensor, ...]] = []
    small = torch.zeros_like(run)  # how many steps in a row promised less than `tolerance`
    for _ in range(steps):
        direction = -_two_loop(grad, pairs, metric[run])
        slope = _sum(grad, direction)
        new, new_value, new_grad, moved = _backtrack(objective, run, w, value, direction, slope)
        moves, change = new - w, new_grad - grad
        curved = _sum(moves, change)
        pairs = [
            *pairs[-(memory - 1) :],
            (moves, change, torch.where(curved > 0, 1 / curved.clamp(min=1e-30), 0)),
        ]
        w, value, grad = new, new_value, new_grad
        done[run] = w
        small = torch.where(-slope > 2 * tolerance * value, 0, small + 1)
        moved &= small < PATIENCE
        if not moved.all():
            run, w, value, grad, small = (
                run[moved],
                w[moved],
                value[moved],
                grad[moved],
                small[moved],
            )
            pairs = [tuple(part[moved] for part in pair) for pair in pairs]
        if not len(run):
            break
    return done


def _sum(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(dim=1)


def _two_loop(grad: Tensor, pairs: list, metric: Tensor) -> Tensor:
    """The inverse Hessian's estimate times the gradient; the last pair scales the metric that it starts from."""
    q, alphas = grad, []
    for step, change, rho in reversed(pairs):
        alphas.append(rho * _sum(step, q))
        q = q - alphas[-1][:, None, None] * change
    q = q @ metric
    if pairs:
        step, change, rho = pairs[-1]
        length = _sum(change, change @ metric)
        q = q * torch.where(rho > 0, _sum(step, change) / length.clamp(min=1e-30), 1)[:, None, None]
    for (step, change, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        q = q + (alpha - rho * _sum(change, q))[:, None, None] * step
    return q


def _backtrack(
    objective: Callable, run: Tensor, w: Tensor, value: Tensor, direction: Tensor, slope: Tensor
):
    """Halve each run's step until its function goes down enough (Armijo); a run that never does stays where it is."""
    size = torch.ones_like(value)
    for _ in range(25):
        new = w + size[:, None, None] * direction
        new_value, new_grad = objective(new, run)
        fine = new_value <= value + 1e-4 * size * slope
        if fine.all():
            return new, new_value, new_grad, fine
        size = torch.where(fine, size, size / 2)
    keep = lambda new, old: torch.where(fine.view(-1, *[1] * (new.dim() - 1)), new, old)
    _, old_grad = objective(w, run)
    return keep(new, w), keep(new_value, value), keep(new_grad, old_grad), fine

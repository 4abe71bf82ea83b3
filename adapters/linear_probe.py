"""Linear probe (Radford et al., 2021): L2-regularised multinomial logistic regression on the image features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from cliad.adapters.base import Head, Support, Tensors, hyper


@dataclass(frozen=True)
class LinearProbe(Head):
    """Linear probe (Radford et al., 2021): logistic regression on raw image features.

    min over W (n_class, dim), b (n_class,) of  C sum_i CE(W x_i + b, y_i) + |W|^2 / 2  (their Section 3.2, as CoOp runs it),
    solved by L-BFGS, all runs at once. C is searched on validation: 7 powers of ten, then 8 bisection steps.
    NOTE[DIFF] among values of C with the same validation accuracy CoOp's script takes the first, this one the lowest loss.
    """

    C: float = hyper(1.0, "inverse strength of the L2 penalty", 1e-12, 1e12)
    max_iter: int = hyper(1000, "most L-BFGS iterations", 1)

    vary: ClassVar[frozenset[str]] = frozenset({"C"})
    space: ClassVar[dict[str, tuple]] = {"C": (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)}
    refine: ClassVar[int] = 8
    needs: ClassVar[frozenset[str]] = frozenset({"raw"})
    select: ClassVar[str] = "val"

    def bind(self, support: Support, h: Tensors) -> Tensors:
        return {"_x": support.x, "_y": support.y, "_mask": support.mask, "_onehot": support.onehot}

    def start(self, c: Tensors, h: Tensors, generators: Sequence[Generator]) -> Tensors:
        n_run, _, dim = c["_x"].shape
        count = c["_mask"].sum(dim=1)
        ridge = 1 / (h["C"] * count)  # both terms are divided by C n: mean cross-entropy + ridge |W|^2 / 2
        x = torch.cat([c["_x"], c["_mask"][..., None]], dim=-1)  # (n_run, n, dim + 1): the last weight is the intercept
        penalised = torch.cat([x.new_ones(dim), x.new_zeros(1)])

        def objective(w: Tensor) -> tuple[Tensor, Tensor]:
            """Value (n_run,) and gradient of w (n_run, n_class, dim + 1)."""
            log_p = F.log_softmax(x @ w.mT, dim=-1)
            decay = ridge[:, None, None] * penalised * w
            value = -(log_p * c["_onehot"]).sum(dim=(1, 2)) / count + (decay * w).sum(dim=(1, 2)) / 2
            residual = (log_p.exp() - c["_onehot"]) * c["_mask"][..., None] / count[:, None, None]
            return value, residual.mT @ x + decay

        w = lbfgs(objective, x.new_zeros(n_run, c["_onehot"].shape[-1], dim + 1), steps=self.max_iter)
        return {"w": w[..., :-1].contiguous(), "b": w[..., -1].contiguous()}

    def logits(self, p: Tensors, c: Tensors, h: Tensors, x: Tensor) -> Tensor:
        return x @ p["w"].mT + p["b"][:, None]


def lbfgs(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]], w: Tensor, *, steps: int, memory: int = 10, tolerance: float = 1e-5
) -> Tensor:
    """Minimise n_run smooth functions at once (Nocedal and Wright, Algorithm 7.5, with backtracking); none sees the others.

    objective(w) gives values (n_run,) and gradients like w (n_run, ...). A run stops where its largest gradient entry is under
    `tolerance`, or where no step along the direction goes down any more.
    """
    sum_of = lambda a, b: (a * b).flatten(1).sum(dim=1)
    column = lambda values: values.view(-1, *[1] * (w.dim() - 1))
    value, grad = objective(w)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    running = grad.flatten(1).abs().amax(dim=1) > tolerance
    for _ in range(steps):
        if not running.any():
            break
        direction = -_two_loop(grad, pairs, sum_of, column)
        slope = sum_of(grad, direction)
        size = running / (1 if pairs else grad.flatten(1).norm(dim=1).clamp(min=1e-12))
        new, new_value, new_grad, moved = _backtrack(objective, w, value, grad, direction, slope, size, column)
        step, change = new - w, new_grad - grad
        curvature = sum_of(step, change)
        rho = torch.where(curvature > 1e-12, 1 / curvature.clamp(min=1e-12), 0)  # 0: the pair is left out for this run
        pairs = [*pairs[-(memory - 1) :], (step, change, rho)]
        w, value, grad = new, new_value, new_grad
        running = running & moved & (grad.flatten(1).abs().amax(dim=1) > tolerance)
    return w


def _two_loop(grad: Tensor, pairs: list, sum_of: Callable, column: Callable) -> Tensor:
    """The inverse Hessian's estimate times the gradient; a run's first useful pair scales it."""
    q, alphas = grad, []
    for step, change, rho in reversed(pairs):
        alphas.append(rho * sum_of(step, q))
        q = q - column(alphas[-1]) * change
    if pairs:
        step, change, rho = pairs[-1]
        q = q * column(torch.where(rho > 0, sum_of(step, change) / sum_of(change, change).clamp(min=1e-30), 1))
    for (step, change, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        q = q + column(alpha - rho * sum_of(change, q)) * step
    return q


def _backtrack(
    objective: Callable, w: Tensor, value: Tensor, grad: Tensor, direction: Tensor, slope: Tensor, size: Tensor, column: Callable
):
    """Halve each run's step until its function goes down enough (Armijo); a run that never does stays where it is."""
    for _ in range(25):
        new = w + column(size) * direction
        new_value, new_grad = objective(new)
        fine = (new_value <= value + 1e-4 * size * slope) | (size == 0)
        if fine.all():
            break
        size = torch.where(fine, size, size / 2)
    fine = fine & (size > 0)
    keep = lambda a, b: torch.where(column(fine) if a.dim() > 1 else fine, a, b)
    return keep(new, w), keep(new_value, value), keep(new_grad, grad), fine

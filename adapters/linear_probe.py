"""Linear probe (Radford et al., 2021): L2-regularised multinomial logistic regression on the image features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from cliad.adapters.base import Head, Plan, Support, Tensors, hyper

PATIENCE = 3  # steps
DOUBLE_UP_TO = 2**24  # n * dim * n_class: a problem up to here is solved in double precision


@dataclass(frozen=True)
class LinearProbe(Head):
    """Linear probe (Radford et al., 2021): logistic regression on raw image features.

    min over W (n_class, dim), b (n_class,) of  C sum_i CE(W x_i + b, y_i) + |W|^2 / 2  (their Section 3.2, as CoOp runs it),
    solved by L-BFGS, all runs at once. C is searched on validation: 7 powers of ten, then 8 bisection steps.
    NOTE[DIFF] among values of C with the same validation accuracy CoOp's script takes the largest; this one takes the lowest loss,
    and the smallest C where losses are equal.
    """

    C: float = hyper(1.0, "inverse strength of the L2 penalty", 1e-12, 1e12)
    max_iter: int = hyper(300, "most L-BFGS iterations", 1)
    tol: float = hyper(1e-3, "share of the objective that a step must still promise; a thousandth of it in double precision", 0)

    vary: ClassVar[frozenset[str]] = frozenset({"C"})
    space: ClassVar[dict[str, tuple]] = {"C": (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)}
    refine: ClassVar[int] = 8
    needs: ClassVar[frozenset[str]] = frozenset({"raw"})
    select: ClassVar[str] = "val"

    def plan(self, n: int, n_class: int) -> Plan:
        return Plan(batch=n)  # no steps: `start` solves it; runs of equal n are solved together

    def bind(self, support: Support, h: Tensors) -> Tensors:
        return {"_x": support.x, "_y": support.y, "_mask": support.mask, "_onehot": support.onehot}

    def start(self, c: Tensors, h: Tensors, generators: Sequence[Generator]) -> Tensors:
        dim, n_class = c["_x"].shape[-1], c["_onehot"].shape[-1]
        small = c["_x"][0].numel() * n_class <= DOUBLE_UP_TO
        mask, onehot = (c[name].double() if small else c[name].to(c["_x"]) for name in ("_mask", "_onehot"))
        count = mask.sum(dim=1)
        ridge = 1 / (h["C"].to(count) * count)  # both terms are divided by C n: mean cross-entropy + ridge |W|^2 / 2
        x, basis = c["_x"].to(mask), None
        if x.shape[1] < dim:  # the weights lie in the span of the items: x = x' Q, |W' Q| = |W'|
            basis, x = (part.mT for part in torch.linalg.qr(x.mT))
            dim = x.shape[2]
        x = torch.cat([x, mask[..., None]], dim=-1)  # (n_run, n, dim + 1): the last weight is the intercept
        decay = ridge[:, None] * torch.cat([x.new_ones(dim), x.new_zeros(1)])  # (n_run, dim + 1)

        def objective(w: Tensor, run: Tensor) -> tuple[Tensor, Tensor]:
            """Value (n,) and gradient of w (n, n_class, dim + 1) for the runs (n,)."""
            log_p = F.log_softmax(x[run] @ w.mT, dim=-1)
            shrunk = decay[run, None] * w
            value = -(log_p * onehot[run]).sum(dim=(1, 2)) / count[run] + (shrunk * w).sum(dim=(1, 2)) / 2
            residual = (log_p.exp() - onehot[run]) * mask[run, :, None] / count[run, None, None]
            return value, residual.mT @ x[run] + shrunk

        # the Hessian's first guess: softmax even over classes, (x x^T / n) / n_class + ridge
        curvature = x.mT @ x / (count * n_class)[:, None, None]
        jitter = 1e-8 * curvature.diagonal(dim1=1, dim2=2).sum(dim=1, keepdim=True)
        curvature = curvature + torch.diag_embed(decay + jitter)
        metric = torch.cholesky_inverse(torch.linalg.cholesky(curvature))
        w = lbfgs(
            objective, x.new_zeros(len(x), n_class, dim + 1), metric, steps=self.max_iter, tolerance=self.tol * (1e-3 if small else 1)
        )
        w, b = w[..., :-1], w[..., -1].to(c["_x"])
        return {"w": (w if basis is None else w @ basis).to(c["_x"]).contiguous(), "b": b.contiguous()}

    def logits(self, p: Tensors, c: Tensors, h: Tensors, x: Tensor) -> Tensor:
        return x @ p["w"].mT + p["b"][:, None]


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
        pairs = [*pairs[-(memory - 1) :], (moves, change, torch.where(curved > 0, 1 / curved.clamp(min=1e-30), 0))]
        w, value, grad = new, new_value, new_grad
        done[run] = w
        small = torch.where(-slope > 2 * tolerance * value, 0, small + 1)
        moved &= small < PATIENCE
        if not moved.all():
            run, w, value, grad, small = run[moved], w[moved], value[moved], grad[moved], small[moved]
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


def _backtrack(objective: Callable, run: Tensor, w: Tensor, value: Tensor, direction: Tensor, slope: Tensor):
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

"""L-BFGS for many independent problems at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cliad.adapters.core.ops import on_host, per_run

REFRESH = 20  # steps
MEMORY = 10  # past steps that the guess of the Hessian uses
PATIENCE = 3  # steps
MOST_HALVINGS = 25
ARMIJO = 1e-4  # share of the promised descent that a step must bring (Nocedal and Wright, Eq. 3.4)
# Numbers held for each logit of the support, by the heads that take all items in each step: the
# linear probe 23, LP++ 26 (benchmarks/scale.py, 1,000 classes x 16).
FLOATS_PER_LOGIT = 26
TINY = 1e-30  # keeps a divisor above zero

# Weights w (n, n_class, dim) and run numbers (n,) -> values (n,) and gradients like w.
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# Weights w (n, n_class, dim) and run numbers (n,) -> (n, dim, dim).
Metric = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class _Point:
    """Where the runs are: weights and gradients (n, n_class, dim), function values (n,)."""

    w: Tensor
    value: Tensor
    grad: Tensor

    def only(self, still: Tensor) -> _Point:
        """The runs at the places `still` (n_still,)."""
        return _Point(self.w[still], self.value[still], self.grad[still])


@dataclass(frozen=True, eq=False)
class _Pair:
    """What one step taught about the Hessian, in the letters of Nocedal and Wright (Section 7.2).

    s (n, n_class, dim): the step. y (n, n_class, dim): the change of the gradient along it.
    rho (n,): 1 / (s . y), or 0 where the function did not curve upwards: such a pair does nothing.
    """

    s: Tensor
    y: Tensor
    rho: Tensor

    @classmethod
    def between(cls, old: _Point, new: _Point) -> _Pair:
        """The pair of the step from one point to the next."""
        s = new.w - old.w
        y = new.grad - old.grad
        curvature = _inner(s, y)
        return cls(s, y, torch.where(curvature > 0, 1 / curvature.clamp(min=TINY), 0))

    def only(self, still: Tensor) -> _Pair:
        """The runs at the places `still` (n_still,)."""
        return _Pair(self.s[still], self.y[still], self.rho[still])


def lbfgs(
    objective: Objective,
    w: Tensor,
    metric_at: Metric,
    *,
    steps: int,
    tolerance: float = 1e-5,
) -> Tensor:
    """Minimise n_run smooth functions at once (Nocedal and Wright, Algorithm 7.5, backtracking).

    No run depends on another. A run stops where PATIENCE steps in a row promise less than the share
    `tolerance` of its value (half the squared Newton decrement; one poor guess of the Hessian may
    promise little far from the end), or where no step goes down any more.

    Args:
        objective: values and gradients of the runs that still move.
        w: (n_run, n_class, dim), where the search starts.
        metric_at: the guess of the inverse Hessian of a class's weights that L-BFGS starts from,
            taken anew at every REFRESH-th step. Where a loss is nearly 0, curvature shrinks by
            orders of magnitude along the way: with the guess at the start alone, the linear probe
            is far from its minimum after 300 steps for C above 1000, with fresh ones it is there.
        steps: the most steps.
        tolerance: see above.
    """
    result = w.clone()
    # `run` (n,) numbers the runs that still move; all that follows has this axis
    run = torch.arange(len(w), device=w.device)
    point = _Point(w, *objective(w, run))
    pairs: list[_Pair] = []
    small = torch.zeros_like(run)  # how many steps in a row promised less than `tolerance`
    for step in range(steps):
        if step % REFRESH == 0:
            metric = metric_at(point.w, run)
            pairs = []  # they corrected the old guess
        direction = -_inverse_hessian_times(point.grad, pairs, metric)
        slope = _inner(point.grad, direction)
        new, moved = _backtrack(objective, run, point, direction, slope)
        pairs = [*pairs[-(MEMORY - 1) :], _Pair.between(point, new)]
        # along a Newton direction the quadratic model promises a descent of -slope / 2
        small = torch.where(-slope > 2 * tolerance * point.value, 0, small + 1)
        point = new
        result[run] = point.w
        moving = on_host(moved & (small < PATIENCE))
        if not all(moving):
            kept = [place for place, is_moving in enumerate(moving) if is_moving]
            if not kept:
                break
            still = torch.tensor(kept, device=w.device)
            run = run[still]
            small = small[still]
            point = point.only(still)
            pairs = [pair.only(still) for pair in pairs]
            metric = metric[still]
    return result


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product (n,) of each run's tensors (n, n_class, dim)."""
    return (a * b).flatten(1).sum(dim=1)


def _inverse_hessian_times(grad: Tensor, pairs: Sequence[_Pair], metric: Tensor) -> Tensor:
    """H g: the estimate H of the inverse Hessian times the gradient g (n, n_class, dim).

    Nocedal and Wright, Algorithm 7.4, the two-loop recursion. metric (n, dim, dim) is the H_0 of
    each class's weights; pairs are from old to new.
    """
    # BFGS updates H with each pair (their Eq. 7.16), where V = I - rho y s^T:
    #     H_new = V^T H_old V + rho s s^T
    # H itself would have (n_class * dim)^2 numbers a run, but H_new g needs vectors only:
    #     q = V g = g - alpha y                                 with alpha = rho (s . g)
    #     r = H_old q                                           the same problem, one pair less
    #     H_new g = V^T r + rho s (s . g) = r + (alpha - beta) s        with beta = rho (y . r)
    # so that a loop from the newest pair to the oldest makes q, and a loop back makes r.

    # 1. From the newest pair to the oldest: q (n, n_class, dim), and each pair's alpha (n,).
    q = grad
    alphas = []
    for pair in reversed(pairs):
        alpha = pair.rho * _inner(pair.s, q)
        alphas.append(alpha)
        q = q - per_run(alpha, q) * pair.y
    # 2. r = H_0 q. The metric has the shape of the curvature but not its size: the newest pair
    #    scales it by (s . y) / (y . metric y), their Eq. 7.20 with the metric for the identity.
    r = q @ metric
    if pairs:
        newest = pairs[-1]
        length = _inner(newest.y, newest.y @ metric)
        ratio = _inner(newest.s, newest.y) / length.clamp(min=TINY)
        r = r * per_run(torch.where(newest.rho > 0, ratio, 1), r)
    # 3. From the oldest pair to the newest.
    for pair, alpha in zip(pairs, reversed(alphas), strict=True):
        beta = pair.rho * _inner(pair.y, r)
        r = r + per_run(alpha - beta, r) * pair.s
    return r


def _backtrack(
    objective: Objective, run: Tensor, point: _Point, direction: Tensor, slope: Tensor
) -> tuple[_Point, Tensor]:
    """Halve each run's step until its function goes down enough (Armijo's condition).

    slope (n,) is the derivative along the direction. Returns the new point and which runs (n,) have
    moved; a run that never goes down enough stays where it is.
    """
    size = torch.ones_like(point.value)
    for _ in range(MOST_HALVINGS):
        new_w = point.w + per_run(size, point.w) * direction
        new = _Point(new_w, *objective(new_w, run))
        fine = new.value <= point.value + ARMIJO * size * slope
        if all(on_host(fine)):
            return new, fine
        size = torch.where(fine, size, size / 2)
    rows = per_run(fine, new.w)
    w = torch.where(rows, new.w, point.w)
    value = torch.where(fine, new.value, point.value)
    grad = torch.where(rows, new.grad, point.grad)
    return _Point(w, value, grad), fine

"""Weights of a stack: how much each member's logits count, from items that none had seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cliad.adapters.core.ops import cholesky_solve, where_all_works

# On the diagonal of the Hessian, in summed squares of margins: what single precision has lost in
# their difference from squared means may leave it indefinite. The minimum stays where it is.
DAMPING = 1e-6
ROUNDS = 15  # of Newton's method; 5 to 10 suffice
STEP_SIZES = (1.0, 0.5, 0.25, 0.1, 0.02)  # tried in this order until the value falls


@dataclass(frozen=True, eq=False)
class Judgement:
    """What members said of items that they had not seen.

    logits (n_run, n_member, n, n_class), labels y (n_run, n), weight (n_run, n): 0 in the padding.
    """

    logits: Tensor
    y: Tensor
    weight: Tensor

    def stacked(self, weights: Tensor) -> Tensor:
        """The logits (n_run, n, n_class) of the stack, from weights (n_run, n_member)."""
        return torch.einsum("rm,rmnk->rnk", weights, self.logits)


def stacking_weights(judgements: Sequence[Judgement], prior: Tensor, deviation: float) -> Tensor:
    """The most probable weights w >= 0 (n_run, n_member), where this is least:

        sum_i CE(sum_m w_m z_mi, y_i) + sum_m ((w_m - prior_m) / (deviation prior_m))^2 / 2

    over the items of all judgements; the prior of each weight is normal. prior (n_member,).
    """
    # It is convex. Newton's step from w is -H^-1 g, with p_i the softmax of item i, and averages
    # over it:
    #   g_a = sum_i (mean_p z_ai - z_ai[y_i]) + (w_a - prior_a) / (deviation prior_a)^2
    #   H_ab = sum_i (mean_p z_ai z_bi - mean_p z_ai mean_p z_bi) + [a = b] / (deviation prior_a)^2
    # A weight at 0 whose slope points below 0 is held there (projected Newton).
    problem = [_Part.of(judgement) for judgement in judgements]
    centre = where_all_works(prior).double()
    curvature = 1 / (deviation * centre).square()
    w = centre.expand(len(judgements[0].y), -1)
    for _ in range(ROUNDS):
        grad = (w - centre) * curvature
        hessian = torch.diag_embed(curvature.expand_as(w))
        for part in problem:
            of_part = part.derivatives(w)
            grad = grad + of_part[0]
            hessian = hessian + of_part[1]
        free = ((w > 0) | (grad < 0)).to(w)
        # Held weights have a row and a column of the identity, and no slope.
        held = torch.diag_embed(1 - free)
        hessian = hessian * free[:, :, None] * free[:, None, :] + held
        step = cholesky_solve(hessian, (grad * free)[..., None])[..., 0]
        w = _descend(problem, w, step, centre, curvature)
    return w.to(judgements[0].logits)


def _descend(
    problem: Sequence[_Part], w: Tensor, step: Tensor, centre: Tensor, curvature: Tensor
) -> Tensor:
    """w - size * step, not below 0, of the first size at which a run's value falls; else w."""

    def value_at(weights: Tensor) -> Tensor:
        total = ((weights - centre).square() * curvature).sum(dim=1) / 2
        for part in problem:
            total = total + part.loss(weights)
        return total

    best = w
    value = value_at(w)
    found = torch.zeros_like(value, dtype=torch.bool)
    for size in STEP_SIZES:
        new = (w - size * step).clamp(min=0)
        falls = (value_at(new) < value) & ~found
        best = torch.where(falls[:, None], new, best)
        found = found | falls
    return best


@dataclass(frozen=True, eq=False)
class _Part:
    """A judgement as margins over the own class, in double precision.

    margins (n_run, n_member, n, n_class): z_m - z_m[y], so that the loss of an item is the log of
    the sum of their exponentials. weight (n_run, n).
    """

    margins: Tensor
    weight: Tensor

    @classmethod
    def of(cls, judgement: Judgement) -> _Part:
        logits = where_all_works(judgement.logits)
        y = where_all_works(judgement.y)[:, None, :, None]
        own = logits.gather(3, y.expand(-1, logits.shape[1], -1, 1))
        return cls(logits - own, where_all_works(judgement.weight).double())

    def loss(self, w: Tensor) -> Tensor:
        """The summed cross-entropy (n_run,)."""
        return (self._stacked(w).logsumexp(dim=-1) * self.weight).sum(dim=1)

    def derivatives(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (n_run, n_member) and Hessian (n_run, n_member, n_member) of `loss`."""
        p = self._stacked(w).softmax(dim=-1).to(self.margins)  # (n_run, n, n_class)
        mean = torch.einsum("rmnk,rnk->rmn", self.margins, p).double()
        n_member = self.margins.shape[1]
        products = []
        for member in range(n_member):
            of_member = self.margins[:, member] * p
            products.append(torch.einsum("rmnk,rnk->rmn", self.margins, of_member))
        second = torch.stack(products, dim=1).double()  # (n_run, n_member, n_member, n)
        covariance = second - mean[:, :, None] * mean[:, None]
        squares = second.diagonal(dim1=1, dim2=2)  # (n_run, n, n_member)
        damping = DAMPING * torch.einsum("rnm,rn->rm", squares, self.weight)
        hessian = torch.einsum("rabn,rn->rab", covariance, self.weight)
        return (
            torch.einsum("rmn,rn->rm", mean, self.weight),
            hessian + torch.diag_embed(damping),
        )

    def _stacked(self, w: Tensor) -> Tensor:
        return torch.einsum("rm,rmnk->rnk", w.to(self.margins), self.margins).double()

"""Penalised logistic regression of many runs at once: what its heads share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.lbfgs import lbfgs
from cliad.adapters.core.ops import where_all_works

DOUBLE_UP_TO = 2**24  # n * dim * n_class: a problem up to here is solved in double precision


def items(support: Support) -> Tensors:
    """The support as constants that serve training only: "_x", "_mask", "_onehot"."""
    return {"_x": support.x, "_mask": support.mask, "_onehot": support.onehot}


def solve(
    x: Tensor,
    *,
    onehot: Tensor,
    mask: Tensor,
    C: Tensor,
    bias_C: Tensor | None = None,
    offset: Tensor | None = None,
    steps: int,
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    """The W (n_run, n_class, dim) and b (n_run, n_class) that minimise, in each run,

        sum_i CE(o_i + W x_i + b, y_i) + |W|^2 / (2 C) + |b|^2 / (2 bias_C)

    They are on a device that has double precision, and in it where the problem is small.

    Args:
        x: items (n_run, n, dim), zeros in the padding.
        onehot: labels (n_run, n, n_class), zeros in the padding.
        mask: (n_run, n), 1 for an item and 0 for padding.
        C: (n_run,), inverse strength of the penalty on W.
        bias_C: (n_run,), of that on b; None, or infinity, for none.
        offset: o (n_run, n, n_class), logits that are there before; None for none.
        steps: the most steps of L-BFGS.
        tolerance: of L-BFGS in single precision; in double it is a thousandth of that.
    """
    in_double = x[0].numel() * onehot.shape[-1] <= DOUBLE_UP_TO
    dtype = torch.float64 if in_double else x.dtype
    reduced, basis = reduced_basis(where_all_works(x).to(dtype))
    objective = Objective.of(
        reduced,
        onehot=where_all_works(onehot).to(dtype),
        mask=where_all_works(mask).to(dtype),
        C=where_all_works(C).to(dtype),
        bias_C=None if bias_C is None else where_all_works(bias_C).to(dtype),
        offset=None if offset is None else where_all_works(offset).to(dtype),
    )
    solution = lbfgs(
        objective,
        objective.zeros(),
        objective.inverse_hessian,
        steps=steps,
        tolerance=tolerance * (1e-3 if in_double else 1),
    )
    return in_full_space(solution[..., :-1], basis), solution[..., -1]


def reduced_basis(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The items in as few dimensions as they span, and the basis; x itself and None for n >= dim.

    x (n_run, n, dim) becomes (n_run, n, n); the basis (n_run, n, dim) has orthonormal rows.
    """
    # A part of W that is orthogonal to all items changes no logit and adds to |W|^2, so the best W
    # has none: its rows lie in the span of the items, of at most n dimensions.
    #   x^T = Q R           Q (n_run, dim, n) with orthonormal columns, R (n_run, n, n)
    #   x = R^T Q^T = x' B  with x' = R^T, the items, and B = Q^T, the basis
    # For W = W' B the logits are x W^T = x' W'^T, and |W| = |W'|: the same problem for W'
    # (n_class, n), which is much smaller where few shots meet wide features.
    if x.shape[1] >= x.shape[2]:
        return x, None
    q, r = torch.linalg.qr(x.mT)
    return r.mT, q.mT


def in_full_space(w: Tensor, basis: Tensor | None) -> Tensor:
    """The weights W = W' B (n_run, n_class, dim) of weights W' of `reduced_basis`."""
    return w if basis is None else w @ basis


@dataclass(frozen=True, eq=False)
class Objective:
    """The function that a run of `solve` minimises, of weights w (n_class, dim + 1):

        sum_i CE(o_i + w x_i, y_i) / n + sum_k sum_d decay_d w_kd^2 / 2

    It is that of `solve` divided by n, so that its size hardly depends on n.

    x (n_run, n, dim + 1): items with a 1 behind them, so that the last weight is the intercept;
    onehot (n_run, n, n_class): labels; mask (n_run, n): 1, or 0 for padding, whose x and onehot are
    zeros; count (n_run,): n, the items of each run; decay (n_run, dim + 1);
    offset: o (n_run, n, n_class), or None where it is 0.
    """

    x: Tensor
    onehot: Tensor
    mask: Tensor
    count: Tensor
    decay: Tensor
    offset: Tensor | None = None

    @classmethod
    def of(
        cls,
        x: Tensor,
        *,
        onehot: Tensor,
        mask: Tensor,
        C: Tensor,
        bias_C: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> Objective:
        """The objective on items x (n_run, n, dim), see `solve`."""
        count = mask.sum(dim=1)
        of_weights = (1 / (C * count))[:, None].expand(-1, x.shape[2])
        of_intercept = torch.zeros_like(C) if bias_C is None else 1 / (bias_C * count)
        return cls(
            x=torch.cat([x, mask[..., None]], dim=-1),
            onehot=onehot,
            mask=mask,
            count=count,
            decay=torch.cat([of_weights, of_intercept[:, None]], dim=1),
            offset=offset,
        )

    def zeros(self) -> Tensor:
        """Weights to start from, (n_run, n_class, dim + 1)."""
        n_run, _, width = self.x.shape
        return self.x.new_zeros(n_run, self.onehot.shape[-1], width)

    def logits(self, w: Tensor, run: Tensor) -> Tensor:
        """Logits (n, n_item, n_class) at weights w (n, n_class, dim + 1) of the runs (n,)."""
        logits = self.x[run] @ w.mT
        return logits if self.offset is None else logits + self.offset[run]

    def __call__(self, w: Tensor, run: Tensor) -> tuple[Tensor, Tensor]:
        """Values (n,) and gradients (n, n_class, dim + 1) at weights w of the runs (n,)."""
        x = self.x[run]
        onehot = self.onehot[run]
        count = self.count[run]
        log_p = F.log_softmax(self.logits(w, run), dim=-1)  # (n, n_item, n_class)
        decayed = self.decay[run, None] * w  # the penalty's gradient

        # CE is -log p of the own class; rows of zeros in onehot leave the padding out.
        cross_entropy = -(log_p * onehot).sum(dim=(1, 2)) / count
        value = cross_entropy + (decayed * w).sum(dim=(1, 2)) / 2

        # In the logits the gradient of CE is p - onehot, and a logit's gradient in w_k is x_i. In
        # the padding p is not 0, so it is masked.
        residual = (log_p.exp() - onehot) * self.mask[run, :, None] / count[:, None, None]
        return value, residual.mT @ x + decayed

    def inverse_hessian(self, w: Tensor, run: Tensor) -> Tensor:
        """About the inverse Hessian for the weights of one class, (n, dim + 1, dim + 1).

        It is taken at weights w (n, n_class, dim + 1) of the runs (n,), and is one for all classes.
        """
        # With p_i the softmax of item i, the Hessian between the weights of classes k and l is
        #   sum_i (p_ik [k = l] - p_ik p_il) x_i x_i^T / n + [k = l] diag(decay)
        # Of its blocks those on the diagonal, k = l, count most, and of these the mean over classes
        # is taken, so that one matrix of dim + 1 rows is inverted and not n_class of them:
        #   H = sum_i s_i x_i x_i^T / n + diag(decay),   s_i = sum_k p_ik (1 - p_ik) / (n_class - 1)
        # The divisor n_class - 1 instead of n_class makes it exact where all logits are equal (at
        # w = 0 without an offset) for all directions that sum to 0 over classes, as every step from
        # there does: the residuals of an item sum to 0.
        x = self.x[run]
        p = self.logits(w, run).softmax(dim=-1)  # (n, n_item, n_class)
        n_class = p.shape[-1]
        s = (p * (1 - p)).sum(dim=-1) / max(n_class - 1, 1)  # (n, n_item)
        s = s / self.count[run, None]
        # In the padding x is a row of zeros.
        hessian = x.mT @ (s[..., None] * x)
        # A hundred-millionth of its trace on the diagonal, so that it is positive definite where
        # the decay is tiny and items are dependent.
        jitter = 1e-8 * hessian.diagonal(dim1=1, dim2=2).sum(dim=1, keepdim=True)
        hessian = hessian + torch.diag_embed(self.decay[run] + jitter)
        return torch.cholesky_inverse(torch.linalg.cholesky(hessian))

"""Linear probe (Radford et al., 2021): logistic regression on the image features, by L-BFGS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Hypers, Plan, hyper
from cliad.adapters.core.lbfgs import lbfgs
from cliad.adapters.core.ops import where_all_works

DOUBLE_UP_TO = 2**24  # n * dim * n_class: a problem up to here is solved in double precision


@dataclass(frozen=True)
class LinearProbe(Head):
    """Linear probe (Radford et al., 2021): logistic regression on raw image features.

    The minimum over W (n_class, dim) and b (n_class,) of

        C sum_i CE(W x_i + b, y_i) + |W|^2 / 2

    (their Section 3.2, as CoOp runs it). L-BFGS finds it for all runs at once. C is searched on
    validation: 7 powers of ten, then 8 bisection steps.
    NOTE[DIFF] among values of C with the same validation accuracy CoOp's script takes the largest;
    this one takes the lowest loss, and the smallest C where losses are equal.
    """

    C: float = hyper(1.0, "inverse strength of the L2 penalty", 1e-12, 1e12)
    max_iter: int = hyper(300, "most L-BFGS iterations", 1)
    tol: float = hyper(1e-3, "relative tolerance of L-BFGS (divided by 1000 in float64)", 0)

    vary: ClassVar[frozenset[str]] = frozenset({"C"})
    space: ClassVar[dict[str, tuple]] = {"C": (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)}
    refine: ClassVar[int] = 8
    needs: ClassVar[frozenset[str]] = frozenset({"raw"})
    select: ClassVar[str] = "val"

    def plan(self, n: int, shots: float) -> Plan:
        return Plan(batch=n)  # no steps: `start` solves it; runs of equal n are solved together

    def bind(self, support: Support, h: Hypers) -> Tensors:
        return {"_x": support.x, "_mask": support.mask, "_onehot": support.onehot}

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        n_class = c["_onehot"].shape[-1]
        in_double = c["_x"][0].numel() * n_class <= DOUBLE_UP_TO
        dtype = torch.float64 if in_double else c["_x"].dtype

        x, basis = reduced_basis(where_all_works(c["_x"]).to(dtype))
        objective = Objective.of(
            x,
            onehot=where_all_works(c["_onehot"]).to(dtype),
            mask=where_all_works(c["_mask"]).to(dtype),
            C=where_all_works(h["C"]).to(dtype),
        )
        solution = lbfgs(
            objective,
            objective.zeros(),
            objective.inverse_hessian,
            steps=self.max_iter,
            tolerance=self.tol * (1e-3 if in_double else 1),
        )
        w = in_full_space(solution[..., :-1], basis)
        b = solution[..., -1]
        return {
            "w": w.to(c["_x"]).contiguous(),
            "b": b.to(c["_x"]).contiguous(),
        }

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        return x @ p["w"].mT + p["b"][:, None]


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
    """The function that a run of the linear probe minimises, of weights w (n_class, dim + 1):

        sum_i CE(w x_i, y_i) / n + sum_k sum_d decay_d w_kd^2 / 2

    It is the probe's, divided by C n, so that its size hardly depends on n and C.

    x (n_run, n, dim + 1): items with a 1 behind them, so that the last weight is the intercept;
    onehot (n_run, n, n_class): labels; mask (n_run, n): 1, or 0 for padding, whose x and onehot are
    zeros; count (n_run,): n, the items of each run; decay (n_run, dim + 1).
    """

    x: Tensor
    onehot: Tensor
    mask: Tensor
    count: Tensor
    decay: Tensor

    @classmethod
    def of(cls, x: Tensor, *, onehot: Tensor, mask: Tensor, C: Tensor) -> Objective:
        """The objective on items x (n_run, n, dim), with C (n_run,)."""
        count = mask.sum(dim=1)
        ridge = 1 / (C * count)
        # The intercept has no penalty.
        penalised = torch.cat([x.new_ones(x.shape[2]), x.new_zeros(1)])
        return cls(
            x=torch.cat([x, mask[..., None]], dim=-1),
            onehot=onehot,
            mask=mask,
            count=count,
            decay=ridge[:, None] * penalised,
        )

    def zeros(self) -> Tensor:
        """Weights to start from, (n_run, n_class, dim + 1)."""
        n_run, _, width = self.x.shape
        return self.x.new_zeros(n_run, self.onehot.shape[-1], width)

    def __call__(self, w: Tensor, run: Tensor) -> tuple[Tensor, Tensor]:
        """Values (n,) and gradients (n, n_class, dim + 1) at weights w of the runs (n,)."""
        x = self.x[run]
        onehot = self.onehot[run]
        count = self.count[run]
        log_p = F.log_softmax(x @ w.mT, dim=-1)  # (n, n_item, n_class)
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
        # The divisor n_class - 1 instead of n_class makes it exact at w = 0 for all directions that
        # sum to 0 over classes, as every step from there does: the residuals of an item sum to 0.
        x = self.x[run]
        p = (x @ w.mT).softmax(dim=-1)  # (n, n_item, n_class)
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

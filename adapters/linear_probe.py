"""Linear probe (Radford et al., 2021): L2-regularised multinomial logistic regression on the image features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Plan, hyper
from cliad.adapters.core.lbfgs import lbfgs

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
    tol: float = hyper(
        1e-3,
        "share of the objective that a step must still promise; a thousandth of it in double precision",
        0,
    )

    vary: ClassVar[frozenset[str]] = frozenset({"C"})
    space: ClassVar[dict[str, tuple]] = {"C": (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)}
    refine: ClassVar[int] = 8
    needs: ClassVar[frozenset[str]] = frozenset({"raw"})
    select: ClassVar[str] = "val"

    def plan(self, n: int, shots: float) -> Plan:
        return Plan(batch=n)  # no steps: `start` solves it; runs of equal n are solved together

    def bind(self, support: Support, h: Tensors) -> Tensors:
        return {"_x": support.x, "_y": support.y, "_mask": support.mask, "_onehot": support.onehot}

    def start(self, c: Tensors, h: Tensors, generators: Sequence[Generator]) -> Tensors:
        dim, n_class = c["_x"].shape[-1], c["_onehot"].shape[-1]
        small = c["_x"][0].numel() * n_class <= DOUBLE_UP_TO
        mask, onehot = (
            c[name].double() if small else c[name].to(c["_x"]) for name in ("_mask", "_onehot")
        )
        count = mask.sum(dim=1)
        ridge = 1 / (
            h["C"].to(count) * count
        )  # both terms are divided by C n: mean cross-entropy + ridge |W|^2 / 2
        x, basis = c["_x"].to(mask), None
        if x.shape[1] < dim:  # the weights lie in the span of the items: x = x' Q, |W' Q| = |W'|
            basis, x = (part.mT for part in torch.linalg.qr(x.mT))
            dim = x.shape[2]
        x = torch.cat(
            [x, mask[..., None]], dim=-1
        )  # (n_run, n, dim + 1): the last weight is the intercept
        decay = ridge[:, None] * torch.cat([x.new_ones(dim), x.new_zeros(1)])  # (n_run, dim + 1)

        def objective(w: Tensor, run: Tensor) -> tuple[Tensor, Tensor]:
            """Value (n,) and gradient of w (n, n_class, dim + 1) for the runs (n,)."""
            log_p = F.log_softmax(x[run] @ w.mT, dim=-1)
            shrunk = decay[run, None] * w
            value = (
                -(log_p * onehot[run]).sum(dim=(1, 2)) / count[run]
                + (shrunk * w).sum(dim=(1, 2)) / 2
            )
            residual = (log_p.exp() - onehot[run]) * mask[run, :, None] / count[run, None, None]
            return value, residual.mT @ x[run] + shrunk

        # the Hessian's first guess: softmax even over classes, (x x^T / n) / n_class + ridge
        curvature = x.mT @ x / (count * n_class)[:, None, None]
        jitter = 1e-8 * curvature.diagonal(dim1=1, dim2=2).sum(dim=1, keepdim=True)
        curvature = curvature + torch.diag_embed(decay + jitter)
        metric = torch.cholesky_inverse(torch.linalg.cholesky(curvature))
        w = lbfgs(
            objective,
            x.new_zeros(len(x), n_class, dim + 1),
            metric,
            steps=self.max_iter,
            tolerance=self.tol * (1e-3 if small else 1),
        )
        w, b = w[..., :-1], w[..., -1].to(c["_x"])
        return {
            "w": (w if basis is None else w @ basis).to(c["_x"]).contiguous(),
            "b": b.contiguous(),
        }

    def logits(self, p: Tensors, c: Tensors, h: Tensors, x: Tensor) -> Tensor:
        return x @ p["w"].mT + p["b"][:, None]

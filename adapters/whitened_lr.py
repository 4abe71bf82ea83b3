"""Whitened logistic regression: a MAP linear probe on top of zero-shot, in GDA's metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Hypers, Plan, hyper
from cliad.adapters.core.logistic import Problem, solve
from cliad.adapters.core.ops import where_all_works
from cliad.adapters.core.texts import offset_constants
from cliad.adapters.gda import shared_covariance


@dataclass(frozen=True)
class WhitenedLr(Head):
    """Whitened logistic regression: a Bayesian linear probe whose prior is zero-shot and GDA.

    logits = s f T^T + V L^-1 (f - m) + b, where m is the mean of the unit support rows f, and L L^T
    the covariance within classes that GDA (Wang et al., ICLR 2024, Section 3.2) estimates. V
    (n_class, dim) and b (n_class,) minimise the cross-entropy of the support
    + strength |V|^2 / 2 + bias_strength |b|^2 / 2: the most probable ones where V is normal about
    zero, so that without images the head is zero-shot. Without texts the first term is left out.
    The recipe is ours.
    """

    strength: float = hyper(1.0, "penalty on the weights, in the whitened feature", 1e-12, 1e12)
    bias_strength: float = hyper(0.1, "penalty on the biases", 0, 1e12)
    max_iter: int = hyper(60, "most L-BFGS iterations", 1)
    tol: float = hyper(1e-3, "relative tolerance of L-BFGS (divided by 1000 in float64)", 0)

    vary: ClassVar[frozenset[str]] = frozenset({"strength", "bias_strength"})
    space: ClassVar[dict[str, tuple]] = {"strength": (1.0, 10.0, 0.1, 0.01)}
    needs: ClassVar[frozenset[str]] = frozenset()
    optional_inputs: ClassVar[frozenset[str]] = frozenset({"text"})

    def plan(self, n: int, shots: float) -> Plan:
        return Plan(batch=n)  # no steps: `start` solves it; runs of equal n are solved together

    def bind(self, support: Support, h: Hypers) -> Tensors:
        factors = []
        for run, n in enumerate(support.counts):
            covariance = shared_covariance(support.x[run, :n], support.y[run, :n], support.n_class)
            factors.append(torch.linalg.cholesky(where_all_works(covariance)))
        return offset_constants(support) | {"_factor": torch.stack(factors).to(support.x)}

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        x = c["_x"]
        mask = c["_mask"][..., None]
        mean = (x * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
        # z = L^-1 (x - m): items in rows, hence the transposed equation. L may be any root of the
        # covariance: another one turns z and V alike, and turns do not change |V|.
        factor = where_all_works(c["_factor"])
        centred = where_all_works((x - mean) * mask)
        z = torch.linalg.solve_triangular(factor.mT, centred, upper=True, left=False).to(x)
        v, b = solve(
            Problem(
                z,
                onehot=c["_onehot"],
                mask=c["_mask"],
                strength=h["strength"],
                bias_strength=h["bias_strength"],
                offset=c["_offset"],
            ),
            steps=self.max_iter,
            tolerance=self.tol,
        )
        # V L^-1 (x - m) + b is linear in x: one map W, and b - W m.
        solved = torch.linalg.solve_triangular(factor, where_all_works(v), upper=False, left=False)
        w = solved.to(x)
        b = b - (w @ mean.mT)[..., 0]
        return {"w": w + c["_text_weights"], "b": b}

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        return x @ p["w"].mT + p["b"][:, None]

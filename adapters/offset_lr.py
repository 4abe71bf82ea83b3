"""Offset logistic regression: a MAP linear probe on top of zero-shot, for very few images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Hypers, Plan, hyper
from cliad.adapters.core.logistic import Problem, solve
from cliad.adapters.core.texts import offset_constants


@dataclass(frozen=True)
class OffsetLr(Head):
    """Offset logistic regression: what a linear probe adds to zero-shot logits, held near zero.

    logits = (r s f T^T + V f + b) / r, with unit rows f. V (n_class, dim) and b (n_class,) minimise
    the cross-entropy of the support under r s f T^T + V f + b, + strength |V|^2 / 2
    + bias_strength |b|^2 / 2. The share r of zero-shot's confidence leaves the images something to
    learn where zero-shot is sure, and the division gives it back. Without texts the first term is
    left out. The recipe is ours: the whitened form for one image per class, which has no
    covariance.
    """

    strength: float = hyper(0.1, "penalty on the weights", 1e-12, 1e12)
    bias_strength: float = hyper(0.1, "penalty on the biases", 0, 1e12)
    share: float = hyper(2 / 3, "share of zero-shot's logits while training", 0.01, 1)
    max_iter: int = hyper(60, "most L-BFGS iterations", 1)
    tol: float = hyper(1e-3, "relative tolerance of L-BFGS (divided by 1000 in float64)", 0)

    vary: ClassVar[frozenset[str]] = frozenset({"strength", "bias_strength", "share"})
    space: ClassVar[dict[str, tuple]] = {"strength": (0.1, 1.0, 0.01)}
    needs: ClassVar[frozenset[str]] = frozenset()
    optional_inputs: ClassVar[frozenset[str]] = frozenset({"text"})

    def plan(self, n: int, shots: float) -> Plan:
        return Plan(batch=n)  # no steps: `start` solves it; runs of equal n are solved together

    def bind(self, support: Support, h: Hypers) -> Tensors:
        return offset_constants(support)

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        share = h["share"][:, None, None]
        v, b = solve(
            Problem(
                c["_x"],
                onehot=c["_onehot"],
                mask=c["_mask"],
                strength=h["strength"],
                bias_strength=h["bias_strength"],
                offset=share * c["_offset"],
            ),
            steps=self.max_iter,
            tolerance=self.tol,
        )
        return {"w": c["_text_weights"] + v / share, "b": b / share[..., 0]}

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        return x @ p["w"].mT + p["b"][:, None]

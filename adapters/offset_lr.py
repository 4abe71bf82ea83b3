"""Offset logistic regression: MAP weights around a softened zero-shot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Hypers, Plan, hyper
from cliad.adapters.core.logistic import items, solve
from cliad.adapters.core.texts import zero_shot_weights


@dataclass(frozen=True)
class OffsetLr(Head):
    """Offset logistic regression: MAP weights around a softened zero-shot.

    logits = a (s f T^T / a + V f + b), a = `sharpen`, with V (n_class, dim) and b (n_class,) at the
    minimum of

        sum_i CE(s f_i T^T / a + V f_i + b, y_i) + strength |V|^2 / 2 + bias_strength |b|^2 / 2

    on unit rows f: `whitened-lr` without its whitening, for one image a class, where scatter within
    classes is not seen. Without class texts the first term is left out. Near is LP++ (Huang et al.,
    CVPR 2024), whose weights are v_k + alpha_k t_k with a learned alpha_k and no penalty.
    """

    strength: float = hyper(0.1, "strength of the L2 penalty on the weights", 1e-12, 1e12)
    bias_strength: float = hyper(0.1, "strength of the L2 penalty on the intercepts", 0, 1e12)
    sharpen: float = hyper(1.5, "what softens zero-shot, and then sharpens all logits", 1e-3, 1000)
    max_iter: int = hyper(60, "most L-BFGS iterations", 1)
    tol: float = hyper(1e-3, "relative tolerance of L-BFGS (divided by 1000 in float64)", 0)

    vary: ClassVar[frozenset[str]] = frozenset({"strength", "bias_strength", "sharpen"})
    space: ClassVar[dict[str, tuple]] = {"strength": (0.1, 0.01, 1.0, 1e-3, 10.0)}
    needs: ClassVar[frozenset[str]] = frozenset()
    optional_inputs: ClassVar[frozenset[str]] = frozenset({"text"})

    def plan(self, n: int, shots: float) -> Plan:
        return Plan(batch=n)  # no steps: `start` solves it; runs of equal n are solved together

    def bind(self, support: Support, h: Hypers) -> Tensors:
        return items(support) | zero_shot_weights(support)

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        sharpen = h["sharpen"][:, None, None]
        v, b = solve(
            c["_x"],
            onehot=c["_onehot"],
            mask=c["_mask"],
            C=1 / h["strength"],
            bias_C=1 / h["bias_strength"],
            offset=c["_x"] @ c["_zero_shot"].mT / sharpen,
            steps=self.max_iter,
            tolerance=self.tol,
        )
        w = c["_zero_shot"] + sharpen * v.to(c["_x"])
        return {"w": w, "b": sharpen[..., 0] * b.to(c["_x"])}

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        return x @ p["w"].mT + p["b"][:, None]

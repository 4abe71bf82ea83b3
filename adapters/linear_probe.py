"""Linear probe (Radford et al., 2021): logistic regression on the image features, by L-BFGS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Hypers, Plan, hyper
from cliad.adapters.core.logistic import items, solve


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
        return items(support)

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        w, b = solve(
            c["_x"],
            onehot=c["_onehot"],
            mask=c["_mask"],
            C=h["C"],
            steps=self.max_iter,
            tolerance=self.tol,
        )
        return {
            "w": w.to(c["_x"]).contiguous(),
            "b": b.to(c["_x"]).contiguous(),
        }

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        return x @ p["w"].mT + p["b"][:, None]

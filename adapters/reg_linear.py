"""Regularised linear adapter (Fahes et al., 2024): a square matrix held near the identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Hypers, Plan, hyper
from cliad.adapters.core.ops import cosine_logits
from cliad.adapters.core.texts import zero_shot_constants


@dataclass(frozen=True)
class RegLinear(Head):
    """Regularised linear adapter (Fahes et al., 2024): a square matrix held near the identity.

    x' = f + f R, where R (dim, dim) starts at zeros; logits = s cos(x', t_k). The loss is the
    cross-entropy + strength / shots * |R|^2 (the linear adapter of ProLIP's paper, whose matrix is
    I + R).
    NOTE[DIFF] minibatches of 256 and 300 steps, where the released code takes 300 steps on the
    whole support.
    """

    strength: float = hyper(
        1.0, "penalty on the distance from the identity; it is divided by the shots", 0
    )
    lr: float = hyper(1e-3, "highest learning rate", 0)
    steps: int = hyper(300, "optimiser steps", 1)
    batch: int = hyper(256, "largest minibatch", 1)

    vary: ClassVar[frozenset[str]] = frozenset({"strength", "lr"})
    space: ClassVar[dict[str, tuple]] = {"strength": (1.0, 10.0, 0.1, 0.01), "lr": (1e-3, 1e-4)}
    optional_inputs: ClassVar[frozenset[str]] = frozenset({"views"})
    new_classes: ClassVar[str] = "text"

    def plan(self, n: int, shots: float) -> Plan:
        return Plan.counted(n, steps=self.steps, batch=self.batch, optimiser="adam", eps=1e-4)

    def bind(self, support: Support, h: Hypers) -> Tensors:
        return zero_shot_constants(support) | {"_shots": support.shots}

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        dim = c["text"].shape[-1]
        return {"residual": c["text"].new_zeros(len(generators), dim, dim)}

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        return cosine_logits(x + x @ p["residual"], c["text"], c["scale"])

    def penalty(self, p: Tensors, c: Tensors, h: Hypers) -> Tensor:
        return h["strength"] / c["_shots"] * p["residual"].square().sum(dim=(1, 2))

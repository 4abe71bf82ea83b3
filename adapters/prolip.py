"""ProLIP (Fahes et al., 2024): the last projection of the image tower, trained and held near where it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Plan, hyper
from cliad.adapters.core.ops import class_weights, cosine_logits


@dataclass(frozen=True)
class ProLip(Head):
    """ProLIP (Fahes et al., 2024): the image tower's last projection, trained and held near its own.

    x = v (W0 + R) + b = f + v R, v (n, dim_pre) before the projection W0 (dim_pre, dim), f the raw feature, R zeros at the start;
    logits = s cos(x, t_k); cross-entropy + strength / shots * |R|^2 (their Eq. 4, lambda = 1 / N). R is trained in W0's place:
    the same steps of Adam, and neither W0 nor b need be known.
    NOTE[DIFF] minibatches of 256 of the plain view, where the released code takes the whole support in one of 300 views each step.
    """

    strength: float = hyper(1.0, "penalty on the distance from the projection, times the shots", 0)
    lr: float = hyper(1e-3, "highest learning rate", 0)
    steps: int = hyper(300, "optimiser steps", 1)
    batch: int = hyper(256, "largest minibatch", 1)

    vary: ClassVar[frozenset[str]] = frozenset({"strength", "lr"})
    space: ClassVar[dict[str, tuple]] = {
        "strength": (1.0, 10.0, 0.1, 0.01),
        "lr": (1e-3, 1e-4, 1e-5),
    }
    needs: ClassVar[frozenset[str]] = frozenset({"text", "raw", "pre_projection"})
    per_class: ClassVar[bool] = False

    def plan(self, n: int, shots: float) -> Plan:
        return Plan.counted(n, steps=self.steps, batch=self.batch, optimiser="adam", eps=1e-4)

    def bind(self, support: Support, h: Tensors) -> Tensors:
        text = class_weights(support.need_text())[None]
        zeros = text.new_zeros(1, support.x.shape[-1] - text.shape[-1], text.shape[-1])
        return {"text": text, "scale": support.scale, "_shots": support.shots, "_zeros": zeros}

    def start(self, c: Tensors, h: Tensors, generators: Sequence[Generator]) -> Tensors:
        return {"residual": c["_zeros"].repeat(len(generators), 1, 1)}

    def logits(self, p: Tensors, c: Tensors, h: Tensors, x: Tensor) -> Tensor:
        dim = c["text"].shape[-1]
        return cosine_logits(x[..., :dim] + x[..., dim:] @ p["residual"], c["text"], c["scale"])

    def penalty(self, p: Tensors, c: Tensors, h: Tensors) -> Tensor:
        return h["strength"] / c["_shots"] * p["residual"].square().sum(dim=(1, 2))

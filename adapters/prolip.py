"""ProLIP (Fahes et al., 2024): the image tower's last projection, trained near CLIP's own."""

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
class ProLip(Head):
    """ProLIP (Fahes et al., 2024): the image tower's last projection, trained near CLIP's own.

    x = v (W0 + R) + b, where v (n, dim_pre) enters the last projection, W0 (dim_pre, dim) and b are
    CLIP's, and R starts at zeros; logits = s cos(x, t_k). The loss is the cross-entropy
    + strength / shots * |R|^2 (their Eq. 4, with lambda = 1 / N).
    NOTE[DIFF] minibatches of 256 of the plain view, where the released code takes the whole support
    in one of 300 views each step.
    """

    strength: float = hyper(
        1.0, "penalty on the distance from CLIP's projection; it is divided by the shots", 0
    )
    lr: float = hyper(1e-3, "highest learning rate", 0)
    steps: int = hyper(300, "optimiser steps", 1)
    batch: int = hyper(256, "largest minibatch", 1)

    vary: ClassVar[frozenset[str]] = frozenset({"strength", "lr"})
    space: ClassVar[dict[str, tuple]] = {
        "strength": (1.0, 10.0, 0.1, 0.01),
        "lr": (1e-3, 1e-4, 1e-5),
    }
    needs: ClassVar[frozenset[str]] = frozenset({"text", "raw", "pre_projection"})
    new_classes: ClassVar[str] = "text"

    def plan(self, n: int, shots: float) -> Plan:
        return Plan.counted(n, steps=self.steps, batch=self.batch, optimiser="adam", eps=1e-4)

    def bind(self, support: Support, h: Hypers) -> Tensors:
        c = zero_shot_constants(support)
        dim = c["text"].shape[-1]
        dim_pre = support.width - dim  # x is the feature and v, one behind the other
        zeros = c["text"].new_zeros(1, dim_pre, dim)
        return c | {"_shots": support.shots, "_zeros": zeros}

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        return {"residual": c["_zeros"].repeat(len(generators), 1, 1)}

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        # v (W0 + R) + b = (v W0 + b) + v R = f + v R, f (n, dim) the raw feature of the cache: so
        # neither W0 nor b need be known. R has the gradient that W0 would have, hence Adam moves
        # it by the same steps.
        dim = c["text"].shape[-1]
        feature = x[..., :dim]
        before_projection = x[..., dim:]
        return cosine_logits(feature + before_projection @ p["residual"], c["text"], c["scale"])

    def penalty(self, p: Tensors, c: Tensors, h: Hypers) -> Tensor:
        return h["strength"] / c["_shots"] * p["residual"].square().sum(dim=(1, 2))

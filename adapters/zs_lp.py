"""ZS-LP (Silva-Rodriguez et al., 2024): a linear probe that starts at the class texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Hypers, Plan, hyper
from cliad.adapters.core.ops import cosine_logits, raw_class_weights, unit


@dataclass(frozen=True)
class ZsLp(Head):
    """ZS-LP (Silva-Rodriguez et al., 2024): a linear probe that starts at the class texts.

    logits = s cos(f, w_k). The weights w (n_class, dim) are trained from the mean over templates of
    the raw text features of each class (CVPR 2024, Section 3.2).
    """

    lr: float = hyper(0.1, "highest learning rate", 0)
    epochs: int = hyper(300, "passes over the support set", 1)
    batch: int = hyper(256, "largest minibatch", 1)

    vary: ClassVar[frozenset[str]] = frozenset({"lr"})
    space: ClassVar[dict[str, tuple]] = {"lr": (0.1, 0.01, 1e-3)}
    optional_inputs: ClassVar[frozenset[str]] = frozenset({"views"})

    def plan(self, n: int, shots: float) -> Plan:
        return Plan.dassl(n, epochs=self.epochs, batch=self.batch, optimiser="sgd")

    def bind(self, support: Support, h: Hypers) -> Tensors:
        return {"_text": raw_class_weights(support.need_text())[None], "scale": support.scale}

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        return {"w": c["_text"].repeat(len(generators), 1, 1)}

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        # The gradient goes through `unit`, which divides it by the length of w_k, about 10 at the
        # start: lr is made for raw texts of that length.
        return cosine_logits(x, unit(p["w"]), c["scale"])

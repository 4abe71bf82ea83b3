"""CLAP (Silva-Rodriguez et al., 2024): ZS-LP held near the class texts, each class as firmly as zero-shot knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Plan, hyper
from cliad.adapters.core.ops import cosine_logits, raw_class_weights, unit


@dataclass(frozen=True)
class Clap(Head):
    """CLAP (Silva-Rodriguez et al., 2024): ZS-LP, held near the class texts where zero-shot is right.

    Cross-entropy of s cos(f, w_k) + strength * mean_k lambda_k |w_k - t_k|^2, w (n_class, dim) trained from t, the raw mean text
    feature; lambda_k (n_class,) the mean zero-shot probability of class k on its own support (CVPR 2024, Section 3.3).
    The released setting never moves the multipliers lambda again; nor does this.
    """

    strength: float = hyper(1.0, "factor on the penalty; 0 is ZS-LP", 0)
    weights: str = hyper(
        "class",
        "lambda per class, their mean, or 1 for all",
        choices=("class", "constant", "balanced"),
    )
    lr: float = hyper(0.1, "highest learning rate", 0)
    epochs: int = hyper(300, "passes over the support set", 1)
    batch: int = hyper(256, "largest minibatch", 1)

    vary: ClassVar[frozenset[str]] = frozenset({"strength", "lr"})
    space: ClassVar[dict[str, tuple]] = {"strength": (1.0, 0.1, 10.0)}
    optional_inputs: ClassVar[frozenset[str]] = frozenset({"views"})

    def plan(self, n: int, shots: float) -> Plan:
        return Plan.dassl(n, epochs=self.epochs, batch=self.batch, optimiser="sgd")

    def bind(self, support: Support, h: Tensors) -> Tensors:
        c = {"_text": raw_class_weights(support.need_text())[None], "scale": support.scale}
        trust = _trust(support, cosine_logits(support.x, unit(c["_text"]), c["scale"]))
        if self.weights == "constant":
            trust = trust.mean(dim=1, keepdim=True).expand_as(trust)
        return c | {"_lambda": trust if self.weights != "balanced" else trust.new_ones(trust.shape)}

    def start(self, c: Tensors, h: Tensors, generators: Sequence[Generator]) -> Tensors:
        return {"w": c["_text"].repeat(len(generators), 1, 1)}

    def logits(self, p: Tensors, c: Tensors, h: Tensors, x: Tensor) -> Tensor:
        return cosine_logits(x, unit(p["w"]), c["scale"])

    def penalty(self, p: Tensors, c: Tensors, h: Tensors) -> Tensor:
        return h["strength"] * (c["_lambda"] * (p["w"] - c["_text"]).square().sum(dim=-1)).mean(
            dim=1
        )


def _trust(support: Support, logits: Tensor) -> Tensor:
    """(n_run, n_class): the mean probability that zero-shot logits (n_run, n, n_class) give a class on its own items."""
    onehot = support.onehot
    return (logits.softmax(dim=-1) * onehot).sum(dim=1) / onehot.sum(dim=1).clamp(min=1)

"""CLAP (Silva-Rodriguez et al., 2024): ZS-LP held near the class texts that zero-shot can trust."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Hypers, Plan, hyper
from cliad.adapters.core.ops import cosine_logits, raw_class_weights, unit


@dataclass(frozen=True)
class Clap(Head):
    """CLAP (Silva-Rodriguez et al., 2024): ZS-LP, held near the texts where zero-shot is right.

    The loss is the cross-entropy of s cos(f, w_k) + strength * mean_k lambda_k |w_k - t_k|^2.
    The weights w (n_class, dim) are trained from t, the mean over templates of the raw text
    features; lambda_k is the mean probability that zero-shot gives class k on the support images of
    that class (CVPR 2024, Section 3.3). The released setting computes the multipliers lambda once
    and never updates them; nor does this.
    """

    strength: float = hyper(1.0, "factor on the penalty; 0 is ZS-LP", 0)
    weights: str = hyper(
        "class",
        "lambda of the penalty: one value per class, their mean for all classes, or 1 for all",
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

    def bind(self, support: Support, h: Hypers) -> Tensors:
        text = raw_class_weights(support.need_text())[None]
        zero_shot = cosine_logits(support.x, unit(text), support.scale)
        multipliers = self._multipliers(mean_own_probability(support, zero_shot))
        return {"_text": text, "scale": support.scale, "_lambda": multipliers}

    def _multipliers(self, trust: Tensor) -> Tensor:
        """lambda (n_run, n_class), from the trust in zero-shot (n_run, n_class)."""
        if self.weights == "constant":
            return trust.mean(dim=1, keepdim=True).expand_as(trust)
        if self.weights == "balanced":
            return torch.ones_like(trust)
        return trust

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        return {"w": c["_text"].repeat(len(generators), 1, 1)}

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        return cosine_logits(x, unit(p["w"]), c["scale"])

    def penalty(self, p: Tensors, c: Tensors, h: Hypers) -> Tensor:
        distance = (p["w"] - c["_text"]).square().sum(dim=-1)  # (n_run, n_class)
        return h["strength"] * (c["_lambda"] * distance).mean(dim=1)


def mean_own_probability(support: Support, logits: Tensor) -> Tensor:
    """The mean probability (n_run, n_class) of a class over the support images of that class.

    logits (n_run, n, n_class) are of the support images. A class without images has 0.
    """
    onehot = support.onehot
    # All other entries of the probabilities are multiplied by 0.
    own = (logits.softmax(dim=-1) * onehot).sum(dim=1)
    return own / onehot.sum(dim=1).clamp(min=1)

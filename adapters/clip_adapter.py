"""CLIP-Adapter (Gao et al., 2021): a bottleneck network whose output is blended into the image feature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from cliad.adapters.base import Head, HeadError, Plan, Support, Tensors, class_weights, cosine_logits, hyper


@dataclass(frozen=True)
class ClipAdapter(Head):
    """CLIP-Adapter (Gao et al., 2021): bottleneck network, blended into the frozen feature.

    A(x) = ReLU(ReLU(x W1) W2), W1 (dim, hidden), W2 (hidden, dim), no bias (arXiv 2110.04544, Section 3.2);
    x' = alpha A(x) + (1 - alpha) x; logits = s cos(x', t_k).
    Every map is positively homogeneous and x' is normalised after the blend, so the length of x does not matter.
    """

    alpha: float = hyper(0.2, "weight of the adapted image feature; 0 is zero-shot", 0, 1)
    hidden: str = hyper("D/4", "width of the bottleneck: a number, or a share of the feature width such as D/4")
    # NOTE[DIFF] the paper's equation has one ReLU, its released code a second one after W2; the code is the default here
    final_relu: bool = hyper(True, "a second ReLU after the bottleneck, as in the released code", choices=(True, False))
    lr: float = hyper(3e-3, "highest learning rate", 0)
    weight_decay: float = hyper(0.01, "weight decay", 0)
    epochs: int = hyper(30, "passes over the support set", 1)
    batch: int = hyper(256, "largest minibatch", 1)

    vary: ClassVar[frozenset[str]] = frozenset({"alpha", "lr", "weight_decay"})
    space: ClassVar[dict[str, tuple]] = {"alpha": (0.2, 0.4, 0.6, 0.8, 1.0, 0.0)}
    per_class: ClassVar[bool] = False

    def plan(self, n: int, n_class: int) -> Plan:
        plan = Plan.epochs(n, epochs=self.epochs, batch=self.batch)
        return Plan.epochs(n, epochs=self.epochs, batch=self.batch, warmup=plan.steps * 3 // 10)

    def bind(self, support: Support, h: Tensors) -> Tensors:
        return {"text": class_weights(support.text)[None], "scale": support.x.new_full((1,), support.logit_scale)}

    def start(self, c: Tensors, h: Tensors, generators: Sequence[Generator]) -> Tensors:
        dim = c["text"].shape[-1]
        hidden = width(self.hidden, dim)
        w1, w2 = zip(*((kaiming(dim, hidden, g), kaiming(hidden, dim, g)) for g in generators), strict=True)
        return {"w1": torch.stack(w1).to(c["text"]), "w2": torch.stack(w2).to(c["text"])}

    def logits(self, p: Tensors, c: Tensors, h: Tensors, x: Tensor) -> Tensor:
        adapted = (x @ p["w1"]).relu_() @ p["w2"]
        adapted = adapted.relu_() if self.final_relu else adapted
        return cosine_logits(torch.lerp(x, adapted, h["alpha"][:, None, None]), c["text"], c["scale"])


def kaiming(n_in: int, n_out: int, generator: Generator) -> Tensor:
    """(n_in, n_out) weights as PyTorch starts a bias-free linear layer: uniform in +-1/sqrt(n_in)."""
    return (torch.rand(n_in, n_out, generator=generator, device=generator.device) * 2 - 1) / math.sqrt(n_in)


def width(hidden: str, dim: int) -> int:
    """The bottleneck's width: `hidden` is a number, or D, D/2, D/4, ... of the feature width."""
    top, _, below = str(hidden).partition("/")
    try:
        value = int(top) if not below and top != "D" else _share(dim, int(below or 1))
    except (ValueError, ZeroDivisionError):
        value = 0
    if value < 1 or (below and top != "D"):
        raise HeadError(f"hidden is a number or a share of the feature width such as D/4; got {hidden} where D is {dim}")
    return value


def _share(dim: int, parts: int) -> int:
    """dim // parts, but at least 1 for any dim."""
    return max(1, dim // parts) if parts > 0 else 0

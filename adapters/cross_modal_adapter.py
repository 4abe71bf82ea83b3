"""Cross-modal adapter (Lin et al., 2023): CLIP-Adapter's bottleneck and a linear head, on images and class texts alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Plan, hyper
from cliad.adapters.core.ops import (
    bottleneck,
    bottleneck_start,
    class_weights,
    text_loss,
    text_shots,
    unit,
)


@dataclass(frozen=True)
class CrossModalAdapter(Head):
    """Cross-modal adapter (Lin et al., 2023): bottleneck and linear head on images and texts alike.

    x' = ratio A(f) + (1 - ratio) f, A CLIP-Adapter's bottleneck of width dim/4; logits = s w_k . x'/|x'|, w (n_class, dim) trained
    from the class texts; loss and WiSE average as the cross-modal linear probe's (CVPR 2023, Section 4).
    NOTE[DIFF] 600 steps at higher rates instead of 12,800; all texts in each step; no flipped copies.
    """

    ratio: float = hyper(0.2, "weight of the adapted feature", 0, 1)
    lr: float = hyper(1e-3, "highest learning rate", 0)
    weight_decay: float = hyper(1e-3, "weight decay", 0)
    wise: float = hyper(0.0, "share of the class texts in the final weights; 0.5 is WiSE", 0, 1)
    steps: int = hyper(600, "optimiser steps", 1)
    batch: int = hyper(64, "largest minibatch of images", 1)

    vary: ClassVar[frozenset[str]] = frozenset({"ratio", "lr", "weight_decay", "wise"})
    space: ClassVar[dict[str, tuple]] = {"lr": (1e-3, 3e-4, 1e-4)}
    select: ClassVar[str] = "val"

    def plan(self, n: int, shots: float) -> Plan:
        return Plan.counted(n, steps=self.steps, batch=self.batch, warmup=50, keep="best", look=25)

    def bind(self, support: Support, h: Tensors) -> Tensors:
        c = {"text": class_weights(support.need_text())[None], "scale": support.scale}
        return c | text_shots(support.need_text())

    def start(self, c: Tensors, h: Tensors, generators: Sequence[Generator]) -> Tensors:
        dim = c["text"].shape[-1]
        w1, w2 = bottleneck_start(dim, max(dim // 4, 1), generators, c["text"])
        return {"w1": w1, "w2": w2, "w": c["text"].repeat(len(generators), 1, 1)}

    def logits(self, p: Tensors, c: Tensors, h: Tensors, x: Tensor) -> Tensor:
        adapted = torch.lerp(x, bottleneck(x, p["w1"], p["w2"]), h["ratio"][:, None, None])
        return c["scale"] * (unit(adapted) @ p["w"].mT)

    def penalty(self, p: Tensors, c: Tensors, h: Tensors) -> Tensor:
        return text_loss(self.logits(p, c, h, c["_text"]), c)

    def finish(self, p: Tensors, c: Tensors, h: Tensors) -> Tensors:
        return p | {"w": torch.lerp(p["w"], c["text"], h["wise"][:, None, None])}

"""Cross-modal adapter (Lin et al., 2023): bottleneck and linear head, texts as further shots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Hypers, Plan, hyper
from cliad.adapters.core.ops import bottleneck, bottleneck_start, text_loss, unit
from cliad.adapters.core.texts import cross_modal_constants, cross_modal_plan, wise_average


@dataclass(frozen=True)
class CrossModalAdapter(Head):
    """Cross-modal adapter (Lin et al., 2023): bottleneck and linear head on images and texts alike.

    x' = ratio A(f) + (1 - ratio) f, where A is CLIP-Adapter's bottleneck of width dim / 4;
    logits = s w_k . x' / |x'|, where w (n_class, dim) is trained from the class texts. The loss and
    the WiSE average are those of the cross-modal linear probe (CVPR 2023, Section 4).
    NOTE[DIFF] 600 steps at higher rates instead of 12,800; all texts in each step; no flipped
    copies.
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
        return cross_modal_plan(n, steps=self.steps, batch=self.batch)

    def bind(self, support: Support, h: Hypers) -> Tensors:
        return cross_modal_constants(support)

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        dim = c["text"].shape[-1]
        hidden = max(dim // 4, 1)
        w1, w2 = bottleneck_start(dim, hidden, generators, c["text"])
        return {"w1": w1, "w2": w2, "w": c["text"].repeat(len(generators), 1, 1)}

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        adapted = bottleneck(x, p["w1"], p["w2"])
        blended = torch.lerp(x, adapted, h["ratio"][:, None, None])
        return c["scale"] * (unit(blended) @ p["w"].mT)

    def penalty(self, p: Tensors, c: Tensors, h: Hypers) -> Tensor:
        # The sentences pass through the bottleneck as the images do.
        return text_loss(self.logits(p, c, h, c["_text"]), c)

    def finish(self, p: Tensors, c: Tensors, h: Hypers) -> Tensors:
        return p | {"w": wise_average(p["w"], c["text"], h["wise"])}

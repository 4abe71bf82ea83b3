"""Cross-modal linear probing (Lin et al., 2023): class texts as further shots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Hypers, Plan, hyper
from cliad.adapters.core.ops import text_loss, unit
from cliad.adapters.core.texts import cross_modal_constants, cross_modal_plan, wise_average


@dataclass(frozen=True)
class CrossModal(Head):
    """Cross-modal linear probe (Lin et al., 2023): trained on images and class texts alike.

    logits = s w_k . f, where f is unit and w (n_class, dim) is trained from the class texts. The
    loss is the mean cross-entropy of the images plus that of the sentences of all templates, each a
    shot of its class (CVPR 2023, Eq. 5). WiSE: w <- (1 - wise) w + wise t.
    NOTE[DIFF] a step takes all texts beside a minibatch of images, the released code as many texts
    as images; 600 steps instead of 12,800; a flipped copy of each image is not used.
    """

    lr: float = hyper(1e-3, "highest learning rate", 0)
    weight_decay: float = hyper(0.01, "weight decay", 0)
    wise: float = hyper(0.0, "share of the class texts in the final weights; 0.5 is WiSE", 0, 1)
    steps: int = hyper(600, "optimiser steps", 1)
    batch: int = hyper(64, "largest minibatch of images", 1)

    vary: ClassVar[frozenset[str]] = frozenset({"lr", "weight_decay", "wise"})
    space: ClassVar[dict[str, tuple]] = {"lr": (1e-3, 1e-4), "weight_decay": (0.0, 0.01, 1e-4)}
    select: ClassVar[str] = "val"

    def plan(self, n: int, shots: float) -> Plan:
        return cross_modal_plan(n, steps=self.steps, batch=self.batch)

    def bind(self, support: Support, h: Hypers) -> Tensors:
        return cross_modal_constants(support)

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        return {"w": c["text"].repeat(len(generators), 1, 1)}

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        # Not a cosine: the length of w_k is learned, too.
        return c["scale"] * (unit(x) @ p["w"].mT)

    def penalty(self, p: Tensors, c: Tensors, h: Hypers) -> Tensor:
        return text_loss(self.logits(p, c, h, c["_text"]), c)

    def finish(self, p: Tensors, c: Tensors, h: Hypers) -> Tensors:
        return {"w": wise_average(p["w"], c["text"], h["wise"])}

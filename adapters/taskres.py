"""TaskRes (Yu et al., 2023): a residual on the class texts."""

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
class TaskRes(Head):
    """TaskRes (Yu et al., 2023): a trained residual, added to the class texts.

    t'_k = t_k + alpha r_k, where t_k (dim,) is the mean over templates of the raw text features and
    r (n_class, dim) starts at zeros; logits = s cos(f, t'_k) (CVPR 2023, Section 3.3).
    """

    alpha: float = hyper(0.5, "weight of the residual; 0 is zero-shot", 0, 1000)
    lr: float = hyper(2e-3, "highest learning rate", 0)
    weight_decay: float = hyper(5e-4, "weight decay", 0)
    epochs: int = hyper(0, "passes over the support set; 0: 100 up to 4 shots, 200 above", 0)
    batch: int = hyper(256, "largest minibatch", 1)

    vary: ClassVar[frozenset[str]] = frozenset({"alpha", "lr", "weight_decay"})
    space: ClassVar[dict[str, tuple]] = {"alpha": (0.5, 0.1, 0.3, 1.0), "lr": (2e-3, 2e-4)}
    optional_inputs: ClassVar[frozenset[str]] = frozenset({"views"})

    def plan(self, n: int, shots: float) -> Plan:
        published = 100 if shots <= 4 else 200
        return Plan.dassl(n, epochs=self.epochs or published, batch=self.batch, optimiser="adam")

    def bind(self, support: Support, h: Hypers) -> Tensors:
        # The texts keep their raw length: a step turns a longer text less.
        return {"text": raw_class_weights(support.need_text())[None], "scale": support.scale}

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        return {"residual": torch.zeros_like(c["text"]).repeat(len(generators), 1, 1)}

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        text = c["text"] + h["alpha"][:, None, None] * p["residual"]  # (n_run, n_class, dim)
        return cosine_logits(x, unit(text), c["scale"])

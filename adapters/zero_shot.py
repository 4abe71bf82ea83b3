"""Zero-shot CLIP (Radford et al., 2021): the class whose text is nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head
from cliad.adapters.core.ops import class_weights, cosine_logits


@dataclass(frozen=True)
class ZeroShot(Head):
    """Zero-shot CLIP (Radford et al., 2021): no training, the nearest class text.

    logits = s cos(x, t_k), t_k the unit mean of the class's unit text features over templates (their Section 3.1.4).
    """

    per_class: ClassVar[bool] = False

    def bind(self, support: Support, h: Tensors) -> Tensors:
        return {"text": class_weights(support.need_text())[None], "scale": support.scale}

    def logits(self, p: Tensors, c: Tensors, h: Tensors, x: Tensor) -> Tensor:
        return cosine_logits(x, c["text"], c["scale"])

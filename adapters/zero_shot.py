"""Zero-shot CLIP (Radford et al., 2021): the class whose text is nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Hypers
from cliad.adapters.core.ops import cosine_logits
from cliad.adapters.core.texts import zero_shot_constants


@dataclass(frozen=True)
class ZeroShot(Head):
    """Zero-shot CLIP (Radford et al., 2021): no training, the nearest class text.

    logits = s cos(x, t_k), where t_k (dim,) is the mean over templates of the unit text features of
    class k, made unit again (their Section 3.1.4), and s is CLIP's logit scale.
    """

    new_classes: ClassVar[str] = "text"

    def bind(self, support: Support, h: Hypers) -> Tensors:
        return zero_shot_constants(support)

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        return cosine_logits(x, c["text"], c["scale"])

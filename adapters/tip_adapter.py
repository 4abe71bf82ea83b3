"""Tip-Adapter (Zhang et al., 2022): the support set as a cache of keys and values beside zero-shot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, hyper
from cliad.adapters.core.keys import KEY_ALPHAS, KEY_BETAS, distinct, keys_by_class, nearness
from cliad.adapters.core.ops import class_weights, cosine_logits


@dataclass(frozen=True)
class TipAdapter(Head):
    """Tip-Adapter (Zhang et al., 2022): no training, zero-shot plus the labels of near support images.

    logits = s f T^T + alpha exp(-beta (1 - f F^T)) L, f (n, dim) unit rows, keys F (n_support, dim) unit rows, their one-hot
    labels L (n_support, n_class) (ECCV 2022, Section 3.1, with CLIP's scale s as in the released code).
    NOTE[DIFF] one grid of 16 x 16 values for all data sets; the released code has its own range for each, 20 x 200 values.
    """

    alpha: float = hyper(1.0, "weight of the cache's logits; 0 is zero-shot", 0, 1000)
    beta: float = hyper(5.5, "sharpness: how fast a key's say falls with distance", 0, 1000)

    vary: ClassVar[frozenset[str]] = frozenset({"alpha", "beta"})
    tuned: ClassVar[frozenset[str]] = frozenset({"alpha", "beta"})
    space: ClassVar[dict[str, tuple]] = {"alpha": KEY_ALPHAS, "beta": KEY_BETAS}
    optional_inputs: ClassVar[frozenset[str]] = frozenset({"views"})
    select: ClassVar[str] = "val"

    def bind(self, support: Support, h: Tensors) -> Tensors:
        keys, values = keys_by_class(support)
        scale = support.scale
        return {
            "text": class_weights(support.need_text())[None],
            "scale": scale,
            "keys": keys,
            "values": values,
        }

    def logits(self, p: Tensors, c: Tensors, h: Tensors, x: Tensor) -> Tensor:
        rows, which = distinct(c["keys"], h["beta"])
        near = nearness(x, c["keys"], c["values"], rows[:, 0])[which]
        return cosine_logits(x, c["text"], c["scale"]) + h["alpha"][:, None, None] * near

"""Tip-Adapter (Zhang et al., 2022): the support images as keys with labels, beside zero-shot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Candidates, Head, Hypers, hyper
from cliad.adapters.core.keys import KEY_ALPHAS, KEY_BETAS, Votes, keys_by_class, nearness
from cliad.adapters.core.ops import cosine_logits
from cliad.adapters.core.texts import zero_shot_constants


@dataclass(frozen=True)
class TipAdapter(Head):
    """Tip-Adapter (Zhang et al., 2022): no training, zero-shot plus labels of near support images.

    logits = s f T^T + alpha exp(-beta (1 - f F^T)) L, with unit rows f (n, dim), unit keys
    F (n_support, dim) and their one-hot labels L (n_support, n_class) (ECCV 2022, Section 3.1, with
    CLIP's scale s as in the released code).
    NOTE[DIFF] one grid of 16 x 16 values for all data sets; the released code has its own range for
    each, 20 x 200 values.
    """

    alpha: float = hyper(1.0, "weight of the support images' labels; 0 is zero-shot", 0, 1000)
    beta: float = hyper(5.5, "sharpness: larger = only very similar support images count", 0, 1000)

    vary: ClassVar[frozenset[str]] = frozenset({"alpha", "beta"})
    tuned: ClassVar[frozenset[str]] = frozenset({"alpha", "beta"})
    space: ClassVar[dict[str, tuple]] = {"alpha": KEY_ALPHAS, "beta": KEY_BETAS}
    optional_inputs: ClassVar[frozenset[str]] = frozenset({"views"})
    select: ClassVar[str] = "val"
    new_classes: ClassVar[str] = "support"

    def bind(self, support: Support, h: Hypers) -> Tensors:
        keys, values = keys_by_class(support)
        return zero_shot_constants(support) | {"keys": keys, "values": values}

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        near = nearness(x, c["keys"], c["values"], h["beta"])  # (n_run, n, n_class)
        return cosine_logits(x, c["text"], c["scale"]) + h["alpha"][:, None, None] * near

    def candidates(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Iterator[Candidates]:
        votes = Votes(cosine_logits(x, c["text"], c["scale"]), affinity=x @ c["keys"].mT)
        return votes.candidates(h, lambda _: c["values"])

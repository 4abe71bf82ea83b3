"""Prototypes: a class is its text plus the mean of its support images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Hypers, hyper
from cliad.adapters.core.keys import keys_by_class
from cliad.adapters.core.ops import cosine_logits, unit
from cliad.adapters.core.texts import zero_shot_constants


@dataclass(frozen=True)
class Prototype(Head):
    """Prototype: no training, a class is its text plus the mean of its support images.

    w_k = unit(t_k + alpha m_k), logits s f w_k^T: unit rows t_k of the text, m_k of the mean of the
    class's unit support features; a class without images is its text. Where there are views, an
    item's feature is the unit mean of them, as in Tip-Adapter.
    NOTE[DIFF] no paper's: means are those of prototypical networks (Snell et al., 2017), the sum
    with the text is ours. It is the row that every head with images of new classes has to beat.
    """

    alpha: float = hyper(1.0, "weight of the support images' mean; 0 is zero-shot", 0, 1000)

    vary: ClassVar[frozenset[str]] = frozenset({"alpha"})
    tuned: ClassVar[frozenset[str]] = frozenset({"alpha"})
    space: ClassVar[dict[str, tuple]] = {"alpha": (1.0, 0.5, 2.0, 0.25, 4.0, 0.1, 10.0, 0.0)}
    optional_inputs: ClassVar[frozenset[str]] = frozenset({"views"})
    new_classes: ClassVar[str] = "support"

    def bind(self, support: Support, h: Hypers) -> Tensors:
        return zero_shot_constants(support) | {"mean": class_means(support)}

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        w = unit(c["text"] + h["alpha"][:, None, None] * c["mean"])
        return cosine_logits(x, w, c["scale"])


def class_means(support: Support) -> Tensor:
    """Unit means (n_run, n_class, dim) of the keys of each class; zeros where it has none."""
    keys, values = keys_by_class(support)
    by_class = keys.unflatten(1, values.shape[1:])  # (n_run, n_class, n_slot, dim)
    # The sum has the mean's direction, and an empty slot is a row of zeros.
    return unit(by_class.sum(dim=2))

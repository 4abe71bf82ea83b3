"""CPL (He et al., 2022): CoCoOp, and prompts that tell an image from its counterfactual."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from cliad.adapters.cocoop import CoCoOp
from cliad.adapters.core.episode import Batch, Support, Tensors
from cliad.adapters.core.head import Hypers, cross_entropy, hyper
from cliad.adapters.core.ops import class_weights, unit
from cliad.adapters.prototype import class_means


@dataclass(frozen=True)
class Cpl(CoCoOp):
    """CPL (He et al., 2022): CoCoOp, and prompts that tell an image from a counterfactual of it.

    For an image f of class y, f' = unit((1 - u_y) f + u_y g_y): u_y in {0, 1} takes from a near
    class, g_y, the least coordinates that turn the class. Loss = cross-entropy + contrast * mean
    over k of -log softmax([t_k.f, t_k.f'])_0, of unit rows without the scale (arXiv 2210.10362; the
    released code). Logits are CoCoOp's.
    NOTE[DIFF] the near class is that of the nearest class text in the cache, where the paper
    compares names by BERTScore; g_y is the mean of its support images, where the code has one of
    them; u_y is found for the mean of class y. The code's u moves by a thousandth in training and
    is held where it began here, so that its penalty is a constant and left out.
    """

    contrast: float = hyper(1.0, "weight of the contrast to counterfactuals; 0 is CoCoOp", 0)

    vary: ClassVar[frozenset[str]] = frozenset({"lr", "weight_decay", "contrast"})

    def bind(self, support: Support, h: Hypers) -> Tensors:
        c = super().bind(support, h)
        # New classes come without images, and nothing is trained on them.
        if support.largest_class:
            c |= counterfactuals(support)
        return c

    def loss(self, p: Tensors, c: Tensors, h: Hypers, batch: Batch) -> Tensor:
        text = self.texts(p, c, batch.x)  # (n_run, b, n_class, dim)
        loss = cross_entropy(c["scale"] * (text @ batch.x[..., None])[..., 0], batch)
        runs = torch.arange(len(batch.y), device=batch.y.device)[:, None]
        u = c["_swapped"][runs, batch.y]  # (n_run, b, dim)
        other = unit((1 - u) * batch.x + u * c["_near"][runs, batch.y])
        # -log softmax([a, b])_0 = log(1 + exp(b - a)) of the cosines a with f and b with f'
        difference = (text @ (other - batch.x)[..., None])[..., 0]  # (n_run, b, n_class)
        # Less what it is where they are equal: a constant, so that a run is not taken for one that
        # diverged, whose loss is above guessing.
        items = F.softplus(difference).mean(dim=2) - math.log(2)  # (n_run, b)
        return loss + h["contrast"] * (items * batch.weight).sum(dim=1)


def counterfactuals(support: Support) -> Tensors:
    """What turns each class into a near one, for training only.

    "_near" (n_run, n_class, dim): the unit mean image of the class whose text is nearest, of those
    that have images in the run; "_swapped" (n_run, n_class, dim): 1 where a coordinate of an image
    of the class is taken from it, else 0.
    """
    text = class_weights(support.need_text())  # (n_class, dim)
    means = class_means(support)  # (n_run, n_class, dim)
    nearest = _nearest(text, has_image=support.onehot.any(dim=1))
    runs = torch.arange(len(means), device=means.device)[:, None]
    near = means[runs, nearest]
    swapped = least_swap(means, near, text.expand_as(means), text[nearest])
    return {"_near": near, "_swapped": swapped}


def _nearest(text: Tensor, has_image: Tensor) -> Tensor:
    """For each class the other one with the nearest text; has_image (n_run, n_class)."""
    n_class = len(text)
    itself = torch.arange(n_class, device=text.device)
    cosine = (text @ text.T).expand(len(has_image), -1, -1)  # (n_run, class, other)
    cosine = cosine.masked_fill(~has_image[:, None], -2.0)
    cosine = cosine.masked_fill(itself[:, None] == itself, -3.0)
    return cosine.argmax(dim=2)


def least_swap(f: Tensor, other: Tensor, text: Tensor, other_text: Tensor) -> Tensor:
    """Which coordinates of f to take from `other`, so that `other_text` scores above `text`.

    All (..., dim). Coordinates are taken in the order of what each adds to the score of
    `other_text`, and no more than are needed; all, where none are enough. What a coordinate adds
    does not depend on the others taken, so that one sort finds the order of a greedy search.
    """
    change = other - f
    gain = change * other_text
    order = gain.argsort(dim=-1, descending=True, stable=True)
    ahead = (change * (other_text - text)).gather(-1, order).cumsum(dim=-1)
    lead = (f * (other_text - text)).sum(dim=-1, keepdim=True) + ahead  # after 1, 2, ... are taken
    # taken are those up to the first with a lead: before it there was none
    enough = (lead > 0).cumsum(dim=-1) - (lead > 0).long()
    return torch.zeros_like(f).scatter(-1, order, (enough == 0).to(f.dtype))

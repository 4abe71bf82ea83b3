"""VT-CLIP (Qiu et al., 2021): class texts that attend to the patches of the image before them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Hypers, Plan, hyper
from cliad.adapters.core.ops import linear_start, per_run, unit
from cliad.adapters.core.texts import zero_shot_constants

MOST_HEADS = 8


@dataclass(frozen=True)
class VtClip(Head):
    """VT-CLIP (Qiu et al., 2021): class texts attend to the patches of each image before matching.

    With the patches P_i (n_token, dim) of image i, its feature f_i and class weights t_k, all unit
    rows: w_ik = unit(t_k + alpha Attn(t_k; P_i) O), logits = s f_i . w_ik. Attn has the texts as
    queries and the patches as keys and values (arXiv 2112.02399, abstract).
    NOTE[DIFF] sizes and recipe are ours, as no code was released: one attention of 8 heads (or as
    many as divide dim) without biases, its output O (dim, dim) from zeros, so that training begins
    at zero-shot; no self-attention of the texts, and no feed-forward layer.
    """

    alpha: float = hyper(1.0, "weight of what the texts see of the image; 0 is zero-shot", 0, 1000)
    lr: float = hyper(1e-3, "highest learning rate", 0)
    weight_decay: float = hyper(0.01, "weight decay", 0)
    epochs: int = hyper(30, "passes over the support set", 1)
    batch: int = hyper(64, "largest minibatch", 1)

    vary: ClassVar[frozenset[str]] = frozenset({"alpha", "lr", "weight_decay"})
    space: ClassVar[dict[str, tuple]] = {"lr": (1e-3, 1e-4), "alpha": (1.0, 0.3)}
    needs: ClassVar[frozenset[str]] = frozenset({"text", "raw", "tokens"})
    scored: ClassVar[int] = 64
    new_classes: ClassVar[str] = "text"

    def floats_per_item(self, n_class: int, dim: int, width: int) -> int:
        n_token = width // dim - 1
        # class weights of an image a few times over, and the attention of each head
        return n_class * (8 * dim + 3 * MOST_HEADS * n_token)

    def plan(self, n: int, shots: float) -> Plan:
        return Plan.epochs(n, epochs=self.epochs, batch=self.batch)

    def bind(self, support: Support, h: Hypers) -> Tensors:
        return zero_shot_constants(support)

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        dim = c["text"].shape[-1]
        drawn = [
            torch.stack([linear_start(dim, dim, generator) for _ in range(3)])
            for generator in generators
        ]
        query, key, value = torch.stack(drawn, dim=1).to(c["text"])  # each (n_run, dim, dim)
        return {"query": query, "key": key, "value": value, "output": torch.zeros_like(query)}

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        dim = c["text"].shape[-1]
        n_token = x.shape[-1] // dim - 1
        feature = unit(x[..., :dim])
        patches = unit(x[..., dim:].unflatten(-1, (n_token, dim)))  # (n_run, n, n_token, dim)
        seen = _attend(p, c["text"], patches)  # (n_run, n, n_class, dim)
        weights = unit(c["text"][:, None] + per_run(h["alpha"], seen) * seen)
        return c["scale"] * (weights @ feature[..., None])[..., 0]


def attention(p: Tensors, text: Tensor, patches: Tensor) -> Tensor:
    """How much each text looks at each patch, (n_run, n, n_head, n_class, n_token); rows sum to 1.

    text (1 or n_run, n_class, dim), patches (1 or n_run, n, n_token, dim).
    """
    dim = text.shape[-1]
    queries = _heads((text @ p["query"])[:, None])  # (n_run, 1, n_head, n_class, dim / n_head)
    keys = _heads(_times(patches, p["key"]))  # (n_run, n, n_head, n_token, dim / n_head)
    return (queries @ keys.mT / math.sqrt(dim // _n_head(dim))).softmax(dim=-1)


def _attend(p: Tensors, text: Tensor, patches: Tensor) -> Tensor:
    """What each text takes from the patches of each image, (n_run, n, n_class, dim)."""
    values = _heads(_times(patches, p["value"]))
    mixed = attention(p, text, patches) @ values  # (n_run, n, n_head, n_class, dim / n_head)
    return _times(mixed.transpose(2, 3).flatten(3), p["output"])


def _n_head(dim: int) -> int:
    return math.gcd(MOST_HEADS, dim)


def _heads(x: Tensor) -> Tensor:
    """(..., k, dim) -> (..., n_head, k, dim / n_head)."""
    return x.unflatten(-1, (_n_head(x.shape[-1]), -1)).transpose(-2, -3)


def _times(x: Tensor, matrix: Tensor) -> Tensor:
    """x (1 or n_run, n, k, dim) times matrix (n_run, dim, dim): (n_run, n, k, dim).

    As one product of each run: a matrix repeated for each image is six times slower.
    """
    product = x.flatten(1, 2) @ matrix
    return product.unflatten(1, x.shape[1:3])

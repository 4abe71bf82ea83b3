"""Text ridge: a ridge regression from images to the texts of their classes, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Hypers, hyper
from cliad.adapters.core.logistic import items
from cliad.adapters.core.ops import SHORTEST, cholesky_solve, class_weights, is_point


@dataclass(frozen=True)
class TextRidge(Head):
    """Text ridge: a ridge regression from images to the texts of their classes, in closed form.

    With z = f - m, m the mean of the support's unit rows, A = Z^T Z and Tc the class weights less
    their mean over classes,

        M = (A + ridge tr(A) / dim I)^-1 Z^T Tc[y],   logits = (f - m) M Tc^T / mean_k |Tc_k|^2

    M knows no class, and serves others by their texts. Logits are about 1 at most, so that
    probabilities need the temperature.

    Ridge regression from images to labels' vectors is what Shigeto et al. (ECML PKDD 2015) start
    from; in ESZSL (Romera-Paredes and Torr, ICML 2015) too, the layer above the learned one is
    given by the classes' descriptions.
    """

    ridge: float = hyper(0.3, "ridge, in mean eigenvalues of the scatter", 1e-9, 1e9)

    vary: ClassVar[frozenset[str]] = frozenset({"ridge"})
    space: ClassVar[dict[str, tuple]] = {"ridge": (0.3, 0.1, 1.0, 0.03, 3.0)}
    new_classes: ClassVar[str] = "text"

    def bind(self, support: Support, h: Hypers) -> Tensors:
        text = class_weights(support.need_text())  # (n_class, dim)
        centred = text - text.mean(dim=0)
        size = centred.square().sum(dim=1).mean().clamp(min=SHORTEST)  # mean_k |Tc_k|^2
        return items(support) | {"text": (centred / size)[None], "_target": centred[None]}

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        mask = c["_mask"][..., None]  # (n_run, n, 1)
        mean = c["_x"].sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        z = (c["_x"] - mean) * mask
        # Of items that are all one point only rounding is left, which would be made large.
        z = z.masked_fill(is_point(z)[:, None, None], 0.0)
        scatter = z.mT @ z  # A (n_run, dim, dim)
        dim = z.shape[-1]
        size = scatter.diagonal(dim1=1, dim2=2).sum(dim=1) / dim  # mean eigenvalue (n_run,)
        # The clamp keeps the matrix invertible where all items are one point.
        ridge = (h["ridge"] * size).clamp(min=SHORTEST)[:, None, None]
        identity = torch.eye(dim, dtype=z.dtype, device=z.device)
        # Z^T Tc[y], added up class by class.
        towards = (c["_onehot"].mT @ z).mT @ c["_target"]
        return {"map": cholesky_solve(scatter + ridge * identity, towards), "mean": mean}

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        return (x - p["mean"]) @ p["map"] @ c["text"].mT

"""Text ridge: a ridge regression from image features to class texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Hypers, hyper
from cliad.adapters.core.ops import cholesky_solve, class_weights


@dataclass(frozen=True)
class TextRidge(Head):
    """Text ridge: the linear map from images to class texts that errs least on the support.

    Unit rows f of mean m, class weights t_k of mean t. M (dim, dim) minimises
    sum_i |(f_i - m) M - (t_{y_i} - t)|^2 + ridge tr(A) / dim |M|^2, where
    A = sum_i (f_i - m)^T (f_i - m); logits = (f - m) M (t_k - t)^T / mean_k |t_k - t|^2. Zero-shot
    learning before CLIP had such maps into a space of words, ESZSL (Romera-Paredes and Torr, ICML
    2015) among them. M knows no class: what it learns of one serves all, and new ones. The recipe
    is ours.
    """

    ridge: float = hyper(0.3, "penalty on the map, in units of the mean eigenvalue", 1e-6, 1e6)

    vary: ClassVar[frozenset[str]] = frozenset({"ridge"})
    space: ClassVar[dict[str, tuple]] = {"ridge": (0.3, 1.0, 0.1)}
    per_class: ClassVar[bool] = False

    def bind(self, support: Support, h: Hypers) -> Tensors:
        text = class_weights(support.need_text())
        centred = text - text.mean(dim=0)  # (n_class, dim)
        # Texts that are all one point have no directions to map to.
        length = centred.square().sum(dim=1).mean().clamp(min=1e-12)
        return {
            "centred": centred[None],
            "classes": (centred / length)[None],
            "_x": support.x,
            "_y": support.y,
            "_mask": support.mask,
        }

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        mask = c["_mask"][..., None]
        mean = (c["_x"] * mask).sum(dim=1) / mask.sum(dim=1)  # (n_run, dim)
        z = (c["_x"] - mean[:, None]) * mask  # (n_run, n, dim); rows of zeros in the padding
        target = c["centred"][0][c["_y"]]
        scatter = z.mT @ z  # A (n_run, dim, dim)
        unit_of_ridge = scatter.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1e-12)
        identity = torch.eye(z.shape[2], dtype=z.dtype, device=z.device)
        ridged = scatter + (h["ridge"] * unit_of_ridge)[:, None, None] * identity
        return {"map": cholesky_solve(ridged, z.mT @ target), "mean": mean}

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        return ((x - p["mean"][:, None]) @ p["map"]) @ c["classes"].mT

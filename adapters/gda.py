"""GDA (Wang et al., 2024): Gaussian discriminant analysis beside zero-shot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, hyper
from cliad.adapters.core.ops import class_weights, cosine_logits, unit


@dataclass(frozen=True)
class Gda(Head):
    """GDA (Wang et al., 2024): no training, classes as Gaussians of one covariance, beside zero-shot.

    logits = s f T^T + alpha (f W^T + b), w_k = P mu_k, b_k = log(1 / n_class) - mu_k^T P mu_k / 2, mu_k (dim,) the class mean of unit
    rows, P = dim ((n - 1) S + tr(S) I)^-1, S (dim, dim) the covariance within classes (ICLR 2024, Section 3.2). Where there are
    views, each is a sample.
    NOTE[DIFF] one view and one shot leave S = 0, of which the released code makes W = 0, zero-shot; here S is then the
    covariance about the mean of all samples.
    """

    alpha: float = hyper(1.0, "weight of the Gaussian logits; 0 is zero-shot", 0, 1e6)

    vary: ClassVar[frozenset[str]] = frozenset({"alpha"})
    tuned: ClassVar[frozenset[str]] = frozenset({"alpha"})
    space: ClassVar[dict[str, tuple]] = {"alpha": (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)}
    optional_inputs: ClassVar[frozenset[str]] = frozenset({"views"})
    select: ClassVar[str] = "val"

    def bind(self, support: Support, h: Tensors) -> Tensors:
        scale = support.scale
        w, b = zip(
            *(gaussians(*samples, support.n_class) for samples in _samples(support)), strict=True
        )
        return {
            "text": class_weights(support.need_text())[None],
            "scale": scale,
            "w": torch.stack(w),
            "b": torch.stack(b),
        }

    def logits(self, p: Tensors, c: Tensors, h: Tensors, x: Tensor) -> Tensor:
        return cosine_logits(x, c["text"], c["scale"]) + h["alpha"][:, None, None] * (
            x @ c["w"].mT + c["b"][:, None]
        )


def _samples(support: Support):
    """Each run's own samples, unit rows (n, dim), and labels (n,)."""
    for run in range(len(support.x)):
        items = support.mask[run] > 0
        y = support.y[run, items]
        if support.all_views is None:
            yield support.x[run, items], y
        else:
            views = unit(support.all_views[:, support.rows[run, items]])
            yield views.flatten(0, 1), y.repeat(len(views))


def gaussians(x: Tensor, y: Tensor, n_class: int) -> tuple[Tensor, Tensor]:
    """W (n_class, dim) and b (n_class,) of samples x (n, dim), y (n,); a class without samples has the mean of all."""
    count = torch.bincount(y, minlength=n_class)
    mean = x.new_zeros(n_class, x.shape[1]).index_add_(0, y, x) / count.clamp(min=1)[:, None]
    mean = torch.where(count[:, None] > 0, mean, x.mean(dim=0))
    within = x - mean[y]
    if within.square().mean() < 1e-12:
        within = x - x.mean(dim=0)
    scatter = within.mT @ within  # (n - 1) S
    ridge = scatter.trace() / max(len(x) - 1, 1)  # tr(S)
    ridged = scatter + ridge.clamp(min=1e-12) * torch.eye(
        x.shape[1], dtype=x.dtype, device=x.device
    )
    w = x.shape[1] * torch.cholesky_solve(mean.mT, torch.linalg.cholesky(ridged)).mT
    return w, -math.log(n_class) - (w * mean).sum(dim=1) / 2

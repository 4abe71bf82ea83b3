"""Whitened logistic regression: MAP weights around zero-shot, in whitened features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Hypers, Plan, hyper
from cliad.adapters.core.logistic import items, solve
from cliad.adapters.core.ops import NO_SCATTER, is_point, where_all_works
from cliad.adapters.core.texts import zero_shot_weights

SHARE_WITHIN = 0.6  # of the variance about the mean of all, where one image a class shows no other


@dataclass(frozen=True)
class WhitenedLr(Head):
    """Whitened logistic regression: MAP weights around zero-shot, in whitened features.

    logits = text_weight s f T^T + V z + b with z = P (f - m), m the mean of the support's unit
    rows, P = S'^(-1/2) of their scatter within classes (see `whitening`), and V (n_class, dim),
    b (n_class,) at the minimum of

        sum_i CE(logits_i, y_i) + strength |V|^2 / 2 + bias_strength |b|^2 / 2

    |V|^2 of whitened weights is a Gaussian prior whose precision is S', which GDA (Wang et al.,
    2024) estimates too. Without class texts the first term is left out. No paper has just this;
    near are BayesAdapter (Morales-Alvarez et al., 2024), which reads a CLIP adapter as MAP
    inference, and ProKeR (Bendou et al., CVPR 2025), kernel ridge regression held near zero-shot.
    """

    strength: float = hyper(1.0, "strength of the L2 penalty on whitened weights", 1e-12, 1e12)
    bias_strength: float = hyper(0.1, "strength of the L2 penalty on the intercepts", 0, 1e12)
    text_weight: float = hyper(1.0, "weight of the zero-shot logits; 0 is without texts", 0, 1000)
    max_iter: int = hyper(60, "most L-BFGS iterations", 1)
    tol: float = hyper(1e-3, "relative tolerance of L-BFGS (divided by 1000 in float64)", 0)

    vary: ClassVar[frozenset[str]] = frozenset({"strength", "bias_strength", "text_weight"})
    space: ClassVar[dict[str, tuple]] = {"strength": (1.0, 0.1, 10.0, 0.01, 100.0)}
    needs: ClassVar[frozenset[str]] = frozenset()
    optional_inputs: ClassVar[frozenset[str]] = frozenset({"text"})

    def plan(self, n: int, shots: float) -> Plan:
        return Plan(batch=n)  # no steps: `start` solves it; runs of equal n are solved together

    def bind(self, support: Support, h: Hypers) -> Tensors:
        return items(support) | zero_shot_weights(support)

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        x = where_all_works(c["_x"])
        mask = where_all_works(c["_mask"])
        onehot = where_all_works(c["_onehot"])
        text = where_all_works(h["text_weight"])[:, None, None] * where_all_works(c["_zero_shot"])
        mean, whiten = whitening(x, onehot)
        v, b = solve(
            (x - mean) @ whiten * mask[..., None],
            onehot=onehot,
            mask=mask,
            C=1 / h["strength"],
            bias_C=1 / h["bias_strength"],
            offset=x @ text.mT,
            steps=self.max_iter,
            tolerance=self.tol,
        )
        # One linear map of f: V P (f - m) + b = (V P) f + (b - V P m).
        w = v @ whiten.to(v)
        b = b - (w @ mean.mT.to(w))[..., 0]
        return {"w": (text + w).to(c["_x"]), "b": b.to(c["_x"])}

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        return x @ p["w"].mT + p["b"][:, None]


def whitening(x: Tensor, onehot: Tensor) -> tuple[Tensor, Tensor]:
    """The mean m (n_run, 1, dim) of the items, and P = S'^(-1/2) (n_run, dim, dim), symmetric.

    x (n_run, n, dim) and onehot (n_run, n, n_class) are zeros in the padding. S' is the pooled
    covariance S within classes and, in every direction, a ridge of tr(S) / dof.
    """
    in_class = onehot.sum(dim=1)  # (n_run, n_class)
    count = in_class.sum(dim=1)[:, None, None]  # n
    is_item = onehot.sum(dim=2)[..., None]
    mean = x.sum(dim=1, keepdim=True) / count.clamp(min=1)
    class_mean = onehot.mT @ x / in_class[..., None].clamp(min=1)

    # R = x - mu_y, with n - K degrees of freedom left in it. One image a class leaves R = 0. Then
    # the scatter about m stands for it: R = sqrt(.6) (x - m), with n - 1 degrees of freedom.
    within = x - onehot @ class_mean
    n_seen = (in_class > 0).sum(dim=1)[:, None, None]
    # where() and not `if`: on a GPU the program need not wait for the comparison.
    none = is_point(within)[:, None, None]
    about_mean = SHARE_WITHIN**0.5 * (x - mean) * is_item
    within = torch.where(none, about_mean, within)
    dof = torch.where(none, count - 1, count - n_seen).clamp(min=1)

    covariance = within.mT @ within / dof  # S
    trace = covariance.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
    # The clamp keeps S' invertible where all items are one point.
    ridge = (trace / dof).clamp(min=NO_SCATTER)  # (n_run, 1, 1)
    # S = Q diag(e) Q^T, so S'^(-1/2) = Q diag((e + ridge)^(-1/2)) Q^T.
    values, vectors = torch.linalg.eigh(covariance)
    stretch = (values.clamp(min=0)[:, None] + ridge).rsqrt()  # (n_run, 1, dim)
    return mean, (vectors * stretch) @ vectors.mT

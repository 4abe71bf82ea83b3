"""LP++ (Huang et al., 2024): a linear probe plus class texts, with step sizes from the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Hypers, Plan, hyper
from cliad.adapters.core.ops import class_weights, dot, largest_eigenvalue, linear_start


@dataclass(frozen=True)
class LpPlusPlus(Head):
    """LP++ (Huang et al., 2024): a linear probe plus class texts, step sizes in closed form.

    logit_k = w_k . f + b_k + a_k (t_k . f), f and t unit, without CLIP's logit scale (CVPR 2024,
    Eq. 3). Where w (n_class, dim) and a (n_class,) start, and how far they step, follows from the
    data: see `first_values` and `step_sizes` (Section 3.3). w and b descend on all items with
    momentum 0.9; a moves in every tenth step, without momentum. Where a run selects on validation,
    the step that is best there is kept.
    NOTE[DIFF] the released code never clears the gradient of a, so that each of its steps sums all
    gradients so far; here, as in the paper, it is the gradient of that step.
    """

    epochs: int = hyper(300, "steps on the whole support set", 1)

    select: ClassVar[str] = "val"

    def plan(self, n: int, shots: float) -> Plan:
        return Plan(steps=self.epochs, optimiser="sgd", schedule="constant", keep="best")

    def bind(self, support: Support, h: Hypers) -> Tensors:
        text = class_weights(support.need_text())[None]
        cosine = dot(support.x, text)  # f_i . t_k (n_run, n, n_class)
        return {"text": text} | first_values(support, cosine) | step_sizes(support, cosine)

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        n_class, dim = c["text"].shape[1:]
        # The intercepts start as those of a linear layer in PyTorch: one draw of a layer's weights
        # (dim, n_class) has the same range, and its first row is taken.
        rows = [linear_start(dim, n_class, generator)[0] for generator in generators]
        b = torch.stack(rows).to(c["text"])
        return {"w": c["_w"], "b": b, "a": c["_a"][:, None].repeat(1, n_class)}

    def rates(self, c: Tensors, h: Hypers) -> dict[str, tuple[Tensor, int]]:
        return {"w": (c["_lr_w"], 1), "b": (c["_lr_w"], 1), "a": (c["_lr_a"], 10)}

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        return dot(x, p["w"]) + p["b"][:, None] + p["a"][:, None] * dot(x, c["text"])


def first_values(support: Support, cosine: Tensor) -> Tensors:
    """Where w (n_run, n_class, dim) starts, and a (n_run,), the same number for all classes.

    cosine (n_run, n, n_class) is of the support images and the class texts.
    """
    onehot = support.onehot  # (n_run, n, n_class)
    # w_k: the sum of the class's features, as in the released code.
    w = onehot.mT @ support.x
    # a: 250 times the cosine of an image and its own class text, averaged first within each class
    # and then over classes (Eq. 15; its number of shots cancels out in the released code).
    own_class = (cosine * onehot).sum(dim=1) / onehot.sum(dim=1).clamp(min=1)  # (n_run, n_class)
    return {"_w": w, "_a": 250 * own_class.mean(dim=1)}


def step_sizes(support: Support, cosine: Tensor) -> Tensors:
    """The step sizes of w and b, and of a, each (n_run,).

    cosine (n_run, n, n_class) is of the support images and the class texts.
    """
    # A gradient step of 1 / L cannot overshoot where the curvature of the loss is at most L. With
    # p_ik the softmax, the mean cross-entropy's curvature in the logit of item i and class k is
    # p_ik (1 - p_ik) / n <= 1 / (4 n). Between classes it is left out: L is approximate.
    count = support.mask.sum(dim=1)

    # In w_k the logit's gradient is f_i, so that
    #   L_w = lambda_max(sum_i f_i f_i^T) / (4 n),   step 4 n / lambda_max(X^T X)   (Eq. 10).
    # Padding adds rows of zeros to X, which change nothing.
    gram = support.x.mT @ support.x  # X^T X (n_run, dim, dim)
    lambda_max = largest_eigenvalue(gram)

    # In a_k the logit's gradient is f_i . t_k. The step is n / (4 max_k sum_i (f_i . t_k)^2)
    # (Eq. 11, as the released code computes it), one sixteenth of what the same bound would allow.
    of_items = cosine * support.mask[..., None]
    largest = of_items.square().sum(dim=1).amax(dim=1)
    return {"_lr_w": 4 * count / lambda_max, "_lr_a": count / (4 * largest)}

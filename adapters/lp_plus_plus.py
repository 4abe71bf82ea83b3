"""LP++ (Huang et al., 2024): a linear probe that blends in the class texts, with step sizes from the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Plan, hyper
from cliad.adapters.core.ops import class_weights, dot, linear_start


@dataclass(frozen=True)
class LpPlusPlus(Head):
    """LP++ (Huang et al., 2024): a linear probe plus class texts, step sizes in closed form.

    logit_k = w_k . f + b_k + a_k (t_k . f), f and t unit, no logit scale; w (n_class, dim) starts at the sum of the class's features,
    a (n_class,) at 250 times the mean over classes of the mean of f . t_k within class k (CVPR 2024, Eq. 3 and Section 3.3).
    Steps: 4 n / lambda_max(X^T X) for w and b (gradient descent with momentum 0.9 on all items), and every tenth step
    n / (4 max_k sum_i (f_i . t_k)^2) for a. The step that is best on validation is kept, where a run selects on validation.
    NOTE[DIFF] the released code never clears the gradient of a, so that each of its steps sums all gradients so far; here, as in
    the paper, it is the gradient of that step.
    """

    epochs: int = hyper(300, "steps on the whole support set", 1)

    select: ClassVar[str] = "val"
    optional_inputs: ClassVar[frozenset[str]] = frozenset()

    def plan(self, n: int, shots: float) -> Plan:
        return Plan(steps=self.epochs, optimiser="sgd", schedule="constant", keep="best")

    def bind(self, support: Support, h: Tensors) -> Tensors:
        text, count = class_weights(support.need_text())[None], support.mask.sum(dim=1)
        onehot, cosine = support.onehot, dot(support.x, text)  # both (n_run, n, n_class)
        own = (cosine * onehot).sum(dim=1) / onehot.sum(dim=1).clamp(min=1)
        c = {"text": text, "_w": onehot.mT @ support.x, "_a": 250 * own.mean(dim=1)}
        top = torch.linalg.eigvalsh(support.x.mT @ support.x)[:, -1]
        at_most = (cosine * support.mask[..., None]).square().sum(dim=1).amax(dim=1)
        return c | {"_lr_w": 4 * count / top, "_lr_a": count / (4 * at_most)}

    def start(self, c: Tensors, h: Tensors, generators: Sequence[Generator]) -> Tensors:
        n_class, dim = c["text"].shape[1:]
        b = torch.stack([linear_start(dim, n_class, g)[0] for g in generators]).to(c["text"])
        return {"w": c["_w"], "b": b, "a": c["_a"][:, None].repeat(1, n_class)}

    def rates(self, c: Tensors, h: Tensors) -> dict[str, tuple[Tensor, int]]:
        return {"w": (c["_lr_w"], 1), "b": (c["_lr_w"], 1), "a": (c["_lr_a"], 10)}

    def logits(self, p: Tensors, c: Tensors, h: Tensors, x: Tensor) -> Tensor:
        return dot(x, p["w"]) + p["b"][:, None] + p["a"][:, None] * dot(x, c["text"])

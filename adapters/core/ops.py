"""The tensor operations that heads share: class weights, cosine logits, the bottleneck, class texts as items."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from cliad.adapters.core.episode import Tensors


def unit(x: Tensor) -> Tensor:
    """Rows of length one; a row of zeros stays one."""
    return F.normalize(x, dim=-1, eps=1e-12)


def class_weights(text: Tensor) -> Tensor:
    """Zero-shot weights (n_class, dim) from raw text (n_template, n_class, dim): unit rows, their mean over templates, unit again."""
    return unit(unit(text).mean(dim=0))


def raw_class_weights(text: Tensor) -> Tensor:
    """The raw mean (n_class, dim) over the templates that a class has.

    Heads that start here train with rates made for the length of CLIP's raw text features, about 10. Text that was imported as
    unit rows has lost its length, and is given that one.
    """
    present = (text != 0).any(dim=-1, keepdim=True).sum(dim=0)
    unit_rows = torch.linalg.vector_norm(text, dim=-1).amax() < 1.5
    return text.sum(dim=0) / present.clamp(min=1) * torch.where(unit_rows, 10.0, 1.0).to(text)


def cosine_logits(x: Tensor, w: Tensor, scale: Tensor | float) -> Tensor:
    """scale * cos(x, w): x (n_run, n, dim) of any length, w (n_run or 1, n_class, dim) unit rows -> (n_run, n, n_class)."""
    learned = isinstance(scale, Tensor) and scale.requires_grad
    if torch.is_grad_enabled() and x.requires_grad and not learned and len(x) >= len(w):
        return _Cosine.apply(x, w, scale)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-12)
    return dot(x, w) * (scale / length)


class _Cosine(torch.autograd.Function):
    """The same with a gradient that goes over x once, where autograd's own goes five times."""

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, scale) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=1e-12)
        logits = dot(x, w).mul_(scale / length)
        ctx.save_for_backward(x, w, logits, length)
        ctx.scale = scale
        return logits

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, w, logits, length = ctx.saved_tensors
        along = (grad * logits).sum(dim=-1, keepdim=True).div_(length * length).neg_()
        grad = grad * (ctx.scale / length)
        dx = dot(grad, w.mT).addcmul_(x, along)
        if not ctx.needs_input_grad[1]:
            return dx, None, None
        dw = grad.mT @ x
        return dx, dw if len(w) == len(dw) else dw.sum(dim=0, keepdim=True), None


def dot(x: Tensor, w: Tensor) -> Tensor:
    """x (n_run, n, dim) times w (n_run, n_class, dim) -> (n_run, n, n_class); a w that all runs share is one large product."""
    return x @ (w[0].mT if len(w) == 1 else w.mT)


def bottleneck(x: Tensor, w1: Tensor, w2: Tensor, *, final_relu: bool = True) -> Tensor:
    """CLIP-Adapter's network without bias: x (n_run, n, dim), w1 (n_run, dim, hidden), w2 (n_run, hidden, dim) -> (n_run, n, dim)."""
    adapted = (x @ w1).relu_() @ w2
    return adapted.relu_() if final_relu else adapted


def bottleneck_start(
    dim: int, hidden: int, generators: Sequence[Generator], like: Tensor
) -> tuple[Tensor, Tensor]:
    """w1 and w2 of `bottleneck` as PyTorch starts bias-free linear layers, from each run's own generator."""
    pairs = [(linear_start(dim, hidden, g), linear_start(hidden, dim, g)) for g in generators]
    return tuple(torch.stack(weights).to(like) for weights in zip(*pairs, strict=True))


def linear_start(n_in: int, n_out: int, generator: Generator) -> Tensor:
    """(n_in, n_out) weights as PyTorch starts a linear layer: uniform in +-1/sqrt(n_in)."""
    return (
        torch.rand(n_in, n_out, generator=generator, device=generator.device) * 2 - 1
    ) / math.sqrt(n_in)


def text_shots(text: Tensor) -> Tensors:
    """Raw text (n_template, n_class, dim) as training items: unit rows (1, n_template * n_class, dim), labels, weights that sum to 1."""
    there = (text != 0).any(dim=-1).to(text).flatten()
    y = torch.arange(text.shape[1], device=text.device).repeat(len(text))
    return {
        "_text": unit(text).flatten(0, 1)[None],
        "_text_y": y[None],
        "_text_weight": (there / there.sum())[None],
    }


def text_loss(logits: Tensor, c: Tensors) -> Tensor:
    """Mean cross-entropy (n_run,) of logits (n_run, n_text, n_class) on the items of `text_shots`."""
    own = logits.log_softmax(dim=-1).gather(2, c["_text_y"][..., None].expand(len(logits), -1, 1))[
        ..., 0
    ]
    return -(own * c["_text_weight"]).sum(dim=1)

"""The tensor operations that heads share: class weights, cosine logits, the bottleneck, texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from cliad.adapters.core.episode import Tensors

SHORTEST = 1e-12  # a length below this counts as this, so that a row of zeros can be divided by it
NO_SCATTER = 1e-12  # mean square of unit rows about their means, below which they are equal
CLIP_TEXT_LENGTH = 10.0  # about the length of CLIP's raw text features


def unit(x: Tensor) -> Tensor:
    """Rows of length one; a row of zeros stays zero."""
    return F.normalize(x, dim=-1, eps=SHORTEST)


def is_point(differences: Tensor) -> Tensor:
    """Whether (...) unit rows are at their means, from differences (..., n, dim) to these."""
    return differences.square().mean(dim=(-2, -1)) < NO_SCATTER


def per_run(values: Tensor, like: Tensor) -> Tensor:
    """One value a run (n_run,) as (n_run, 1, ..., 1), with as many axes as `like` (n_run, ...)."""
    return values.view(-1, *[1] * (like.dim() - 1))


def class_weights(text: Tensor) -> Tensor:
    """Zero-shot weights (n_class, dim) from raw text (n_template, n_class, dim).

    Unit rows, their mean over templates, unit again (Radford et al., 2021, Section 3.1.4).
    """
    return unit(unit(text).mean(dim=0))


def raw_class_weights(text: Tensor) -> Tensor:
    """The raw mean (n_class, dim) over the templates that a class has.

    Heads that start here train with rates made for the length of CLIP's raw text features.
    Text that was imported as unit rows has lost its length, and gets that one.
    """
    present = (text != 0).any(dim=-1, keepdim=True).sum(dim=0)  # (n_class, 1) templates
    unit_rows = torch.linalg.vector_norm(text, dim=-1).amax() < 1.5
    # where() and not `if`: on a GPU the program need not wait for the comparison
    length = torch.where(unit_rows, CLIP_TEXT_LENGTH, 1.0).to(text)
    return text.sum(dim=0) / present.clamp(min=1) * length


def cosine_logits(x: Tensor, w: Tensor, scale: Tensor | float) -> Tensor:
    """scale * cos(x, w): (n_run, n, n_class).

    x (n_run, n, dim) of any length, w (n_run or 1, n_class, dim) unit rows.
    """
    # `_Cosine` has no gradient of the scale, and none of items (1, n, dim) that all runs share
    # beside a w of each run
    learned = isinstance(scale, Tensor) and scale.requires_grad
    if torch.is_grad_enabled() and x.requires_grad and not learned and len(x) >= len(w):
        return _Cosine.apply(x, w, scale)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=SHORTEST)
    return dot(x, w) * (scale / length)


class _Cosine(torch.autograd.Function):
    """The same with a gradient that goes over x once, where autograd's own goes five times.

    With the logits l_k = scale * (x . w_k) / |x| of an item x (dim,) and g_k their gradient:

        d l_k / d x = (scale / |x|) w_k - (l_k / |x|^2) x
        sum_k g_k d l_k / d x = (scale / |x|) sum_k g_k w_k - (sum_k g_k l_k / |x|^2) x
        sum over items of g_k d l_k / d w_k = sum over items of g_k (scale / |x|) x
    """

    # `ctx` is Any: what is stored on torch's context has no declared attributes

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, scale: Tensor | float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=SHORTEST)
        logits = dot(x, w).mul_(scale / length)
        ctx.save_for_backward(x, w, logits, length)
        ctx.scale = scale
        return logits

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, w, logits, length = ctx.saved_tensors
        # the share of the gradient along x: -(sum_k g_k l_k) / |x|^2, (n_run, n, 1)
        along = (grad * logits).sum(dim=-1, keepdim=True).div_(length * length).neg_()
        grad = grad * (ctx.scale / length)
        dx = dot(grad, w.mT).addcmul_(x, along)
        if not ctx.needs_input_grad[1]:
            return dx, None, None
        dw = grad.mT @ x  # (n_run, n_class, dim)
        if len(w) < len(dw):
            dw = dw.sum(dim=0, keepdim=True)  # all runs share w
        return dx, dw, None


def dot(x: Tensor, w: Tensor) -> Tensor:
    """x (n_run, n, dim) times w (n_run or 1, n_class, dim) -> (n_run, n, n_class)."""
    if len(w) == 1:
        return x @ w[0].mT  # one large product in place of n_run small ones
    return x @ w.mT


def bottleneck(x: Tensor, w1: Tensor, w2: Tensor, *, final_relu: bool = True) -> Tensor:
    """CLIP-Adapter's network without bias: (n_run, n, dim) -> (n_run, n, dim).

    w1 (n_run, dim, hidden), w2 (n_run, hidden, dim).
    """
    adapted = (x @ w1).relu_() @ w2
    return adapted.relu_() if final_relu else adapted


def bottleneck_start(
    dim: int, hidden: int, generators: Sequence[Generator], like: Tensor
) -> tuple[Tensor, Tensor]:
    """w1 and w2 of `bottleneck` as PyTorch starts bias-free linear layers.

    The numbers come from each run's own generator: first w1, then w2.
    """
    first = []
    second = []
    for generator in generators:
        first.append(linear_start(dim, hidden, generator))
        second.append(linear_start(hidden, dim, generator))
    return torch.stack(first).to(like), torch.stack(second).to(like)


def linear_start(n_in: int, n_out: int, generator: Generator) -> Tensor:
    """(n_in, n_out) weights as PyTorch starts a linear layer: uniform in +-1/sqrt(n_in)."""
    uniform = torch.rand(n_in, n_out, generator=generator, device=generator.device)
    return (uniform * 2 - 1) / math.sqrt(n_in)


def text_shots(text: Tensor) -> Tensors:
    """Raw text (n_template, n_class, dim) as training items, n_text = n_template * n_class.

    "_text" (1, n_text, dim) unit rows, "_text_y" (1, n_text) labels, "_text_weight" (1, n_text)
    weights that sum to 1: equal, but 0 where a class has no such sentence.
    """
    n_template, n_class, _ = text.shape
    present = (text != 0).any(dim=-1).to(text).flatten()
    y = torch.arange(n_class, device=text.device).repeat(n_template)
    return {
        "_text": unit(text).flatten(0, 1)[None],
        "_text_y": y[None],
        "_text_weight": (present / present.sum())[None],
    }


def text_loss(logits: Tensor, c: Tensors) -> Tensor:
    """Mean cross-entropy (n_run,) of logits (n_run, n_text, n_class) on `text_shots`."""
    y = c["_text_y"][..., None].expand(len(logits), -1, 1)
    own_class = logits.log_softmax(dim=-1).gather(2, y)[..., 0]  # (n_run, n_text)
    return -(own_class * c["_text_weight"]).sum(dim=1)


# Devices without double precision and without the factorisations below.
LACKING = frozenset({"mps"})


def where_all_works(x: Tensor) -> Tensor:
    """x, on the CPU where its device lacks double precision and matrix factorisations."""
    return x.cpu() if x.device.type in LACKING else x


def cholesky_solve(matrix: Tensor, right: Tensor) -> Tensor:
    """X (..., n, k) of matrix X = right, for symmetric positive definite matrices (..., n, n)."""
    factor = torch.linalg.cholesky(where_all_works(matrix))
    return torch.cholesky_solve(where_all_works(right), factor).to(right.device)


def largest_eigenvalue(matrix: Tensor) -> Tensor:
    """The largest eigenvalue (n_run,) of symmetric matrices (n_run, n, n)."""
    # eigvalsh sorts: the last is the largest.
    return torch.linalg.eigvalsh(where_all_works(matrix))[:, -1].to(matrix.device)


def on_host(values: Tensor) -> Any:
    """The values of a tensor as Python's numbers; on a GPU this waits for all work before it.

    Nothing else in `fit`, `logits` and selection asks for values on the device. L-BFGS does to
    know when it has converged, selection to compare its candidates, and whoever asks a classifier
    whether it `diverged`.
    """
    return values.tolist()

"""What a classifier is measured by: tensors in, numbers out, all in fractions 0..1."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

N_BIN = 15


def metrics(logits: Tensor, y: Tensor) -> dict[str, float]:
    """top1, top5, mean_class (mean over classes of their accuracy), ece and nll of logits (n, n_class), labels y (n,)."""
    right = logits.argmax(dim=-1) == y
    top = logits.topk(min(5, logits.shape[-1]), dim=-1).indices
    count = torch.bincount(y, minlength=logits.shape[-1])
    per_class = torch.bincount(y[right], minlength=logits.shape[-1])[count > 0] / count[count > 0]
    values = {
        "top1": right.float().mean(),
        "top5": (top == y[:, None]).any(dim=-1).float().mean(),
        "mean_class": per_class.mean(),
    }
    return {name: value.item() for name, value in values.items()} | calibration(logits, y)


def calibration(logits: Tensor, y: Tensor) -> dict[str, float]:
    """Expected calibration error (15 equal bins, L1; Guo et al., 2017, Section 2) and mean negative log-likelihood."""
    _, confidence, right = _bins(logits, y)
    return {
        "ece": ((right - confidence).abs().sum() / len(y)).item(),
        "nll": F.cross_entropy(logits, y).item(),
    }


def reliability(logits: Tensor, y: Tensor) -> list[list[float]]:
    """[items, their mean confidence, their accuracy] of each of the 15 bins that has items."""
    bins = torch.stack(_bins(logits, y), dim=1).tolist()
    return [
        [int(count), round(confidence / count, 4), round(right / count, 4)]
        for count, confidence, right in bins
        if count
    ]


def _bins(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Items (N_BIN,), the sum of their confidence, and how many are right, by bin of confidence."""
    confidence, predicted = logits.softmax(dim=-1).max(dim=-1)
    bins = (confidence * N_BIN).long().clamp(max=N_BIN - 1)
    each = torch.stack([torch.ones_like(confidence), confidence, (predicted == y).to(confidence)])
    return tuple(
        torch.zeros(3, N_BIN, device=logits.device, dtype=logits.dtype).index_add_(1, bins, each)
    )


def fit_temperature(logits: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Temperatures t (n_run,) > 0 that are likeliest for logits / t (n_run, n, n_class) on y (n_run, n).

    Golden-section search in log t, all runs at once; weight (n_run, n) is zero for items that do not count.
    Before it sees data, log t is thought to be normal around 0 with deviation 1: where all of a few validation images are right,
    their loss alone would fall for ever as t goes to 0, and every prediction would be called certain.
    """
    weight = torch.ones_like(y, dtype=logits.dtype) if weight is None else weight
    target = logits.gather(-1, y[..., None])[..., 0]

    def loss(log_t: Tensor) -> Tensor:
        scaled = logits * (-log_t).exp()[:, None, None]
        return ((scaled.logsumexp(dim=-1) - target * (-log_t).exp()[:, None]) * weight).sum(
            dim=1
        ) + log_t**2 / 2

    ratio = (math.sqrt(5) - 1) / 2
    low, high = (
        logits.new_full((len(logits),), math.log(1e-2)),
        logits.new_full((len(logits),), math.log(1e2)),
    )
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = loss(a), loss(b)
    for _ in range(40):
        left = at_a <= at_b
        low, high = torch.where(left, low, a), torch.where(left, b, high)
        new = torch.where(left, high - ratio * (high - low), low + ratio * (high - low))
        at_new = loss(new)
        a, b = torch.where(left, new, b), torch.where(left, a, new)
        at_a, at_b = torch.where(left, at_new, at_b), torch.where(left, at_a, at_new)
    return ((low + high) / 2).exp()

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
    values = {"top1": right.float().mean(), "top5": (top == y[:, None]).any(dim=-1).float().mean(), "mean_class": per_class.mean()}
    return {name: value.item() for name, value in values.items()} | calibration(logits, y)


def calibration(logits: Tensor, y: Tensor) -> dict[str, float]:
    """Expected calibration error (15 equal bins, L1; Guo et al., 2017, Section 2) and mean negative log-likelihood."""
    confidence, predicted = logits.softmax(dim=-1).max(dim=-1)
    edges = torch.linspace(0, 1, N_BIN + 1, device=logits.device)
    bins = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, N_BIN - 1)
    gap = torch.zeros(N_BIN, device=logits.device).index_add_(0, bins, (predicted == y).float() - confidence)
    return {"ece": (gap.abs().sum() / len(y)).item(), "nll": F.cross_entropy(logits, y).item()}


def fit_temperature(logits: Tensor, y: Tensor) -> float:
    """The temperature t > 0 that is likeliest for logits / t (n, n_class) on y (n,): golden-section search in log t.

    Before it sees data, log t is thought to be normal around 0 with deviation 1: where all of a few validation images are right,
    their loss alone would fall for ever as t goes to 0, and every prediction would be called certain.
    """
    loss = lambda log_t: F.cross_entropy(logits / math.exp(log_t), y, reduction="sum").item() + log_t**2 / 2
    low, high, ratio = math.log(1e-2), math.log(1e2), (math.sqrt(5) - 1) / 2
    for _ in range(40):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if loss(a) <= loss(b) else (a, high)
    return math.exp((low + high) / 2)

"""What a classifier is measured by: tensors in, numbers out, all in fractions 0..1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

N_BIN = 15
LOWEST_TEMPERATURE = 1e-2
HIGHEST_TEMPERATURE = 1e2
N_FOLD = 5  # in which a temperature is tried on items that it was not fitted to
# Nats by which a temperature must lower the summed loss of items that it was not fitted to: the
# likelihood-ratio test of one parameter at 5 % (Wilks, 1938). Where all of a few images are right,
# any sharpening lowers the loss a little, and the first mistake on a test image costs far more.
NEEDED_GAIN = 1.92
HALVINGS = 27  # log(1e4) / 2^27 = 7e-8: float32 cannot tell the ends apart any more


def metrics(logits: Tensor, y: Tensor) -> dict[str, float]:
    """top1, top5, mean_class, ece and nll of logits (n, n_class) on labels y (n,).

    mean_class is the mean over classes of their accuracy; a class without items does not count.
    """
    n_class = logits.shape[-1]
    right = logits.argmax(dim=-1) == y
    top5 = logits.topk(min(5, n_class), dim=-1).indices  # (n, 5)
    count = torch.bincount(y, minlength=n_class)
    count_right = torch.bincount(y[right], minlength=n_class)
    present = count > 0
    per_class = count_right[present] / count[present]
    return {
        "top1": right.float().mean().item(),
        "top5": (top5 == y[:, None]).any(dim=-1).float().mean().item(),
        "mean_class": per_class.mean().item(),
        **calibration(logits, y),
    }


def calibration(logits: Tensor, y: Tensor) -> dict[str, float]:
    """Expected calibration error and mean negative log-likelihood.

    The error has 15 equal bins and absolute differences (Guo et al., 2017, Section 2).
    """
    bins = _bins(logits, y)
    # a bin's weight (count / n) times |right / count - confidence / count|: the counts cancel
    ece = (bins.right - bins.confidence).abs().sum() / len(y)
    return {"ece": ece.item(), "nll": F.cross_entropy(logits, y).item()}


def reliability(logits: Tensor, y: Tensor) -> list[list[float]]:
    """[items, their mean confidence, their accuracy] of each of the 15 bins that has items."""
    bins = _bins(logits, y)
    rows = torch.stack([bins.count, bins.confidence, bins.right], dim=1).tolist()
    filled = []
    for count, confidence, right in rows:
        if count:
            mean_confidence = round(confidence / count, 4)
            accuracy = round(right / count, 4)
            filled.append([int(count), mean_confidence, accuracy])
    return filled


@dataclass(frozen=True, eq=False)
class _Bins:
    """Sums over the items of each bin of confidence, all (N_BIN,).

    How many items there are, their confidence, and how many of them are right.
    """

    count: Tensor
    confidence: Tensor
    right: Tensor


def _bins(logits: Tensor, y: Tensor) -> _Bins:
    confidence, predicted = logits.softmax(dim=-1).max(dim=-1)
    bins = (confidence * N_BIN).long().clamp(max=N_BIN - 1)  # confidence 1 is in the last bin
    right = (predicted == y).to(confidence)
    items = torch.stack([torch.ones_like(confidence), confidence, right])  # (3, n)
    empty = torch.zeros(3, N_BIN, device=logits.device, dtype=logits.dtype)
    return _Bins(*empty.index_add_(1, bins, items))


def supported_temperature(logits: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Temperatures (n_run,) as `fit_temperature` finds them; 1 where they do not help out of fold.

    A temperature of a few validation images can make confidence worse than it was. So the items
    of each run are dealt into folds, the temperature of all others is tried on each fold, and
    where the summed loss is not lower by `NEEDED_GAIN`, the logits stay as they are.

    logits (n_run, n, n_class) on y (n_run, n); weight (n_run, n) is zero for items that do not
    count. A run without at least two items that count has temperature 1.
    """
    n_run, n, n_class = logits.shape
    # An item's number among its run's own: padding must not change the folds of a run.
    position = weight.cumsum(dim=1) - 1  # (n_run, n)
    # The temperature of a fold belongs to the items outside of it: (n_fold, n_run, n).
    in_fold = torch.stack([position % N_FOLD == fold for fold in range(N_FOLD)])
    training = weight * ~in_fold
    # All folds of all runs are searched at once, each as a run of its own.
    tried = fit_temperature(
        logits.expand(N_FOLD, n_run, n, n_class).reshape(-1, n, n_class),
        y.expand(N_FOLD, n_run, n).reshape(-1, n),
        training.reshape(-1, n),
    ).view(N_FOLD, n_run)
    # The temperature that each item is tried with: that of the one fold it is in.
    of_item = (tried[:, :, None] * in_fold).sum(dim=0).clamp(min=LOWEST_TEMPERATURE)  # (n_run, n)
    with_it = _losses(logits / of_item[:, :, None], y)
    without = _losses(logits, y)
    # A fold whose training part is empty has the prior's temperature, 1: no difference.
    gain = ((without - with_it) * weight).sum(dim=1)  # (n_run,) nats
    helps = gain > NEEDED_GAIN
    return torch.where(helps, fit_temperature(logits, y, weight), torch.ones_like(tried[0]))


def _losses(logits: Tensor, y: Tensor) -> Tensor:
    """The negative log-likelihood (n_run, n) of each item."""
    return -logits.log_softmax(dim=-1).gather(-1, y[..., None])[..., 0]


def fit_temperature(logits: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Most probable temperatures t (n_run,) > 0 for logits / t (n_run, n, n_class) on y (n_run, n).

    weight (n_run, n) is zero for items that do not count. All runs are searched at once.

    The prior of log t is normal around 0 with deviation 1. Without it, where all of a few
    validation images are right, the loss would fall for ever as t goes to 0, and every prediction
    would be called certain.
    """
    if weight is None:
        weight = torch.ones_like(y, dtype=logits.dtype)
    # With u = log t, an item's margins m_k = z_k - z_y and its softmax p_k at that temperature,
    # what is minimal and its slope are
    #     L(u) = sum over items of log(sum_k exp(m_k e^-u)) + u^2 / 2
    #     L'(u) = u - e^-u sum over items of sum_k p_k m_k
    # The zero of the slope is known to the last digits, where the minimum of L itself is so flat
    # that single precision gives three: a run alone and in a batch would have other temperatures.
    own_class = logits.gather(-1, y[..., None])  # (n_run, n, 1)
    # Classes come first: a softmax over the last axis is slow where classes are few.
    margins = (logits - own_class).movedim(-1, 0).contiguous()  # (n_class, n_run, n)
    low = logits.new_full((len(logits),), math.log(LOWEST_TEMPERATURE))
    high = logits.new_full((len(logits),), math.log(HIGHEST_TEMPERATURE))
    for _ in range(HALVINGS):
        middle = (low + high) / 2  # (n_run,)
        inverse = (-middle).exp()
        p = (margins * inverse[:, None]).softmax(dim=0)
        mean_margin = (p * margins).sum(dim=0)  # (n_run, n)
        slope = middle - inverse * (mean_margin * weight).sum(dim=1)
        rises = slope > 0  # the minimum is below the middle
        high = torch.where(rises, middle, high)
        low = torch.where(rises, low, middle)
    return ((low + high) / 2).exp()

"""How sure a classifier may be, from items that it was not fitted on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cliad.adapters.core.metrics import supported_temperature


@dataclass(frozen=True, eq=False)
class Calibration:
    """What items of the support say, each judged by a classifier that had not seen it.

    temperature (): logits are divided by it; 1 where no other lowers the loss.
    scores (n,): of each item 1 - the probability of its own class at that temperature, ascending;
    infinity at the end, for what pads a shorter run.
    """

    temperature: Tensor
    scores: Tensor

    @classmethod
    def of(cls, logits: Tensor, y: Tensor, weight: Tensor) -> Calibration:
        """From out-of-fold logits (n, n_class) on labels y (n,); weight (n,) is 0 for padding."""
        (temperature,) = supported_temperature(logits[None], y[None], weight[None])
        p = (logits / temperature).softmax(dim=-1)
        own_class = p.gather(1, y[:, None])[:, 0]
        scores = torch.where(weight > 0, 1 - own_class, math.inf)
        return cls(temperature, scores.sort().values)

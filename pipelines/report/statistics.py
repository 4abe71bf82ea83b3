"""Numbers over seeds: mean, spread, 95 % intervals, paired comparison. Plain Python."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit


@dataclass(frozen=True)
class Summary:
    """The mean of n values and how far it can be trusted.

    std: the standard deviation of the values; None where n is 1.
    half: half the width of the mean's 95 % t-interval; None where n is 1.
    """

    mean: float
    std: float | None
    half: float | None
    n: int

    def within(self, best: Summary) -> bool:
        """Whether this mean lies inside the interval around the best one.

        Such a mean is a tie, as far as these seeds can tell.
        """
        return best.half is not None and self.mean >= best.mean - best.half


def summarise(values: Sequence[float]) -> Summary:
    """The summary of at least one value."""
    n = len(values)
    mean = statistics.fmean(values)
    if n == 1:
        return Summary(mean, None, None, 1)
    std = statistics.stdev(values)
    half = t_quantile(n - 1) * std / math.sqrt(n)
    return Summary(mean, std, half, n)


def t_quantile(dof: int) -> float:
    """Student's t: 95 % of its mass lies between - and + this.

    >>> round(t_quantile(2), 3)
    4.303
    """
    return float(stdtrit(dof, 0.975))


def paired(a: Sequence[float], b: Sequence[float]) -> Summary:
    """The summary of a - b over the same seeds, in the same order."""
    return summarise([x - y for x, y in zip(a, b, strict=True)])

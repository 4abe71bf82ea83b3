"""Sets of classes instead of one: as many as the run's own labelled images needed.

Split conformal prediction (Vovk et al., 2005; score 1 - p of the own class, Sadinle et al., 2019),
on images of the support, each judged by a head that had not seen it. The guarantee of the method is
for images that are drawn as those were. A test split often is not, so none is promised here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cliad.errors import CliadError

PERCENTS = range(50, 100)  # the shares of images that a run keeps thresholds for


class SetsError(CliadError):
    """Sets of classes that cannot be given; the message says why."""


def thresholds_of(scores: Sequence[float]) -> list[float]:
    """The largest score 1 - p of a class that belongs to a set, for each of PERCENTS.

    scores: of the own class of each image, ascending. With n images, the k-th smallest score for
    k = ceil(share (n + 1)); 1, which is all classes, where there are too few images for that share.
    """
    n = len(scores)
    thresholds = []
    for percent in PERCENTS:
        # In whole numbers: 0.9 * 10 may be a little more than 9.
        place = -(-percent * (n + 1) // 100)
        thresholds.append(scores[place - 1] if place <= n else 1.0)
    return thresholds


def threshold_at(thresholds: Sequence[float] | None, coverage: float) -> float:
    """The threshold of a run for a share of its images, such as 0.9.

    Raises:
        SetsError: the run has none, or not for this share.
    """
    percent = round(100 * coverage) if math.isfinite(coverage) else 0
    if percent not in PERCENTS or abs(100 * coverage - percent) > 1e-6:
        raise SetsError(
            f"sets are for a share of images from 0.50 to 0.99 in steps of 0.01; got {coverage:g}"
        )
    if thresholds is None:
        raise SetsError(
            "this run has not judged its own images out of fold, so it cannot say how large a set"
            " has to be; train it with --select cv, or --head auto, and 2 or more shots"
        )
    return thresholds[percent - PERCENTS[0]]


def set_size(probabilities: Sequence[float], threshold: float) -> int:
    """How many classes belong to a set, from probabilities in descending order; at least one."""
    size = sum(1 for probability in probabilities if 1 - probability <= threshold)
    return max(size, 1)


def meaning(coverage: float) -> str:
    """What sets are, for people who see them."""
    return (
        f"sets of classes that would have covered {100 * coverage:.0f} % of your own labelled"
        " images, each judged by a head that had not seen it; no promise for others"
    )


def is_thresholds(value: object) -> bool:
    """Whether a value of run.json is what `thresholds_of` gives, or null."""
    if value is None:
        return True
    if not isinstance(value, list) or len(value) != len(PERCENTS):
        return False
    if not all(isinstance(number, float) and 0 <= number <= 1 for number in value):
        return False
    return value == sorted(value)

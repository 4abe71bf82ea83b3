"""A line where a head is no better than doing nothing: below zero-shot, or below one class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cliad.cache.file.read import FeatureCache

SAME = 1e-9  # accuracies that differ by less are one


def largest_class(cache: FeatureCache) -> float:
    """The share of the largest class among the test images: the accuracy of naming it always."""
    data = cache.split("test")
    # Images that could not be read are not scored either.
    labels = np.asarray(data.y)[np.asarray(data.readable, bool)]
    if not len(labels):
        return 0.0
    return float(np.bincount(labels).max() / len(labels))


def caution(row: Mapping, largest: float) -> str | None:
    """The line on one run; None where it is better than both.

    Args:
        row: its result row.
        largest: see `largest_class`.
    """
    top1 = row["top1"]
    # Training diverged, which is said elsewhere.
    if top1 is None:
        return None
    below = []
    if row["zero_shot_top1"] is not None and top1 < row["zero_shot_top1"] - SAME:
        below.append(f"zero-shot ({100 * row['zero_shot_top1']:.1f} %)")
    if top1 < largest - SAME:
        below.append(f"the share of the largest class ({100 * largest:.1f} %)")
    if not below:
        return None
    return f"{row['head']} ({100 * top1:.1f} %) is below {' and below '.join(below)}"


def caution_of_many(rows: Sequence[Mapping], largest: Mapping[str, float]) -> str | None:
    """The line on the rows of a grid; None where all are better than both.

    Args:
        rows: result rows.
        largest: see `largest_class`, by the fingerprint of the cache that a row is scored on.
    """
    below = []
    below_class = 0
    for row in rows:
        top1 = row["top1"]
        if top1 is None:
            continue
        zero_shot = row.get("zero_shot_top1")
        if zero_shot is not None and top1 < zero_shot - SAME:
            below.append((top1 - zero_shot, row))
        # A row of `--test` is scored on another cache than its own.
        scored_on = row.get("test_fingerprint") or row.get("fingerprint")
        if top1 < largest.get(str(scored_on), 0.0) - SAME:
            below_class += 1
    parts = []
    if below:
        # By the loss alone: rows have no order.
        loss, row = min(below, key=lambda pair: pair[0])
        parts.append(
            f"{len(below)} of {len(rows)} rows are below zero-shot (most: {row['head']},"
            f" {row['dataset']}, {row['shots']} shots, {100 * loss:+.1f} points)"
        )
    if below_class:
        parts.append(f"{below_class} of {len(rows)} are below the share of the largest class")
    return "; ".join(parts) or None

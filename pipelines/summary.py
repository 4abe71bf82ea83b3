"""Numbers over seeds: mean, spread, interval, and two heads side by side. Pure functions on result rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

LEVEL = 0.95


def summary(values: Sequence[float]) -> dict:
    """{"n", "mean", "std", "interval"}: std with n - 1; interval the half width of the 95 % t-interval of the mean.

    A single value has no spread: std and interval are None. None among the values (a diverged run) is left out and counted.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    n, few = len(known), len(known) < 2
    std = None if few else statistics.stdev(known)
    return {
        "n": n,
        "missing": len(values) - n,
        "mean": statistics.fmean(known) if n else None,
        "std": std,
        "interval": None if few else t_quantile(n - 1) * std / math.sqrt(n),
    }


def t_quantile(df: int, level: float = LEVEL) -> float:
    """The two-sided quantile of Student's t with df degrees of freedom."""
    from scipy.special import stdtrit  # only here: the import takes its time

    return float(stdtrit(df, 0.5 + level / 2))


def paired(a: Mapping, b: Mapping) -> dict:
    """a minus b over the keys (seeds) that both have: summary of the differences, "wins" of a, "p" of the paired t-test (two-sided).

    Keys with a None on either side are left out. p is None with fewer than two pairs, 1.0 where all differences are zero.
    """
    keys = sorted(key for key in a.keys() & b.keys() if a[key] is not None and b[key] is not None)
    differences = [a[key] - b[key] for key in keys]
    found = summary(differences) | {"missing": len(a.keys() | b.keys()) - len(keys)}
    return found | {"wins": sum(d > 0 for d in differences), "ties": sum(d == 0 for d in differences), "p": _p_value(found)}


def _p_value(found: Mapping) -> float | None:
    if found["std"] is None:
        return None
    if found["std"] == 0:
        return 1.0 if found["mean"] == 0 else 0.0
    from scipy.special import stdtr

    return float(2 * stdtr(found["n"] - 1, -abs(found["mean"]) / (found["std"] / math.sqrt(found["n"]))))


def over_seeds(rows: Iterable[Mapping], metric: str = "top1", by: Sequence[str] = ("dataset", "encoder", "head", "shots")) -> list[dict]:
    """Rows grouped by the words `by`, in order of first appearance: those words, and the summary of `metric` over the seeds."""
    groups: dict[tuple, list] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(word) for word in by), []).append(row.get(metric))
    return [dict(zip(by, key, strict=True)) | summary(values) for key, values in groups.items()]


def compare(rows: Iterable[Mapping], first: str, second: str, metric: str = "top1") -> list[dict]:
    """The heads `first` and `second` paired on equal data set, encoder, shots and drawn images, one line per data set and shots.

    Rows whose index hashes differ were not trained on the same images and are never a pair.
    """
    cells: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        if row["head"] in (first, second):
            cell = cells.setdefault((row["dataset"], row["encoder"], row["shots"]), {first: {}, second: {}})
            cell[row["head"]][row["seed"], row["index_hash"]] = row.get(metric)
    words = ("dataset", "encoder", "shots")
    return [dict(zip(words, key, strict=True)) | paired(cell[first], cell[second]) for key, cell in cells.items()]

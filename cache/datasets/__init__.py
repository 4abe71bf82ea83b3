"""The data sets: one explicit table, and lookup by name."""

from __future__ import annotations

import difflib

from cliad.cache.datasets.base import Dataset, DatasetError
from cliad.cache.datasets.digits import DIGITS

DATASETS: dict[str, Dataset] = {"digits": DIGITS}


def find_dataset(name: str) -> Dataset:
    """The data set of that name.

    Raises:
        DatasetError: there is none; the message lists all and suggests the nearest.
    """
    if name in DATASETS:
        return DATASETS[name]
    nearest = difflib.get_close_matches(name.lower(), DATASETS, n=1)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    raise DatasetError(
        f"there is no data set '{name}'; {hint}known: {', '.join(DATASETS)}; your own images: folder:PATH, csv:FILE or wds:PATTERN"
    )

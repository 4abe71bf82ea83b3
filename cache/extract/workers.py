"""How many threads read images; apart from what they do, which needs torch."""

from __future__ import annotations

import os

from cliad.errors import CliadError

MOST_WORKERS = 1024


def number_of_workers(given: int | None) -> int:
    """The threads that read images: as many as were given, else `default_workers`.

    Raises:
        CliadError: no thread, or far too many.
    """
    if given is None:
        return default_workers()
    if not 1 <= given <= MOST_WORKERS:
        raise CliadError(f"--workers is a number from 1 to {MOST_WORKERS:,}; got {given}")
    return given


def default_workers() -> int:
    """As many threads as there are cores that this process may use, at least 2."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 2
    return max(2, cores)

"""How many threads read images; apart from what they do, which needs torch."""

from __future__ import annotations

import os


def default_workers() -> int:
    """As many threads as there are cores that this process may use, at least 2."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 2
    return max(2, cores)

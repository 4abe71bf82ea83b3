"""How commands import what is large."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Without the collector of garbage while the block imports; it was a third of torch's import.

    What a package makes when it is imported stays: to look through it again and again finds nothing
    to free.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

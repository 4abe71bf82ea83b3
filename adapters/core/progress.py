"""How far training is, for whoever wants to show it; no number depends on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Steps = Callable[[int, int], None]  # takes the steps done, and how many there are


def silent(done: int, total: int) -> None:
    """A `Steps` that shows nothing."""


# Training is many calls below those who show it: between them stand searches, folds and groups,
# to which it means nothing.
_LISTENER: ContextVar[Steps] = ContextVar("listener", default=silent)


@contextmanager
def steps_go_to(listener: Steps) -> Iterator[None]:
    """Tell a listener of each step that is trained while the block runs."""
    before = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(before)


def report(done: int, total: int) -> None:
    """Tell the listener that so many of the steps are done."""
    _LISTENER.get()(done, total)

"""The error of what a run asks for, beside `spec`: to look for a cache needs no torch."""

from __future__ import annotations

from cliad.errors import CliadError


class SpecError(CliadError):
    """A run that cannot be made as described; the message says what is known and what to do."""

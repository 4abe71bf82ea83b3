"""The errors that a user can mend, and the name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CliadError(ValueError):
    """The base of all errors that a user can mend; the message is one line that says what to do.

    The command line and the server show the messages of these errors, and of no others.
    """


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be; None where none is near.

    Upper and lower case are alike.
    """
    by_lower_case = {entry.lower(): entry for entry in known}
    # 0.5 of the letters: `clip-adaptor` finds clip-adapter, and `xyz` finds nothing.
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.5)
    return by_lower_case[near[0]] if near else None


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One line for an unknown name: what was probably meant, and what there is."""
    names = list(known)
    guess = closest(name, names)
    hint = f", did you mean {guess}?" if guess else ""
    return f"there is no {what} '{name}'{hint}; known: {', '.join(names)}"

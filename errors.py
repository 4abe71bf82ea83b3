"""The errors that a user can mend, and the name that was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class CliadError(ValueError):
    """The base of all errors that a user can mend; the message is one line that says what to do.

    The command line and the server show the messages of these errors, and of no others.
    """


# What moves the cursor, rings, colours or ends a line on a terminal, and the halves of letters
# that stand for bytes of a file name that are not UTF-8.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


LONGEST_NAME = 80  # characters of an unknown name in a message


def printable(text: str) -> str:
    """`text` on one line and safe for a terminal: what cannot be shown is written as an escape.

    >>> printable("cat\\x1b[31m")
    'cat\\\\x1b[31m'
    """
    return _UNPRINTABLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found.group())
    # Python reads a byte that is not UTF-8 as a lone surrogate: U+DC80 to U+DCFF.
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def is_utf8(name: str) -> bool:
    """Whether a name can be written as UTF-8: bytes of a file name need not be text.

    >>> is_utf8("caf\\udce9")
    False
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


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
    # A message is one line, whatever was typed.
    shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
    return f"there is no {what} '{shown}'{hint}; known: {', '.join(names)}"

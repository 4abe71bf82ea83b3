"""What a pickle would cost torch's reader, before that reads it.

`torch.load(weights_only=True)` runs no code, but it can be made to compute for ever: a tuple of
tuples of tuples, each named twice, is looked up in a table in time that doubles with each level.
"""

from __future__ import annotations

import pickletools
from typing import BinaryIO

MOST_WORDS = 2**21  # of all pickles of a file; a training of the largest model has 200 thousand
LARGEST_TUPLE = 1024  # all that a tuple holds, tuples within tuples counted each time
# Names of codecs that take the square of a text's length. Torch's reader writes texts in any.
SLOW = ("punycode", "idna")
# How many values a word takes off the stack, and whether it leaves one.
TAKES = {
    "APPEND": (1, False),
    "BUILD": (1, False),
    "SETITEM": (2, False),
    "NEWOBJ": (2, True),
    "REDUCE": (2, True),
    "BINPERSID": (1, True),
}
PAIRS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def is_too_much(stream: BinaryIO, n_pickle: int) -> bool:
    """Whether pickles that stand one after another ask for more than any file of weights.

    What is no pickle is not judged: torch's reader stops at the same place and says so.
    """
    n_word = 0
    try:
        for _ in range(n_pickle):
            sizes = _Sizes()
            for word, value, _ in pickletools.genops(stream):
                n_word += 1
                if n_word > MOST_WORDS or sizes.take(word.name, value) > LARGEST_TUPLE:
                    return True
                if isinstance(value, str) and value.lower().replace("-", "_") in SLOW:
                    return True
    except (ValueError, IndexError, KeyError):
        return False
    return False


class _Sizes:
    """The stack of a pickle's reader, with the size of each value in place of the value."""

    def __init__(self) -> None:
        self._stack: list[int] = []
        self._marks: list[int] = []
        self._memo: dict[int, int] = {}

    def take(self, word: str, value: object) -> int:
        """Follow one word; the size of the value that is then on top."""
        if word == "MARK":
            self._marks.append(len(self._stack))
        elif word in TAKES:
            n_value, leaves = TAKES[word]
            self._off(n_value)
            if leaves:
                self._stack.append(1)
        elif word in ("APPENDS", "SETITEMS"):
            self._off(None)
        elif word == "TUPLE" or word in PAIRS:
            self._stack.append(1 + sum(self._off(PAIRS.get(word))))
        elif isinstance(value, int) and word in ("BINPUT", "LONG_BINPUT"):
            self._memo[value] = self._stack[-1]
        elif isinstance(value, int) and word in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[value])
        elif word not in ("PROTO", "STOP"):
            self._stack.append(1)
        return self._stack[-1] if self._stack else 0

    def _off(self, n_value: int | None) -> list[int]:
        """Take the last sizes off the stack; None: those since the mark."""
        first = self._marks.pop() if n_value is None else len(self._stack) - n_value
        sizes = self._stack[first:]
        del self._stack[first:]
        return sizes

"""Classes whose texts an encoder cannot tell apart: it does not know the words.

What begins with the texts (zero-shot, and most heads) gives such classes equal scores. An encoder
that was trained on a few words, as `tiny` was, gives one feature for all other names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cliad.errors import printable

EQUAL = 1e-3  # distance of unit vectors; two names that a CLIP knows are 0.1 and more apart
NEAR = 1 - 1e-5  # cosine above which the distance is computed: single precision errs by 1e-6
AT_ONCE = 2**22  # cosines held at a time
SHOWN = 3  # pairs named in the line
LONGEST_NAME = 40  # letters


@dataclass(frozen=True)
class EqualTexts:
    """How many pairs of classes have equal texts, how many classes are in them, and the first."""

    n_pair: int
    n_class: int
    first: list[tuple[int, int]]


def equal_pairs(rows: np.ndarray) -> EqualTexts:
    """The pairs of rows that point the same way.

    Args:
        rows: text features of the classes, (n_class, dim).
    """
    unit = _unit(np.asarray(rows, np.float32))
    n_class = len(unit)
    at_once = max(1, AT_ONCE // max(n_class, 1))
    n_pair = 0
    first: list[tuple[int, int]] = []
    in_pairs = np.zeros(n_class, bool)
    for start in range(0, n_class, at_once):
        # (k, n_class - start): each pair once, the class with the lower number first
        near = unit[start : start + at_once] @ unit[start:].T > NEAR
        left, right = np.nonzero(np.triu(near, 1))
        left += start
        right += start
        equal = _equal(unit, left, right)
        left = left[equal]
        right = right[equal]
        in_pairs[left] = True
        in_pairs[right] = True
        n_pair += len(left)
        wanted = SHOWN - len(first)
        first += list(zip(left[:wanted].tolist(), right[:wanted].tolist(), strict=True))
    return EqualTexts(n_pair, int(in_pairs.sum()), first)


def _equal(unit: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Which of the pairs are nearer than EQUAL, bool (n_pair,)."""
    equal = np.zeros(len(left), bool)
    at_once = max(1, AT_ONCE // max(unit.shape[1], 1))
    for start in range(0, len(left), at_once):
        chosen = slice(start, start + at_once)
        distance = np.linalg.norm(unit[left[chosen]] - unit[right[chosen]], axis=1)
        equal[chosen] = distance < EQUAL
    return equal


def note_equal_texts(
    text: np.ndarray | None,
    classnames: Sequence[str],
    encoder: str,
    log: Callable[[str], None],
) -> None:
    """A line that counts the classes with equal texts and names the first; else none.

    Args:
        text: features of each template and class, (n_template, n_class, dim); None: no texts.
        classnames: of the classes.
        encoder: its name.
        log: takes the line.
    """
    if text is None:
        return
    found = equal_pairs(_unit(np.asarray(text, np.float32)).mean(axis=0))
    if not found.n_pair:
        return
    pairs = [f"{_name(classnames[i])} and {_name(classnames[j])}" for i, j in found.first]
    more = ", ..." if found.n_pair > len(pairs) else ""
    log(
        f"{encoder} gives {found.n_class:,} of {len(classnames):,} classes texts that are equal"
        f" to another's (pairs: {found.n_pair:,}, such as {', '.join(pairs)}{more}):"
        " zero-shot cannot tell these apart; choose another encoder, or prompts that differ"
    )


def _name(name: str) -> str:
    return f"'{printable(name)[:LONGEST_NAME]}'"


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length one; zeros stay zeros."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.maximum(length, 1e-12)

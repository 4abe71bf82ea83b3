"""Labels as people store them: numbers, whole floats, one-hot rows, or the names of the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cliad.cache.file.layout import CacheError
from cliad.cache.formats.base import strings

CHUNK = 65536  # one-hot rows that are looked at at once


@dataclass(frozen=True)
class Labels:
    """The labels of a split: class numbers y (n,), or the name of each row's class.

    n_class: how many classes one-hot rows have columns for; 0 where the labels do not say.
    """

    y: np.ndarray
    names: Sequence[str] | None = None
    n_class: int = 0


def read_labels(where: str, values: np.ndarray, n: int) -> Labels:
    """Labels out of an array of any of these kinds; their range is checked by `checked_split`.

    Args:
        where: what messages call the array.
        values: integers, whole floats, bools or strings (n,), or one-hot rows (n, n_class).
        n: the number of rows of features.

    Raises:
        CacheError: values of which it is not clear what class they mean.
    """
    if values.ndim == 2 and values.dtype.kind in "biuf":
        if len(values) != n and values.shape[1] == n:
            raise CacheError(
                f"{where}: labels of shape {values.shape} seem to be transposed;"
                " one-hot labels have a row for each image, save their .T"
            )
        # One column is no one-hot matrix but numbers in the wrong shape.
        if values.shape[1] > 1:
            return Labels(_of_one_hot(where, values), n_class=values.shape[1])
    if values.ndim == 1:
        if values.dtype.kind in "US":
            return Labels(np.zeros(0, np.int64), _class_names(where, values))
        if values.dtype.kind == "f":
            return Labels(_whole(where, values))
        if values.dtype.kind == "b":
            return Labels(values.astype(np.int64))
        if values.dtype.kind in "iu":
            return Labels(values)
    raise CacheError(
        f"{where}: labels must be integers or names of shape (n,), or one-hot rows (n, n_class);"
        f" found {values.dtype} {values.shape}"
    )


def _of_one_hot(where: str, values: np.ndarray) -> np.ndarray:
    """The class numbers (n,) of one-hot rows (n, n_class)."""
    y = np.zeros(len(values), np.int64)
    for start in range(0, len(values), CHUNK):
        rows = values[start : start + CHUNK]
        # One value that is not 0, and that is 1.
        one_hot = (rows.max(axis=1) == 1) & (np.count_nonzero(rows, axis=1) == 1)
        wrong = np.flatnonzero(~one_hot)
        if len(wrong):
            raise CacheError(
                f"{where}: row {start + wrong[0]} is not one-hot ({len(wrong)} such rows);"
                " labels cannot be told from it"
            )
        y[start : start + CHUNK] = rows.argmax(axis=1)
    return y


def _whole(where: str, values: np.ndarray) -> np.ndarray:
    """Class numbers (n,) out of floats that are whole numbers."""
    # Before the cast, which makes some integer of NaN and of what is too large for it.
    fits = np.isfinite(values) & (abs(values) < 2**31)
    wrong = np.flatnonzero(~fits | (np.where(fits, values, 0) % 1 != 0))
    if len(wrong):
        raise CacheError(
            f"{where}: labels must be integers; row {wrong[0]} has {values[wrong[0]]:g}"
            f" ({len(wrong)} such rows)"
        )
    return values.astype(np.int64)


def _class_names(where: str, values: np.ndarray) -> list[str]:
    names = strings(where, values)
    if "" in names:
        raise CacheError(
            f"{where}: row {names.index('')} has an empty label; give each row a class name"
        )
    return names


def numbered(where: str, labels: Mapping[str, Labels]) -> tuple[dict[str, Labels], list[str]]:
    """The labels of all splits as numbers, and the names that these number, sorted.

    There are no such names where labels are numbers.

    Raises:
        CacheError: names in one split and numbers in another, or one-hot rows of different widths.
    """
    with_names = [split for split, found in labels.items() if found.names is not None]
    widths = {split: found.n_class for split, found in labels.items() if found.n_class}
    if len(set(widths.values())) > 1:
        raise CacheError(
            f"{where}: one-hot labels have other numbers of columns by split ({widths});"
            " each needs a column for every class"
        )
    if not with_names:
        return dict(labels), []
    if len(with_names) < len(labels):
        raise CacheError(
            f"{where}: labels of {', '.join(with_names)} are names, those of other splits numbers;"
            " save all of them as one of these"
        )
    found_names: set[str] = set()
    for found in labels.values():
        found_names |= set(found.names or ())
    names = sorted_names(found_names)
    # A table, as list.index would search all names for each of the rows.
    number = {name: i for i, name in enumerate(names)}
    as_numbers = {}
    for split, found in labels.items():
        as_numbers[split] = Labels(np.array([number[name] for name in found.names or ()]))
    return as_numbers, names


def sorted_names(names: set[str]) -> list[str]:
    """Names in sorted order; names that are all digits by their value, so that 10 follows 9."""
    if all(name.isascii() and name.isdigit() and len(name) < 10 for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)

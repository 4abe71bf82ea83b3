"""Rows of a split, read from a memory-mapped file."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cliad.cache.file.layout import DONE, CacheError, as_bytes

RowIndex = slice | int | Sequence[int] | np.ndarray

ALL_ROWS = slice(None)

# Below this share of the rows they are read one by one.
FEW = 1 / 8

# Rows shorter than this count as rows of zeros, which cannot be scaled to length one.
SMALLEST_NORM = 1e-12


def gather(x: np.ndarray, index: RowIndex) -> np.ndarray:
    """x[index] along the first axis, where `x` may be mapped from a file.

    Raises:
        CacheError: the file ends too early.
    """
    if isinstance(index, slice | int) or not isinstance(x, np.memmap) or x.filename is None:
        return x[index]
    # numpy gives a part of a map, or a view of it, the offset of the whole; only the base differs.
    if not isinstance(x.base, mmap.mmap):
        return x[index]
    positions = np.arange(len(x))[index]
    if positions.ndim != 1 or len(positions) > FEW * len(x):
        return x[index]
    # A map would bring the neighbourhood of each row into memory too, so a few rows out of many
    # are read from the file.
    rows = np.empty((len(positions), *x.shape[1:]), x.dtype)
    target = as_bytes(rows)
    row_bytes = x[:1].nbytes
    with open(x.filename, "rb", buffering=0) as file:
        for slot, position in enumerate(positions.tolist()):
            file.seek(x.offset + position * row_bytes)
            begin = slot * row_bytes
            n_read = file.readinto(target[begin : begin + row_bytes])
            if n_read != row_bytes:
                raise CacheError(
                    f"{x.filename} ends before row {position}; extract it again with --force"
                )
    return rows


@dataclass(frozen=True)
class Split:
    """One split in the file, memory-mapped: raw features x (n, dim), labels y and status (n,)."""

    x: np.ndarray
    y: np.ndarray
    status: np.ndarray
    _paths: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    @property
    def readable(self) -> np.ndarray:
        """(n,) bool: rows that hold features."""
        return self.status == DONE

    def paths(self, rows: RowIndex = ALL_ROWS) -> list[str]:
        """The paths of some rows, by default of all."""
        encoded = np.atleast_1d(gather(self._paths, rows))
        return [path.decode(errors="replace") for path in encoded]

    def rows(self, index: RowIndex = ALL_ROWS, *, unit: bool = False) -> np.ndarray:
        """float32 features (n_index, dim) of some rows: raw, or with rows of length one."""
        x = np.array(gather(self.x, index), np.float32)
        if not unit:
            return x
        norms = np.linalg.norm(x, axis=-1, keepdims=True)
        return x / np.maximum(norms, SMALLEST_NORM)

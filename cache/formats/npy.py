"""The header of a NumPy array on the disk, compared with what the file holds before it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import IO

import numpy as np

from cliad.cache.file.layout import CacheError


@dataclass(frozen=True)
class ArrayHeader:
    """What an npy file says of itself; `start` is where its values begin."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    start: int

    @property
    def n_byte(self) -> int:
        """The size of the values; in Python's integers, which do not overflow."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(stream: IO[bytes], where: str, size: int) -> ArrayHeader:
    """The header of an npy file of `size` bytes, of which nothing more is read.

    Raises:
        CacheError: the type is none of numbers or text, or the values are not as large as the
            header says; the message starts with `where`.
        ValueError: the header itself is broken.
    """
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        # Version 3 differs in the encoding of the names of fields, which are refused below.
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(stream)
    if dtype.hasobject:
        raise CacheError(
            f"{where} holds Python objects, which may run code and are not read;"
            " save numbers, or strings as np.array(names, dtype=str)"
        )
    if dtype.kind not in "fiubUSc" or dtype.subdtype is not None:
        raise CacheError(
            f"{where} holds values of type {str(dtype)[:60]}; save numbers or strings alone"
        )
    header = ArrayHeader(tuple(shape), dtype, fortran_order, stream.tell())
    found = size - header.start
    if min(header.shape, default=1) < 0 or header.n_byte != found:
        raise CacheError(
            f"{where} should be {dtype} {header.shape}, which takes {header.n_byte:,} bytes, but"
            f" the file has {found:,} for it; make it again"
        )
    return header

"""MATLAB files (version 5), as far as the lists of two data sets need them.

SciPy's reader believes the sizes that a file states: a damaged file ends the process with a
segmentation fault. Here each size is compared with what there is before it is used.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cliad.cache.datasets.base import DatasetError
from cliad.cache.documents import read_bytes
from cliad.errors import printable

HINT = "fetch it again"
HEADER = 128  # bytes before the first element
LARGEST = 2**26  # bytes of a variable that is unpacked; the field's lists have 1 MB
DEEPEST = 8  # cells and structs inside each other

# Numbers that say what an element is.
MATRIX = 14
COMPRESSED = 15
INTEGERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 12: "i8", 13: "u8"}
DTYPES = {**INTEGERS, 7: "f4", 9: "f8"}
ENCODINGS = {1: "latin1", 2: "latin1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
# Numbers that say what a matrix holds.
CELL = 1
STRUCT = 2
CHAR = 4
NUMBERS = range(6, 16)
COMPLEX = 0x0800

# A text, or all values of an array in MATLAB's order: numbers, values, or the fields of structs.
Value = str | list[object]


class _Element(NamedTuple):
    kind: int
    content: bytes


class _Elements:
    """The elements in some bytes, one after another."""

    def __init__(self, content: bytes, order: str):
        self._content = content
        self._at = 0
        self._order = order

    @property
    def has_more(self) -> bool:
        return self._at < len(self._content)

    def take(self) -> _Element:
        """The next element.

        Raises:
            ValueError: there is none, or not all of it.
        """
        kind, size = struct.unpack(self._order + "II", self._bytes(8))
        if kind >> 16:
            # A small element: its size stands beside its kind, and its content in the size's place.
            small = self._content[self._at - 4 : self._at]
            return _Element(kind & 0xFFFF, small[: kind >> 16])
        content = self._bytes(size)
        if kind != COMPRESSED:
            self._at += -size % 8
        return _Element(kind, content)

    def _bytes(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._content):
            raise ValueError("it is cut, or states a wrong size")
        taken = self._content[self._at : end]
        self._at = end
        return taken

    def numbers(self) -> list[int]:
        """The next element's whole numbers."""
        return [int(number) for number in _array(self.take(), self._order)]


def read_mat(file: Path) -> dict[str, Value]:
    """The variables of a MATLAB file by name.

    Raises:
        DatasetError: it is no MATLAB file of version 5, is cut, or holds something else than
            numbers, texts, cells and structs.
    """
    content = read_bytes(file, DatasetError, HINT)
    try:
        return _variables(content)
    except (ValueError, struct.error, zlib.error, OverflowError) as error:
        reason = printable(str(error))[:80]
        raise DatasetError(f"{file} is not a MATLAB list ({reason}); {HINT}") from None


def _variables(content: bytes) -> dict[str, Value]:
    # The two letters tell by their order how the file's numbers are written.
    order = {b"IM": "<", b"MI": ">"}.get(content[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("it does not begin as MATLAB files of version 5 do")
    elements = _Elements(content[HEADER:], order)
    variables = {}
    while elements.has_more:
        element = elements.take()
        if element.kind == COMPRESSED:
            element = _Elements(_inflated(element.content), order).take()
        if element.kind == MATRIX:
            name, value = _matrix(element.content, order, depth=0)
            variables[name] = value
    return variables


def _inflated(content: bytes) -> bytes:
    inflater = zlib.decompressobj()
    unpacked = inflater.decompress(content, LARGEST)
    if inflater.unconsumed_tail:
        raise ValueError(f"a variable has more than {LARGEST:,} bytes")
    return unpacked


def _matrix(content: bytes, order: str, depth: int) -> tuple[str, Value]:
    """A matrix's name (empty inside of others) and its value."""
    if not content:
        return "", []
    if depth > DEEPEST:
        raise ValueError("it is nested too deeply")
    elements = _Elements(content, order)
    flags = elements.numbers()
    shape = elements.numbers()
    name = elements.take().content.decode("latin1")
    if not flags or not shape or min(shape) < 0:
        raise ValueError("a matrix has no kind or no shape")
    # Each value takes a byte at least, so that no loop is longer than the file.
    n = math.prod(shape)
    if n > len(content):
        raise ValueError("it is cut, or states a wrong size")
    kind = flags[0] & 0xFF
    if kind in NUMBERS and not flags[0] & COMPLEX:
        numbers = _array(elements.take(), order)
        if len(numbers) != n:
            raise ValueError("a matrix has more or fewer numbers than its shape says")
        return name, numbers.tolist()
    if kind == CHAR:
        return name, _text(elements.take(), order)
    if kind == CELL:
        return name, [_inner(elements, order, depth) for _ in range(n)]
    if kind == STRUCT:
        return name, _structs(elements, n, order, depth)
    raise ValueError(f"it holds a matrix of kind {kind}")


def _inner(elements: _Elements, order: str, depth: int) -> Value:
    element = elements.take()
    if element.kind != MATRIX:
        raise ValueError("a cell or a struct holds no matrix")
    return _matrix(element.content, order, depth + 1)[1]


def _structs(elements: _Elements, n: int, order: str, depth: int) -> list[object]:
    """The structs of an array, each a dict of its fields."""
    lengths = elements.numbers()
    names = elements.take().content
    length = lengths[0] if lengths else 0
    if length < 1:
        raise ValueError("a struct has no names of fields")
    # A name ends at the first zero byte.
    starts = range(0, len(names), length)
    fields = [names[at : at + length].partition(b"\0")[0].decode("latin1") for at in starts]
    # A struct without fields takes no room, so any number of them would be believed.
    return [_struct(elements, fields, order, depth) for _ in range(n if fields else 0)]


def _struct(elements: _Elements, fields: Sequence[str], order: str, depth: int) -> dict[str, Value]:
    return {field: _inner(elements, order, depth) for field in fields}


def _array(element: _Element, order: str) -> np.ndarray:
    if element.kind not in DTYPES:
        raise ValueError(f"numbers of kind {element.kind} are not known")
    return np.frombuffer(element.content, np.dtype(order + DTYPES[element.kind]))


def _text(element: _Element, order: str) -> str:
    encoding = ENCODINGS.get(element.kind)
    if encoding is None:
        raise ValueError(f"text of kind {element.kind} is not known")
    if encoding == "utf-16":
        encoding += "-le" if order == "<" else "-be"
    return element.content.decode(encoding)

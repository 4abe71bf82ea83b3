"""The list of everything in a file with its checksums, as a text in the file (schema 2).

A line each, the CRC-32 and what it is of:

    1c291ca3 splits/train/labels <i4 (10,)
    -------- splits/train/features <f2 (10, 6)
    6ab1f3e0 text/default@logit_scale

Arrays that change while rows are extracted have no checksum here: theirs are those of the batches.
The list itself needs none, as a change in it makes it differ from what the file holds.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cliad.cache.file.layout import as_bytes
from cliad.cache.file.table import form_of
from cliad.errors import printable

NO_CHECKSUM = "-" * 8


def array_line(name: str, shape: tuple[int, ...], dtype: np.dtype, data: np.ndarray | None) -> str:
    """The line of an array; `data` is not looked at where rows are filled in later."""
    checksum = NO_CHECKSUM
    if not form_of(name).filled and data is not None:
        checksum = f"{zlib.crc32(as_bytes(np.ascontiguousarray(data))):08x}"
    return f"{checksum} {name} {dtype.str} {tuple(int(side) for side in shape)}"


def attribute_lines(node: str, attrs: Mapping[str, Any]) -> Iterator[str]:
    """The lines of attributes of the file (node "") or of what has the HDF5 name `node`."""
    for key in sorted(attrs):
        # The text of a number tells all its bits.
        yield f"{zlib.crc32(repr(attrs[key]).encode()):08x} {node}@{key}"


def root_of(name: str) -> str:
    """Whose list an array or a node stands in: that of its prompt set, "text/<name>/", or ""."""
    return "/".join(name.split("/")[:2]) + "/" if name.startswith("text/") else ""


def as_text(lines: list[str]) -> str:
    """The list that holds these lines."""
    return "".join(f"{line}\n" for line in sorted(lines))


def differences(stored: bytes, found: str) -> Iterator[str]:
    """Each line: what differs between the list in the file and that of what the file holds."""
    if stored == found.encode():
        return
    expected = _checksums(stored.decode(errors="replace"))
    present = _checksums(found)
    for what in sorted(expected.keys() | present.keys()):
        if what not in present:
            yield f"{printable(what)[:200]} is in the list of contents but not in the file"
        elif what not in expected:
            yield f"{printable(what)[:200]} is not in the list of contents"
        elif expected[what] != present[what]:
            yield f"{printable(what)[:200]} is damaged (its checksum differs)"
    if expected == present:
        yield "the list of contents is damaged"


def _checksums(text: str) -> dict[str, str]:
    checksums = {}
    for line in text.split("\n"):
        checksum, _, what = line.partition(" ")
        if line:
            checksums[what] = checksum
    return checksums

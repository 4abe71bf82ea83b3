"""Lists of free space in the groups of an HDF5 file, looked at before HDF5 follows them.

Each group keeps the names of its members in a local heap, with a list of what is free there. HDF5
follows that list when it opens the heap, and where a damaged byte leads back to an entry it never
comes to an end. So the groups are walked here, as section III and IV of the HDF5 file format
specification (version 3.0) describe them: the old kind of group, the only one that a cache has.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cliad.cache.file.layout import CacheError
from cliad.cache.file.table import FormError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Where a file may begin: something else may stand in front of it.
LAST_START = 2**20
# The end of a list of free space.
END = 1
# Object headers, nodes of trees and entries of lists; a cache has some hundred.
MOST_STEPS = 1_000_000

CONTINUATION = 0x10
SYMBOL_TABLE = 0x11


def check_heaps(path: Path) -> None:
    """FormError where the free space of a group is listed in a circle.

    What else is wrong with the file is left to HDF5, which notices that.
    """
    with open(path, "rb") as stream:
        try:
            _Walk(stream).follow()
        # A place that is not there or not what it should be, which HDF5 refuses, too.
        except (struct.error, OSError, OverflowError, ValueError) as error:
            if isinstance(error, CacheError | FormError):
                raise


class _Walk:
    """The groups of a file, from the root on; each place is looked at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._base = self._start()
        self._headers = [self._unpack("<Q", self._base + 64)[0]]
        self._seen: set[tuple[str, int]] = set()

    def _start(self) -> int:
        start = 0
        while start <= LAST_START:
            if self._bytes(start, 8) == SIGNATURE:
                return start
            start = max(512, 2 * start)
        raise ValueError("not HDF5")

    def _bytes(self, at: int, size: int) -> bytes:
        self._stream.seek(at)
        return self._stream.read(size)

    def _unpack(self, form: str, at: int) -> tuple[int, ...]:
        return struct.unpack(form, self._bytes(at, struct.calcsize(form)))

    def _is_new(self, kind: str, at: int) -> bool:
        """Whether a place was not looked at before."""
        if len(self._seen) > MOST_STEPS:
            raise FormError("it has more than a million objects")
        known = (kind, at) in self._seen
        self._seen.add((kind, at))
        return not known

    def follow(self) -> None:
        """FormError where a list of free space has no end."""
        version, size_of_offsets = self._unpack("<B4xB", self._base + 8)
        # Newer superblocks come with groups of the newer kind, whose names are in no local heap.
        if version != 0 or size_of_offsets != 8:
            return
        while self._headers:
            header = self._base + self._headers.pop()
            if self._is_new("header", header):
                for tree, heap in self._symbol_tables(header):
                    self._check_heap(self._base + heap)
                    self._add_members(tree)

    def _symbol_tables(self, header: int) -> Iterator[tuple[int, ...]]:
        """Where an object keeps its members: addresses (of the tree, of the heap)."""
        blocks = [(header + 16, self._unpack("<I", header + 8)[0])]
        while blocks:
            at, size = blocks.pop()
            end = at + size
            while at + 8 <= end and self._is_new("message", at):
                kind, length = self._unpack("<HH", at)
                if kind == SYMBOL_TABLE:
                    yield self._unpack("<QQ", at + 8)
                elif kind == CONTINUATION:
                    offset, length_there = self._unpack("<QQ", at + 8)
                    blocks.append((self._base + offset, length_there))
                at += 8 + length

    def _check_heap(self, heap: int) -> None:
        size, entry, segment = self._unpack("<QQQ", heap + 8)
        found: set[int] = set()
        while entry != END and entry + 16 <= size:
            if entry in found:
                raise FormError("it is damaged, the free space of a group is listed in a circle")
            found.add(entry)
            (entry,) = self._unpack("<Q", self._base + segment + entry)

    def _add_members(self, tree: int) -> None:
        """Add the object headers of the members of a group to those to be looked at."""
        nodes = [tree]
        while nodes:
            node = self._base + nodes.pop()
            if not self._is_new("node", node):
                continue
            signature, n = struct.unpack("<4s2xH", self._bytes(node, 8))
            if signature == b"TREE":
                nodes += self._column(node + 32, 16, n)
            elif signature == b"SNOD":
                self._headers += self._column(node + 16, 40, n)

    def _column(self, at: int, step: int, n: int) -> list[int]:
        """One address of each of `n` entries, `step` bytes apart."""
        return [self._unpack("<Q", at + step * number)[0] for number in range(n)]

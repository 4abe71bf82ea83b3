"""Arrays that other programs have packed: in chunks, compressed, or in the header of the file.

They have no place of their own in the file, so they are read by HDF5 and kept in memory. A small
file may claim to unpack to terabytes, so every size is checked before.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import h5py
import numpy as np

from cliad.cache.file.table import FormError

# What all packed arrays of a file may take in memory, in bytes, and in how many chunks.
LARGEST = 2**28
MOST_CHUNKS = 1_000_000
# LZF says nowhere how much it unpacks to, at most some ninety times what it is.
LARGEST_LZF_CHUNK = 2**22
# What a filter may add to a chunk that it cannot make smaller.
SLACK = 4096

DEFLATE = h5py.h5z.FILTER_DEFLATE
SHUFFLE = h5py.h5z.FILTER_SHUFFLE
FLETCHER32 = h5py.h5z.FILTER_FLETCHER32
LZF = h5py.h5z.FILTER_LZF
# HDF5 would look for a plugin, a program, to undo any other.
PIPELINES = ((), (SHUFFLE,), (DEFLATE,), (SHUFFLE, DEFLATE), (LZF,), (SHUFFLE, LZF))

MEND = "unpack it with `h5repack -l CONTI -f NONE FILE NEW`"


def read_packed(packed: Mapping[str, h5py.h5d.DatasetID]) -> dict[str, np.ndarray]:
    """The content of packed arrays, by name, read-only.

    Args:
        packed: chunked or compact data sets, whose types have been checked.

    Raises:
        FormError: they are too large, lack chunks, or have a filter that is not known.
    """
    needed = sum(_nbytes(node.shape, node.dtype) for node in packed.values())
    if needed > LARGEST:
        raise FormError(
            f"it is packed, and unpacks to {needed / 1e6:.0f} MB, more than fits well in memory; "
            f"{MEND}"
        )
    for name, node in packed.items():
        if node.get_create_plist().get_layout() == h5py.h5d.CHUNKED:
            _check_chunks(name, node)
    contents = {}
    for name, node in packed.items():
        array = np.empty(node.shape, node.dtype)
        node.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
        array.setflags(write=False)
        contents[name] = array
    return contents


def _nbytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _check_chunks(name: str, node: h5py.h5d.DatasetID) -> None:
    """FormError where chunks of a data set are missing, or unpack to more than they say."""
    properties = node.get_create_plist()
    numbers = range(properties.get_nfilters())
    filters = [properties.get_filter(number)[0] for number in numbers]
    if tuple(code for code in filters if code != FLETCHER32) not in PIPELINES:
        raise FormError(f"{name} is packed by filters {filters} that are not known; {MEND}")
    chunk = properties.get_chunk()
    chunk_bytes = _nbytes(chunk, node.dtype)
    per_axis = [math.ceil(side / step) for side, step in zip(node.shape, chunk, strict=True)]
    expected = math.prod(per_axis)
    too_large = chunk_bytes > LARGEST or (LZF in filters and chunk_bytes > LARGEST_LZF_CHUNK)
    if too_large or expected > MOST_CHUNKS:
        raise FormError(f"{name} is packed in {expected} chunks of {chunk_bytes} bytes; {MEND}")
    # HDF5 would give zeros for a chunk that is not there.
    if node.get_num_chunks() != expected:
        raise FormError(f"{name} has lost chunks; extract it again with --force")
    chunks: list[h5py.h5d.StoreInfo] = []
    node.chunk_iter(chunks.append)
    for stored in chunks:
        if stored.size > chunk_bytes + SLACK:
            raise FormError(f"{name} is damaged: a chunk has {stored.size} bytes")
        if DEFLATE in filters:
            _check_inflated(name, node, stored, filters.index(DEFLATE), chunk_bytes)


def _check_inflated(
    name: str,
    node: h5py.h5d.DatasetID,
    stored: h5py.h5d.StoreInfo,
    number: int,
    chunk_bytes: int,
) -> None:
    """FormError where a chunk inflates to more than it should: HDF5 itself knows no limit."""
    skipped, content = node.read_direct_chunk(stored.chunk_offset)
    # A bit for each filter that this chunk was not sent through.
    if skipped & (1 << number):
        return
    # With the four bytes of a Fletcher checksum, which may have been added before.
    largest = chunk_bytes + 4
    if len(zlib.decompressobj().decompress(content, largest + 1)) > largest:
        raise FormError(f"{name} is damaged: a chunk inflates to more than its {chunk_bytes} bytes")

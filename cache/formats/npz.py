"""Arrays in an npz file, the plainest way to bring features along; names as in `named_arrays`.

The arrays are compared with the sizes that the zip directory and each array's own header declare
before any of them is read.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cliad.cache.file.layout import CacheError
from cliad.cache.file.read import FeatureCache
from cliad.cache.formats.base import reading
from cliad.cache.formats.kinds import check_inflated, open_kind
from cliad.cache.formats.named_arrays import Arrays, class_arrays, known_paths, split_arrays
from cliad.cache.formats.npy import read_header
from cliad.cache.tensor_files import NPZ

HINT = "save it with np.savez, strings as np.array(names, dtype=str)"
# What np.savez and np.savez_compressed write.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 1  # a bit of a member's flags

# ------------------------------------------------------------------------------------ reading


def load_npz(file: Path) -> Arrays:
    """The arrays of an npz file by name.

    Raises:
        CacheError: not such a file, an array is of no type that is read, or sizes that differ.
    """
    with open_kind(file, NPZ, HINT) as stream, reading(file, NPZ, HINT):
        return _read_members(file, stream)


def _read_members(file: Path, stream: BinaryIO) -> Arrays:
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        check_inflated(file, stream, sum(member.file_size for member in members))
        _check_members(file, members)
        # All headers come before the first array, so that nothing is inflated in vain.
        for member in members:
            with archive.open(member) as packed:
                read_header(packed, f"{file}: {_name(member)}", member.file_size)
        arrays: Arrays = {}
        for member in members:
            with archive.open(member) as packed:
                # Without pickles, so that no code of the file can run.
                arrays[_name(member)] = np.lib.format.read_array(packed, allow_pickle=False)
                # The end of the member is where its checksum is compared.
                packed.read(1)
        return arrays


def _name(member: zipfile.ZipInfo) -> str:
    return member.filename.removesuffix(".npy")


def _check_members(file: Path, members: list[zipfile.ZipInfo]) -> None:
    names = set()
    for member in members:
        if not member.filename.endswith(".npy"):
            raise CacheError(
                f"{file} holds {member.filename[:60]}, which is no array of NumPy; {HINT}"
            )
        if member.compress_type not in METHODS or member.flag_bits & ENCRYPTED:
            raise CacheError(
                f"{file}: {_name(member)[:60]} is packed or encrypted as npz files are not; {HINT}"
            )
        if member.filename in names:
            raise CacheError(f"{file} has two arrays called {_name(member)[:60]}; {HINT}")
        names.add(member.filename)


# ------------------------------------------------------------------------------------ writing


def write_npz(cache: FeatureCache, new: Path) -> None:
    """Write a cache as such a file; `load_npz` gives the same arrays back."""
    arrays = class_arrays(cache)
    for split in cache.split_names:
        arrays |= split_arrays(cache, split)
        paths = known_paths(cache, split)
        if paths:
            arrays[f"{split}_paths"] = np.array(paths, dtype=str)
    save_arrays(new, arrays)


def save_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An npz file under exactly this name, to which np.savez would append .npz."""
    # NumPy's type hints take every keyword for `allow_pickle`, a bool.
    savez: Callable[..., None] = np.savez
    with open(file, "wb") as stream:
        savez(stream, **arrays)

"""The index of a cache file: its attributes, and where each array lies. Rows are not read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cliad.cache.file.layout import SCHEMA, CacheError

# What every file has.
ATTRIBUTES = ("dataset", "encoder", "encoder_id", "image_id", "batch", "unit_rows", "versions")
TEXT_ATTRIBUTES = ("text_id", "text_recipe", "encoder_id", "logit_scale")
SPLIT_ARRAYS = ("features", "labels", "paths", "status", "checksums")
TEXT_ARRAYS = ("templates", "classnames")

# Attributes as HDF5 gives them. In a damaged file each may be of any type.
Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class StoredArray:
    """Where a data set lies in the file; `offset` is None where it has no bytes."""

    offset: int | None
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Index:
    """Attributes of the file, its arrays by HDF5 name, and the attributes of each prompt set."""

    attrs: Attributes
    arrays: Mapping[str, StoredArray]
    text_attrs: Mapping[str, Attributes]


def split_names(arrays: Iterable[str]) -> set[str]:
    """The splits that arrays belong to, by their HDF5 names."""
    return {name.split("/")[1] for name in arrays if name.startswith("splits/")}


def read_index(path: Path) -> Index:
    """The index of a file in which nothing is missing.

    Raises:
        CacheError: not HDF5, not a cache, of another schema, damaged or truncated.
        Exception: of any kind, from HDF5 on damaged bytes; see `damage_as_cache_error`.
    """
    if not h5py.is_hdf5(path):
        raise CacheError(
            f"{path} is not an HDF5 file ({path.stat().st_size} bytes without its signature); "
            "was it copied badly?"
        )
    index = _load(path)
    if "schema" not in index.attrs or "image_recipe" not in index.attrs or not index.text_attrs:
        raise CacheError(
            f"{path} is an HDF5 file but not a cliad cache; it has {sorted(index.arrays)[:4]}; "
            "`cliad import npz` takes arrays from elsewhere"
        )
    if index.attrs["schema"] != SCHEMA:
        raise CacheError(
            f"{path} has schema {index.attrs['schema']}, this cliad reads schema {SCHEMA}; "
            "update cliad, or extract again with --force"
        )
    missing = list(_missing(index, size=path.stat().st_size))
    if missing:
        raise CacheError(
            f"{path} is damaged, it has lost {missing[:3]}; extract it again with --force"
        )
    return index


@contextmanager
def damage_as_cache_error(path: Path) -> Iterator[None]:
    """Whatever is raised in the block, on whatever bytes, becomes one line that names the file."""
    try:
        yield
    except CacheError:
        raise
    # HDF5 raises OSError, RuntimeError, KeyError, TypeError and more, and so do json and decode.
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise CacheError(
            f"{path} cannot be read, it seems truncated or damaged ({lines[0][:90]}); "
            "extract it again with --force"
        ) from None


def _load(path: Path) -> Index:
    arrays: dict[str, StoredArray] = {}

    def add_array(name: str, node: h5py.Dataset | h5py.Group) -> None:
        if isinstance(node, h5py.Dataset):
            arrays[name] = StoredArray(node.id.get_offset(), node.shape, node.dtype)

    # No lock: a file may be read while its rows are written, and some file systems have no locks.
    with h5py.File(path, "r", locking=False) as file:
        attrs = _attributes(file)
        file.visititems(add_array)
        text_attrs = {name: _attributes(group) for name, group in file.get("text", {}).items()}
    return Index(attrs, arrays, text_attrs)


def _attributes(node: h5py.Group) -> Attributes:
    attributes = {}
    for key, value in node.attrs.items():
        # Strings of fixed length come as bytes.
        attributes[key] = value.decode() if isinstance(value, bytes) else value
    return attributes


def _missing(index: Index, size: int) -> Iterator[str]:
    """What every cache has and this file lacks: arrays, attributes, or the bytes of arrays.

    `size` is the size of the file in bytes.
    """
    # A file without any split lacks the arrays of at least one, whatever its name.
    for split in split_names(index.arrays) or {"*"}:
        yield from _missing_arrays(index, f"splits/{split}", SPLIT_ARRAYS)
    for prompts in index.text_attrs:
        yield from _missing_arrays(index, f"text/{prompts}", TEXT_ARRAYS)
    for key in ATTRIBUTES:
        if key not in index.attrs:
            yield key
    for prompts, attrs in index.text_attrs.items():
        for key in TEXT_ATTRIBUTES:
            if key not in attrs:
                yield f"{key} of text/{prompts}"
    # An offset past the end: the file was cut off, or its index is damaged.
    for name, array in index.arrays.items():
        if array.offset is not None and array.offset + array.nbytes > size:
            yield name


def _missing_arrays(index: Index, group: str, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if f"{group}/{name}" not in index.arrays:
            yield f"{group}/{name}"

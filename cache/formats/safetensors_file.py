"""A safetensors file: arrays that any framework reads, without pickle.

It has the arrays of `named_arrays` under the same names, and further arrays of a split, which are
only written, as `<split>_<array>`. Strings are JSON lists in the file's metadata.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cliad.cache.documents import parse_json
from cliad.cache.file.layout import CacheError, as_bytes, covered_rows_array, is_view_array
from cliad.cache.file.read import FeatureCache
from cliad.cache.formats.base import reading, storable
from cliad.cache.formats.kinds import open_kind
from cliad.cache.formats.named_arrays import (
    ALIASES,
    KNOWN,
    Arrays,
    Log,
    class_arrays,
    known_paths,
    listing,
    split_arrays,
)
from cliad.cache.tensor_files import SAFETENSORS

HINT = "fetch or save it again"
LARGEST_HEADER = 10**8  # bytes, the format's own limit
# The types of the format that NumPy has, too; BF16 is read as F32.
TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
# Facts about the cache or the writer in the metadata, which no reader needs.
NOTES = ("dataset", "encoder", "fingerprint", "format")
# What `write_safetensors` gives along and an import has no use for.
FURTHER = ("pre_projection", "tokens", "views/")

# ------------------------------------------------------------------------------------ reading


def load_safetensors(file: Path, log: Log) -> Arrays:
    """The arrays of a safetensors file by name; large ones are mapped, not read.

    Raises:
        CacheError: not such a file, or its header and its size do not fit together.
    """
    with open_kind(file, SAFETENSORS, HINT) as stream, reading(file, SAFETENSORS, HINT):
        size = os.fstat(stream.fileno()).st_size
        n_header = int.from_bytes(stream.read(8), "little")
        if not 2 <= n_header <= min(size - 8, LARGEST_HEADER):
            raise CacheError(f"{file} is not {SAFETENSORS} (its header has no such size); {HINT}")
        header = parse_json(stream.read(n_header), f"{file}: header", CacheError, HINT)
        if not isinstance(header, dict):
            raise CacheError(f"{file} is not {SAFETENSORS} (its header is no table); {HINT}")
        strings = header.pop("__metadata__", None) or {}
        start = 8 + n_header
        ranges = {name: _range(file, name, entry, size - start) for name, entry in header.items()}
        # The format has no gaps and shares no bytes, so a header that lies is found by the sum.
        if sum(stop - first for first, stop in ranges.values()) != size - start:
            raise CacheError(f"{file} has another size than its header says; {HINT}")
        arrays: Arrays = {}
        for name, (first, _) in ranges.items():
            arrays[name] = _mapped(file, header[name], start + first)
    _leave_out(file, arrays, log)
    return arrays | _string_arrays(file, strings, log)


def _range(file: Path, name: str, entry: Any, n_byte: int) -> tuple[int, int]:
    """Where the bytes of an array are, if its entry in the header is consistent."""
    fits = isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}
    shape: Any = entry["shape"] if fits else None
    offsets: Any = entry["data_offsets"] if fits else None
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
        raise CacheError(f"{file}: the header has no dtype, shape and place of {name[:60]}; {HINT}")
    if entry["dtype"] not in TYPES:
        raise CacheError(
            f"{file}: {name[:60]} is of type {str(entry['dtype'])[:20]}, which is not read;"
            " save it as F32 or F16"
        )
    first, stop = offsets
    expected = math.prod(shape) * np.dtype(TYPES[entry["dtype"]]).itemsize
    if stop - first != expected or stop > n_byte:
        raise CacheError(
            f"{file}: {name[:60]} should be {entry['dtype']} {shape}, which takes {expected:,}"
            f" bytes, but the header gives it {stop - first:,} of {n_byte:,}; {HINT}"
        )
    return first, stop


def _are_sizes(values: Any) -> bool:
    """Whether a value of the header is a list of whole numbers, none of them negative."""
    # Exact types: isinstance would take true for 1.
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _mapped(file: Path, entry: Mapping[str, Any], offset: int) -> np.ndarray:
    shape = tuple(entry["shape"])
    dtype = np.dtype(TYPES[entry["dtype"]])
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype)
    values = np.memmap(file, dtype, "r", offset, shape or (1,)).reshape(shape)
    if entry["dtype"] == "BF16":
        # bfloat16 is the upper half of a float32.
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def _leave_out(file: Path, arrays: Arrays, log: Log) -> None:
    """Take out the arrays of an exported cache that an import cannot hold, and say so."""
    further = []
    for name in arrays:
        split, _, rest = name.partition("_")
        if f"{split}_x" in KNOWN and rest.startswith(FURTHER):
            further.append(name)
    for name in further:
        del arrays[name]
    if further:
        log(f"{file}: {len(further)} arrays beside features are left out: {listing(further)}")


def _string_arrays(file: Path, strings: Any, log: Log) -> Arrays:
    """The lists of strings in the metadata; what stands there without meaning to us is said."""
    if not isinstance(strings, dict):
        raise CacheError(f"{file}: its metadata is no table; {HINT}")
    arrays: Arrays = {}
    unused = []
    for name, text in strings.items():
        if ALIASES.get(name, name) not in KNOWN:
            if name not in NOTES:
                unused.append(name)
            continue
        values = parse_json(str(text), f"{file}: metadata {name}", CacheError, HINT)
        entries = values if isinstance(values, list) else [values]
        if not all(isinstance(entry, str) for entry in entries):
            raise CacheError(f"{file}: metadata {name} must be a JSON list of strings; {HINT}")
        arrays[name] = np.array(storable(f"{file}: {name}", entries), dtype=str)
    if unused:
        log(f"{file}: metadata without a meaning here is not used: {listing(unused)}")
    return arrays


# ------------------------------------------------------------------------------------ writing


def write_safetensors(cache: FeatureCache, new: Path) -> None:
    """Write a cache as such a file; `load_safetensors` gives the same arrays back."""
    arrays: Arrays = {}
    strings = {
        "dataset": cache.dataset,
        "encoder": cache.encoder,
        "fingerprint": cache.fingerprint,
    }
    for name, values in class_arrays(cache).items():
        # The format has numbers only.
        if values.dtype.kind == "U":
            strings[name] = json.dumps(values.tolist(), ensure_ascii=False)
        else:
            arrays[name] = values
    for split in cache.split_names:
        arrays |= split_arrays(cache, split)
        arrays |= _further_arrays(cache, split)
        paths = known_paths(cache, split)
        if paths:
            strings[f"{split}_paths"] = json.dumps(paths, ensure_ascii=False)
    _save(new, arrays, strings)


def _save(new: Path, arrays: Arrays, strings: Mapping[str, str]) -> None:
    """Write arrays and strings under exactly this name.

    Not by the library, which writes a file of another name beside it, for the owner's eyes alone,
    and leaves it there when it is killed.
    """
    type_of = {np.dtype(ours): theirs for theirs, ours in TYPES.items() if theirs != "BF16"}
    header: dict[str, Any] = {"__metadata__": dict(strings)}
    stop = 0
    # The widest first, so that each array starts at a multiple of its own width.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    for name in names:
        values = arrays[name]
        start, stop = stop, stop + values.nbytes
        dtype = type_of[values.dtype.newbyteorder("<")]
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [start, stop]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(new, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            values = arrays[name]
            little = values.dtype.newbyteorder("<")
            # The format has no strides, so every array is written in the order of its rows.
            stream.write(as_bytes(np.ascontiguousarray(values, little).reshape(-1)))


def _further_arrays(cache: FeatureCache, split: str) -> Arrays:
    """Views, tokens and the like; beside views the rows of the split that they cover."""
    names = []
    for name in cache.row_arrays(split):
        # The features are <split>_x already.
        if name != "features":
            names.append(name)
        if is_view_array(name):
            names.append(covered_rows_array(name))
    arrays: Arrays = {}
    for name in names:
        values = cache.column(split, name)
        if values is not None:
            arrays[f"{split}_{name}"] = values
    return arrays

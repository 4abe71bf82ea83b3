"""The skeleton of a cache file: all its HDF5 data sets, at full size, with no row filled in yet."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from cliad.cache.file.contents import array_line, as_text, attribute_lines, root_of
from cliad.cache.file.disk import open_for_writing, write_at
from cliad.cache.file.layout import (
    SCHEMA,
    CacheError,
    Header,
    SplitLayout,
    TextSet,
    canonical_json,
    covered_rows_array,
    view_array,
)
from cliad.cache.file.table import (
    LARGEST_ATTRIBUTE,
    LONGEST_STRING,
    FormError,
    HasShape,
    check_attributes,
    check_name,
    check_shapes,
    check_sizes,
)
from cliad.errors import printable

# Bytes left free for HDF5's own metadata.
METADATA_BYTES = 2**20

AttributeValue = str | int | float


@dataclass(frozen=True)
class NewArray:
    """A data set to be made; `data` is its content where that is known before any image is read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    data: np.ndarray | None = None
    attrs: Mapping[str, AttributeValue] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Its size on the disk."""
        return math.prod(self.shape) * self.dtype.itemsize


# HDF5 names -> data sets, and HDF5 names of groups, "" for the file, -> attributes.
NewArrays = dict[str, NewArray]
NewAttributes = dict[str, dict[str, AttributeValue]]


def _known(data: np.ndarray) -> NewArray:
    data = np.ascontiguousarray(data)
    return NewArray(data.shape, data.dtype, data)


def _known_strings(values: Sequence[str]) -> NewArray:
    encoded = [value.encode() for value in values]
    longest = max(map(len, encoded), default=0)
    if longest > LONGEST_STRING:
        start = max(values, key=len)[:40]
        raise CacheError(
            f"'{printable(start)}...' has {longest:,} bytes; paths, class names and templates "
            f"have at most {LONGEST_STRING:,}"
        )
    # HDF5 has no strings of length 0.
    return _known(np.array(encoded, dtype=f"S{max(longest, 1)}"))


def _known_text(text: str) -> NewArray:
    return _known(np.frombuffer(text.encode(), np.uint8))


def header_attributes(header: Header) -> NewAttributes:
    """The attributes of the file itself."""
    attributes: dict[str, AttributeValue] = {
        "schema": SCHEMA,
        "dataset": header.dataset,
        "encoder": header.encoder,
        "encoder_id": header.encoder_id,
        "image_id": header.image_id,
        "batch": int(header.batch),
        "unit_rows": int(header.unit_rows),
    }
    return {"": attributes}


def header_arrays(header: Header) -> NewArrays:
    """The JSON texts of the file itself, which may be too long for an attribute."""
    return {
        "image_recipe": _known_text(canonical_json(header.recipe)),
        "versions": _known_text(canonical_json(header.versions)),
    }


def split_arrays(name: str, split: SplitLayout, header: Header) -> NewArrays:
    """The data sets of a split: labels and paths are known, all rows are still to do.

    Raises:
        CacheError: a file cannot have a split or views of this name.
    """
    _check_names([name, *split.views])
    root = f"splits/{name}"
    n = len(split.labels)
    n_batch = math.ceil(n / header.batch)
    dtype = np.dtype(header.dtype)
    arrays: NewArrays = {}
    for column, row_shape in split.columns.items():
        arrays[f"{root}/{column}"] = NewArray((n, *row_shape), dtype)
    arrays[f"{root}/labels"] = _known(np.asarray(split.labels, np.int32))
    arrays[f"{root}/paths"] = _known_strings(split.paths)
    arrays[f"{root}/status"] = _known(np.zeros(n, np.uint8))
    arrays[f"{root}/checksums"] = _known(np.zeros(n_batch, np.uint32))
    for view_set, views in split.views.items():
        shape = (views.n_view, len(views.rows), *split.columns["features"])
        name_of_views = f"{root}/{view_array(view_set)}"
        how = {key: _plain(value) for key, value in views.how.items()}
        arrays[name_of_views] = NewArray(shape, dtype, attrs=how)
        arrays[covered_rows_array(name_of_views)] = _known(np.asarray(views.rows, np.int64))
    return arrays


def _check_names(names: Iterable[str]) -> None:
    try:
        for name in names:
            check_name(name)
    except FormError as error:
        raise CacheError(f"{error}; choose another name") from None


def _plain(value: object) -> AttributeValue:
    """A value as Python's own type: what a checksum is made of is the same when it is read."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    return float(value)  # type: ignore[arg-type]


def text_arrays(text: TextSet, dtype: str, schema: int = SCHEMA) -> NewArrays:
    """The data sets of a prompt set, all of them known; `schema` is that of the file.

    Raises:
        CacheError: a file cannot have a prompt set of this name.
    """
    _check_names([text.name])
    root = f"text/{text.name}"
    arrays = {
        f"{root}/templates": _known_strings(text.templates),
        f"{root}/classnames": _known_strings(text.classnames),
    }
    if text.features is not None:
        arrays[f"{root}/features"] = _known(np.asarray(text.features, dtype))
    if text.pre_projection is not None:
        arrays[f"{root}/pre_projection"] = _known(np.asarray(text.pre_projection, dtype))
    if schema > 1:
        arrays[f"{root}/text_recipe"] = _known_text(canonical_json(text.recipe))
    return arrays


def text_attributes(text: TextSet, schema: int = SCHEMA) -> NewAttributes:
    """The attributes of the group of a prompt set; `schema` is that of the file."""
    attributes: dict[str, AttributeValue] = {
        "text_id": text.text_id,
        "encoder_id": text.encoder_id,
        "logit_scale": float(text.logit_scale),
    }
    if schema == 1:
        attributes["text_recipe"] = canonical_json(text.recipe)
    return {f"text/{text.name}": attributes}


def contents_arrays(arrays: NewArrays, attributes: NewAttributes) -> NewArrays:
    """The lists of contents: one of each prompt set, and one of all else where there is that."""
    lines: dict[str, list[str]] = {}
    for name, array in arrays.items():
        line = array_line(name, array.shape, array.dtype, array.data)
        here = lines.setdefault(root_of(name), [])
        here.append(line)
        here.extend(attribute_lines(name, array.attrs))
    for name, values in attributes.items():
        lines.setdefault(root_of(name), []).extend(attribute_lines(name, values))
    return {f"{root}contents": _known_text(as_text(lines[root])) for root in lines}


def check_new(arrays: Mapping[str, HasShape], batch: int, cache: Path) -> None:
    """CacheError where a file with these arrays could not be opened again."""
    try:
        check_sizes(arrays)
        check_shapes(arrays, batch)
    except FormError as error:
        raise CacheError(f"cannot write {cache.name}: {error}") from None


def add_to_file(
    path: Path, mode: str, arrays: NewArrays, attributes: NewAttributes, *, cache: Path
) -> None:
    """Add data sets and attributes to an HDF5 file, reserve their space, write what is known.

    Args:
        path: the file to write, which has a temporary name.
        mode: "w" for a new file, "r+" for one that is there.
        arrays: the data sets to add.
        attributes: the attributes to add, to the file or to its groups.
        cache: the cache file that it will become, for messages.

    Raises:
        CacheError: it does not fit on the disk.
        OSError: the file cannot be written.
    """
    _check_attributes(attributes, cache)
    _check_room(arrays, cache)
    offsets = _define(path, mode, arrays, attributes)
    descriptor = open_for_writing(path)
    try:
        # Reserved now, so that a full disk is found here and not after hours of extraction.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, os.fstat(descriptor).st_size)
        for name, array in arrays.items():
            if array.data is not None and array.nbytes > 0:
                write_at(descriptor, array.data, offsets[name])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_attributes(attributes: NewAttributes, cache: Path) -> None:
    """CacheError where the file could not be opened again, or HDF5 would not take an attribute."""
    for values in attributes.values():
        for key, value in values.items():
            size = len(value.encode()) if isinstance(value, str) else 0
            if size > LARGEST_ATTRIBUTE:
                raise CacheError(
                    f"{key} of {cache.name} would have {size:,} bytes, and an attribute has at "
                    f"most {LARGEST_ATTRIBUTE:,}; shorten it, or make the file anew with --force"
                )
    try:
        if "" in attributes:
            check_attributes(attributes[""])
    except FormError as error:
        raise CacheError(f"cannot write {cache.name}: {error}; choose another name") from None


def _check_room(arrays: NewArrays, cache: Path) -> None:
    # h5py may crash on a full disk, so it is never called on one.
    needed = sum(array.nbytes for array in arrays.values())
    free = shutil.disk_usage(cache.parent).free
    if needed + METADATA_BYTES > free:
        raise CacheError(
            f"{cache.parent} has {free / 1e6:.0f} MB free, {cache.name} needs "
            f"{needed / 1e6:.0f} MB; free some space or give --cache DIR"
        )


def _define(path: Path, mode: str, arrays: NewArrays, attributes: NewAttributes) -> dict[str, int]:
    """Let h5py define data sets and attributes; the offset of each data set in the file."""
    with h5py.File(path, mode, locking=False) as file:
        for name, array in arrays.items():
            node = file.create_dataset(name, array.shape, array.dtype, dcpl=_contiguous())
            _set_attributes(node, array.attrs)
        for name, values in attributes.items():
            _set_attributes(file[name or "/"], values)
        return {name: file[name].id.get_offset() for name in arrays}


def _contiguous() -> h5py.h5p.PropDCID:
    """How a data set is stored: in one piece, with a place in the file before it has content."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    # Times would make the bytes of equal caches differ.
    properties.set_obj_track_times(False)
    return properties


def _set_attributes(
    node: h5py.Dataset | h5py.Group, attributes: Mapping[str, AttributeValue]
) -> None:
    for key, value in attributes.items():
        # As bytes, h5py stores a string of fixed length.
        node.attrs[key] = np.bytes_(value.encode()) if isinstance(value, str) else value

"""What stands in an HDF5 file: its arrays and attributes, looked at before any of them is read.

h5py's own way of reading follows links to other files, builds whatever type a file names and takes
its sizes at their word. So the objects are walked one by one, and each is compared with the tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cliad.cache.file.layout import SCHEMAS, CacheError
from cliad.cache.file.packed import read_packed
from cliad.cache.file.table import (
    ATTRIBUTES,
    DOCUMENTS,
    LARGEST_ATTRIBUTE,
    MOST_ATTRIBUTES,
    MOST_MEMBERS,
    TEXT_ATTRIBUTES,
    TEXT_DOCUMENTS,
    Form,
    FormError,
    check_group,
    check_name,
    check_sizes,
    form_of,
)
from cliad.errors import printable

# The number types of the table. Their HDF5 types are compared as a whole: size, byte order, bits.
NUMBERS = {
    "<f2": h5py.h5t.IEEE_F16LE,
    "<f4": h5py.h5t.IEEE_F32LE,
    "<i4": h5py.h5t.STD_I32LE,
    "<i8": h5py.h5t.STD_I64LE,
    "<u4": h5py.h5t.STD_U32LE,
    "|u1": h5py.h5t.STD_U8LE,
}
CLASSES = {
    h5py.h5t.INTEGER: "integers",
    h5py.h5t.FLOAT: "floating-point numbers",
    h5py.h5t.STRING: "strings",
    h5py.h5t.COMPOUND: "records",
    h5py.h5t.REFERENCE: "references",
    h5py.h5t.ENUM: "truth values",
    h5py.h5t.VLEN: "sequences of variable length",
    h5py.h5t.ARRAY: "arrays",
}

# Attributes by name.
Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class StoredArray:
    """An array of the file: where it lies, or what it holds where it was packed.

    `offset` is None where it has no bytes in the file, and where it was packed.
    """

    offset: int | None
    shape: tuple[int, ...]
    dtype: np.dtype
    unpacked: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def nbytes(self) -> int:
        """Its size, in the file unless it was packed."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, path: Path) -> np.ndarray:
        """Its content, memory-mapped read-only from the file `path`."""
        if self.unpacked is not None:
            return self.unpacked
        # A memory map cannot be empty.
        if self.offset is None:
            return np.empty(self.shape, self.dtype)
        return np.memmap(path, self.dtype, "r", self.offset, self.shape)


@dataclass(frozen=True)
class Tree:
    """Arrays by HDF5 name, and the attributes of the file (""), its groups and its view arrays."""

    arrays: dict[str, StoredArray]
    attrs: dict[str, dict[str, Any]]


def read_tree(path: Path) -> Tree:
    """Everything that stands in the file `path`; of its arrays only the packed ones are read.

    Raises:
        CacheError: it is not a cache file, or one of another schema.
        FormError: something in it is not what a cache file has.
        Exception: of any kind, from HDF5 on damaged bytes.
    """
    found = _Found()
    # No lock: a file may be read while its rows are written, and some file systems have no locks.
    with h5py.File(path, "r", locking=False) as file:
        _check_schema(path, file.id)
        known = {**ATTRIBUTES, **dict.fromkeys(DOCUMENTS, str)}
        found.attrs[""] = _read_attributes(file.id, "the file", known)
        found.add_members(file.id, "")
        check_sizes(found.arrays)
        for name, content in read_packed(found.packed).items():
            found.arrays[name] = StoredArray(None, content.shape, content.dtype, content)
    return Tree(found.arrays, found.attrs)


def _check_schema(path: Path, file: h5py.h5g.GroupID) -> None:
    # Before all else, as a file of another schema may have anything.
    schema = _read_attributes(file, "the file", {"schema": int}).get("schema")
    if schema is None:
        members = [printable(name.decode(errors="replace")) for name in list(file)[:4]]
        raise CacheError(
            f"{path} is an HDF5 file but not a cliad cache; it has {members}; "
            "`cliad import npz` takes arrays from elsewhere"
        )
    if schema not in SCHEMAS:
        raise CacheError(
            f"{path} has schema {schema}, this cliad reads schema "
            f"{' and '.join(map(str, SCHEMAS))}; update cliad, or extract again with --force"
        )


@dataclass
class _Found:
    """What a walk through the file has found so far."""

    arrays: dict[str, StoredArray] = field(default_factory=dict)
    packed: dict[str, h5py.h5d.DatasetID] = field(default_factory=dict)
    attrs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add_members(self, group: h5py.h5g.GroupID, root: str) -> None:
        """Add all that stands below a group, whose HDF5 name, with a slash, is `root`."""
        if group.get_num_objs() > MOST_MEMBERS:
            raise FormError(f"it has more than {MOST_MEMBERS} members in one group")
        for encoded in list(group):
            name = encoded.decode(errors="replace")
            check_name(name)
            # Soft and external links lead to other places, of this file or of the disk.
            if group.links.get_info(encoded).type != h5py.h5l.TYPE_HARD:
                raise FormError(f"{root}{name} is a link to another place")
            self._add(h5py.h5o.open(group, encoded), root + name)

    def _add(self, node: h5py.h5i.ObjectID, name: str) -> None:
        # The table knows no group below the third level, so that a loop of groups ends.
        if isinstance(node, h5py.h5g.GroupID):
            check_group(name)
            if name.startswith("text/"):
                known = {**TEXT_ATTRIBUTES, **dict.fromkeys(TEXT_DOCUMENTS, str)}
                self.attrs[name] = _read_attributes(node, name, known)
            self.add_members(node, f"{name}/")
        elif isinstance(node, h5py.h5d.DatasetID):
            self._add_array(node, name)
        else:
            raise FormError(f"{name} is neither an array nor a group")

    def _add_array(self, node: h5py.h5d.DatasetID, name: str) -> None:
        form = form_of(name)
        dtype = _checked_type(node.get_type(), form, name)
        shape = _checked_shape(node, form, name)
        size = math.prod(shape) * dtype.itemsize
        if name.startswith("splits/") and "/views/" in name:
            self.attrs[name] = _read_attributes(node, name)
        if size == 0:
            self.arrays[name] = StoredArray(None, shape, dtype)
            return
        properties = node.get_create_plist()
        layout = properties.get_layout()
        if layout in (h5py.h5d.CHUNKED, h5py.h5d.COMPACT):
            self.packed[name] = node
            self.arrays[name] = StoredArray(None, shape, dtype)
        elif layout != h5py.h5d.CONTIGUOUS or properties.get_external_count() > 0:
            raise FormError(f"{name} lies in another file")
        elif node.get_offset() is None:
            # HDF5 would read zeros: the array was defined and never written.
            raise FormError(f"it is damaged, it has lost ['{name}']")
        else:
            self.arrays[name] = StoredArray(node.get_offset(), shape, dtype)


def _checked_type(kind: h5py.h5t.TypeID, form: Form, name: str) -> np.dtype:
    """The type of an array, if it is one of its form.

    It is HDF5's own description that is looked at. numpy's would do for strings of variable length
    what it does for any object: take bytes of the file for the address of one.
    """
    dtype = None
    for code, number in NUMBERS.items():
        if kind == number:
            dtype = np.dtype(code)
    is_string = kind.get_class() == h5py.h5t.STRING and not kind.is_variable_str()
    if is_string and kind.get_strpad() == h5py.h5t.STR_NULLPAD:
        dtype = np.dtype(f"S{kind.get_size()}")
    if dtype is None or not form.takes(dtype):
        what = CLASSES.get(kind.get_class(), "another kind")
        if kind.get_class() in (h5py.h5t.INTEGER, h5py.h5t.FLOAT):
            what = f"{'big' if kind.get_order() == h5py.h5t.ORDER_BE else 'little'}-endian {what}"
        expected = " or ".join(form.types)
        raise FormError(f"{name} holds {what} of {kind.get_size()} bytes, expected type {expected}")
    return dtype


def _checked_shape(node: h5py.h5d.DatasetID, form: Form, name: str) -> tuple[int, ...]:
    if node.get_space().get_simple_extent_type() != h5py.h5s.SIMPLE or node.rank != form.rank:
        raise FormError(
            f"{name} has {node.rank} axes, expected {form.rank}: {form.axes.replace('?', '')}"
        )
    return node.shape


# ------------------------------------------------------------------------------------- attributes


def _read_attributes(
    node: h5py.h5i.ObjectID, where: str, known: Mapping[str, type] | None = None
) -> dict[str, Any]:
    """Attributes as str, int or float: those in `known`, name -> type, or all of them."""
    if h5py.h5a.get_num_attrs(node) > MOST_ATTRIBUTES:
        raise FormError(f"{where} has more than {MOST_ATTRIBUTES} attributes")
    keys = known
    if keys is None:
        every = range(h5py.h5a.get_num_attrs(node))
        keys = {h5py.h5a.open(node, index=i).name.decode(): object for i in every}
    values = {}
    for key, expected in keys.items():
        if h5py.h5a.exists(node, key.encode()):
            what = f"{printable(key)} of {where}"
            value = _read_attribute(h5py.h5a.open(node, key.encode()), what)
            if expected is float and isinstance(value, int):
                value = float(value)
            if not isinstance(value, expected):
                found = printable(repr(value))[:40]
                raise FormError(f"{what} is {found}, expected {expected.__name__}")
            values[key] = value
    return values


def _read_attribute(attribute: h5py.h5a.AttrID, what: str) -> str | int | float:
    kind = attribute.get_type()
    if attribute.get_space().get_simple_extent_type() != h5py.h5s.SCALAR:
        raise FormError(f"{what} is not a single value")
    if kind.get_class() == h5py.h5t.STRING and not kind.is_variable_str():
        if kind.get_size() > 2**16:
            raise FormError(f"{what} has {kind.get_size()} bytes, more than {LARGEST_ATTRIBUTE}")
        text = np.empty((), f"S{kind.get_size()}")
        attribute.read(text)
        return _decoded(text.item(), what)
    if kind.get_class() == h5py.h5t.INTEGER and kind.get_size() <= 8:
        whole = np.empty((), np.int64)
        attribute.read(whole)  # HDF5 converts
        return int(whole)
    if kind.get_class() == h5py.h5t.FLOAT and kind.get_size() <= 8:
        number = np.empty((), np.float64)
        attribute.read(number)
        return float(number)
    kind_name = CLASSES.get(kind.get_class(), "another kind")
    raise FormError(f"{what} holds {kind_name}, expected a number or a text of fixed length")


def _decoded(text: bytes, what: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise FormError(f"{what} is not UTF-8 text") from None

"""What a cache file may hold: one table of its arrays and one of its attributes.

A file from elsewhere may hold anything under any name, and an array is read as raw bytes: a type
that is not in the table would turn bytes of the file into addresses, or numbers into others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

import numpy as np

from cliad.errors import CliadError, printable

FLOATS = ("<f2", "<f4")
STRINGS = ("|S",)  # of fixed length, padded with zero bytes
BYTES = ("|u1",)

MOST_ROWS = 100_000_000  # of a split
# Of all class names or templates of a prompt set, padded, in bytes.
LARGEST = 2**28
# Of a JSON text, in bytes: a list of empty lists takes twenty times as much memory as its text.
# 21,841 class names take 1 MB.
LARGEST_TEXT = 2**24
# Of all arrays that are read when a file is opened, together.
LARGEST_AT_OPENING = 2**29
# The longest axis of what an encoder computes for one image or one class text.
WIDEST = 2**16
COMPUTED_AXES = ("dim", "dim_pre", "dim_text", "n_token", "n_view")
# Of a path, a class name or a template, in bytes.
LONGEST_STRING = 2**16
# Splits, prompt sets and view sets have names of at most so many letters.
LONGEST_NAME = 255
# Members of one group, and attributes of one object; a file has a handful of each.
MOST_MEMBERS = 1000
MOST_ATTRIBUTES = 200


class FormError(CliadError):
    """What a file holds is not in the tables; the message does not name the file."""


class HasShape(Protocol):
    """An array of a file, of which only shape and type are looked at."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...


@dataclass(frozen=True)
class Form:
    """The form of an array: its name, in which * is any one name, its types and its axes.

    Axes of one name have one length in a file, a split or a prompt set: see `_scope`. Only an axis
    with a question mark may be of length 0. `filled` arrays change while rows are extracted.
    `largest` is its largest size in bytes, where the array is read when a file is opened: a file
    with holes is as large as it says.
    """

    pattern: str
    types: tuple[str, ...]
    axes: str
    filled: bool = False
    largest: int | None = None

    def takes(self, dtype: np.dtype) -> bool:
        """Whether the array may be of this type."""
        is_string = dtype.kind == "S" and dtype.itemsize <= LONGEST_STRING
        return dtype.str in self.types or (is_string and self.types == STRINGS)

    @property
    def rank(self) -> int:
        """The number of its axes."""
        return len(self.axes.split())


# Arrays that say how long an axis is come before all others that have it. A name is of the first
# form whose pattern it matches.
ARRAYS = (
    Form("splits/*/labels", ("<i4",), "n?", largest=4 * MOST_ROWS),
    Form("splits/*/features", FLOATS, "n? dim", filled=True),
    Form("splits/*/paths", STRINGS, "n?"),
    Form("splits/*/status", BYTES, "n?", filled=True),
    Form("splits/*/checksums", ("<u4",), "n_batch?", filled=True),
    Form("splits/*/pre_projection", FLOATS, "n? dim_pre", filled=True),
    Form("splits/*/tokens", FLOATS, "n? n_token dim", filled=True),
    Form("splits/*/views/*_rows", ("<i8",), "n_row?", largest=8 * MOST_ROWS),
    Form("splits/*/views/*", FLOATS, "n_view n_row? dim", filled=True),
    Form("text/*/templates", STRINGS, "n_template?", largest=LARGEST),
    Form("text/*/classnames", STRINGS, "n_class", largest=LARGEST),
    Form("text/*/features", FLOATS, "n_template n_class dim"),
    Form("text/*/pre_projection", FLOATS, "n_template n_class dim_text"),
    # From schema 2 on: JSON texts, which may be longer than an attribute, and lists of checksums.
    Form("text/*/text_recipe", BYTES, "n_byte", largest=LARGEST_TEXT),
    Form("text/*/contents", BYTES, "n_byte", largest=LARGEST_TEXT),
    Form("image_recipe", BYTES, "n_byte", largest=LARGEST_TEXT),
    Form("versions", BYTES, "n_byte", largest=LARGEST_TEXT),
    Form("contents", BYTES, "n_byte", largest=LARGEST_TEXT),
)
GROUPS = ("splits", "splits/*", "splits/*/views", "text", "text/*")

# The attributes of the file and of each prompt set. Those of view arrays are free in name.
ATTRIBUTES: Mapping[str, type] = {
    "schema": int,
    "dataset": str,
    "encoder": str,
    "encoder_id": str,
    "image_id": str,
    "batch": int,
    "unit_rows": int,
}
TEXT_ATTRIBUTES: Mapping[str, type] = {"text_id": str, "encoder_id": str, "logit_scale": float}
# What is an attribute in schema 1 and an array of bytes in schema 2.
DOCUMENTS = ("image_recipe", "versions")
TEXT_DOCUMENTS = ("text_recipe",)
# HDF5 itself takes no attribute of more than 64 KB.
LARGEST_ATTRIBUTE = 60_000

# What every split and every prompt set has.
SPLIT_ARRAYS = ("features", "labels", "paths", "status", "checksums")
TEXT_ARRAYS = ("templates", "classnames")


def _matches(name: str, pattern: str) -> bool:
    # A star of fnmatch also matches slashes.
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def form_of(name: str) -> Form:
    """The form of the array of this HDF5 name.

    Raises:
        FormError: a cache file has no such array.
    """
    for form in ARRAYS:
        if _matches(name, form.pattern):
            return form
    raise FormError(f"it holds {printable(name)!r}, which no cache file has")


def check_group(name: str) -> None:
    """FormError where a cache file has no group of this HDF5 name."""
    if not any(_matches(name, pattern) for pattern in GROUPS):
        raise FormError(f"it holds a group {printable(name)!r}, which no cache file has")


def check_name(name: str) -> None:
    """FormError where a split, a prompt set or a view set cannot have this name.

    Such names end up in paths, in tables and on terminals.
    """
    odd = not name or name.startswith(".") or len(name) > LONGEST_NAME
    if odd or name != printable(name) or any(sign in name for sign in "/\\"):
        raise FormError(
            f"{printable(name)[:60]!r} is no name for a split, a prompt set or views "
            "(no slashes, no dot in front, at most 255 letters that can be shown)"
        )


# ------------------------------------------------------------------------------------------ sizes


def check_sizes(arrays: Mapping[str, HasShape]) -> None:
    """FormError where opening a file with these arrays, by HDF5 name, would take too much."""
    groups = {"/".join(name.split("/")[:2]) for name in arrays}
    if len(groups) > MOST_MEMBERS:
        raise FormError(f"it has more than {MOST_MEMBERS:,} splits and prompt sets")
    total = 0
    for name, array in arrays.items():
        largest = form_of(name).largest
        if largest is None:
            continue
        size = math.prod(array.shape) * array.dtype.itemsize
        if size > largest:
            raise FormError(f"{name} has {size:,} bytes, more than {largest:,}")
        total += size
    if total > LARGEST_AT_OPENING:
        raise FormError(
            f"its labels, names and recipes have {total:,} bytes in all, more than "
            f"{LARGEST_AT_OPENING:,}"
        )


# ----------------------------------------------------------------------------------------- shapes


def split_names(arrays: Iterable[str]) -> set[str]:
    """The splits that arrays belong to, by their HDF5 names."""
    return {name.split("/")[1] for name in arrays if name.startswith("splits/")}


def check_shapes(arrays: Mapping[str, HasShape], batch: int) -> None:
    """FormError where the sizes of arrays, by HDF5 name, do not fit each other or their form."""
    sides: dict[tuple[str, str], int] = {}
    for name, form in _in_table_order(arrays):
        shape = arrays[name].shape
        expected = []
        for axis, length in zip(form.axes.split(), shape, strict=True):
            key = _scope(axis.removesuffix("?"), name)
            expected.append(sides.setdefault(key, length))
            if length == 0 and not axis.endswith("?"):
                raise FormError(f"{name} is {shape}, and has no {axis} to it")
            if length > WIDEST and axis in COMPUTED_AXES:
                raise FormError(f"{name} is {shape}, and has a {axis} of more than {WIDEST:,}")
        if shape != tuple(expected):
            raise FormError(f"{name} is {shape}, expected {tuple(expected)}")
        if form.pattern == "splits/*/labels":
            sides[_scope("n_batch", name)] = math.ceil(shape[0] / batch)
    _check_types(arrays)


def _in_table_order(arrays: Mapping[str, HasShape]) -> Iterator[tuple[str, Form]]:
    by_form: dict[str, list[str]] = {form.pattern: [] for form in ARRAYS}
    for name in sorted(arrays):
        by_form[form_of(name).pattern].append(name)
    for form in ARRAYS:
        for name in by_form[form.pattern]:
            yield name, form


def _scope(axis: str, name: str) -> tuple[str, str]:
    """An axis, and the part of the file in which all axes of this name have one length."""
    if axis in ("dim", "dim_pre", "n_token"):
        return axis, ""  # the whole file
    if axis == "n_row":
        return axis, name.removesuffix("_rows")  # views, and the rows that they cover
    if axis in ("n_view", "n_byte"):
        return axis, name
    return axis, "/".join(name.split("/")[:2])  # a split or a prompt set


def _check_types(arrays: Mapping[str, HasShape]) -> None:
    # Rows are written in one type at offsets that follow from it.
    types = {}
    for name in sorted(arrays):
        if name.startswith("splits/") and arrays[name].dtype.kind == "f":
            types[arrays[name].dtype.str] = name
    if len(types) > 1:
        raise FormError(f"its image features are of two types, see {sorted(types.values())[:2]}")


# ----------------------------------------------------------------------------------------- values


def check_attributes(attrs: Mapping[str, Any]) -> None:
    """FormError where an attribute of the file, by name, has an impossible value."""
    for key in ("dataset", "encoder", "encoder_id", "image_id"):
        if attrs[key] != printable(attrs[key]):
            raise FormError(f"its {key} {printable(attrs[key])[:60]!r} cannot be shown")
    if attrs["batch"] <= 0:
        raise FormError(f"its batch is {attrs['batch']}, expected a number above 0")
    if attrs["unit_rows"] not in (0, 1):
        raise FormError(f"its unit_rows is {attrs['unit_rows']}, expected 0 or 1")


def check_text_attributes(prompts: str, attrs: Mapping[str, Any]) -> None:
    """FormError where an attribute of a prompt set has an impossible value."""
    for key in ("text_id", "encoder_id"):
        if attrs[key] != printable(attrs[key]):
            raise FormError(f"prompts '{prompts}': {key} {printable(attrs[key])[:60]!r}")
    scale = attrs["logit_scale"]
    if not (math.isfinite(scale) and scale > 0):
        raise FormError(f"prompts '{prompts}': logit scale {scale} is not a number above 0")

"""The index of a cache file: its attributes, and where each array lies. Rows are not read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from cliad.cache.documents import open_regular, parse_json
from cliad.cache.file.hdf5 import Attributes, StoredArray, Tree, read_tree
from cliad.cache.file.heaps import check_heaps
from cliad.cache.file.layout import UNREADABLE, CacheError
from cliad.cache.file.table import (
    ATTRIBUTES,
    DOCUMENTS,
    SPLIT_ARRAYS,
    TEXT_ARRAYS,
    TEXT_ATTRIBUTES,
    TEXT_DOCUMENTS,
    FormError,
    check_attributes,
    check_shapes,
    check_text_attributes,
    split_names,
)
from cliad.errors import printable

AGAIN = "extract it again with --force"


@dataclass(frozen=True)
class Index:
    """Attributes of the file, its arrays by HDF5 name, and the attributes of each prompt set.

    Recipes and versions stand among the attributes, wherever the file has them. `view_attrs` are
    those of the view arrays, by HDF5 name.
    """

    attrs: Attributes
    arrays: Mapping[str, StoredArray]
    text_attrs: Mapping[str, Attributes]
    view_attrs: Mapping[str, Attributes]


def read_index(path: Path) -> Index:
    """The index of a file in which nothing is missing and all is of the form of the tables.

    Raises:
        CacheError: not HDF5, not a cache, of another schema, damaged or truncated.
        Exception: of any kind, on damaged bytes; see `damage_as_cache_error`.
    """
    # A file that may not be read is not one that was copied badly.
    open_regular(path, CacheError).close()
    if not h5py.is_hdf5(path):
        raise CacheError(
            f"{path} is not an HDF5 file ({path.stat().st_size} bytes without its signature); "
            "was it copied badly?"
        )
    check_heaps(path)
    tree = read_tree(path)
    _check_apart(tree.arrays)
    index = _index(path, tree)
    missing = list(_missing(index, size=path.stat().st_size))
    if missing:
        raise CacheError(f"{path} is damaged, it has lost {missing[:3]}; {AGAIN}")
    check_attributes(index.attrs)
    check_shapes(index.arrays, index.attrs["batch"])
    for prompts, attrs in index.text_attrs.items():
        check_text_attributes(prompts, attrs)
    _check_documents(path, index)
    for split in split_names(index.arrays):
        _check_values(path, index.arrays, split)
    return index


@contextmanager
def damage_as_cache_error(path: Path) -> Iterator[None]:
    """Whatever is raised in the block, on whatever bytes, becomes one line that names the file."""
    try:
        yield
    except CacheError:
        raise
    except FormError as error:
        hint = "" if "; " in str(error) else f"; {AGAIN}"
        raise CacheError(f"{path} cannot be used: {error}{hint}") from None
    # HDF5 raises OSError, RuntimeError, KeyError, TypeError and more, and so do json and decode.
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise CacheError(
            f"{path} cannot be read, it seems truncated or damaged ({printable(lines[0][:90])}); "
            f"{AGAIN}"
        ) from None


def _index(path: Path, tree: Tree) -> Index:
    attrs = {**tree.attrs[""], **_documents(path, tree.arrays, "", DOCUMENTS)}
    text_attrs = {}
    view_attrs = {}
    for node, values in tree.attrs.items():
        if node.startswith("text/"):
            texts = _documents(path, tree.arrays, f"{node}/", TEXT_DOCUMENTS)
            text_attrs[node.removeprefix("text/")] = {**values, **texts}
        elif node:
            view_attrs[node] = values
    return Index(attrs, tree.arrays, text_attrs, view_attrs)


def _check_apart(arrays: Mapping[str, StoredArray]) -> None:
    """FormError where two arrays share bytes: what is written to one would change the other."""
    places = []
    for name, array in arrays.items():
        if array.offset is not None:
            places.append((array.offset, array.nbytes, name))
    places.sort()
    for (offset, size, name), (next_offset, _, next_name) in pairwise(places):
        if offset + size > next_offset:
            raise FormError(f"it is damaged, {name} and {next_name} lie in one place")


def _documents(
    path: Path, arrays: Mapping[str, StoredArray], root: str, names: Iterable[str]
) -> dict[str, str]:
    """The texts that stand in arrays of bytes, by name; schema 1 has none."""
    texts = {}
    for name in names:
        if f"{root}{name}" in arrays:
            texts[name] = arrays[f"{root}{name}"].read(path).tobytes().decode()
    return texts


def _missing(index: Index, size: int) -> Iterator[str]:
    """What every cache has and this file lacks: arrays, attributes, or the bytes of arrays.

    `size` is the size of the file in bytes.
    """
    # A file without any split lacks the arrays of at least one, whatever its name.
    for split in sorted(split_names(index.arrays)) or ["*"]:
        yield from _missing_arrays(index, f"splits/{split}", SPLIT_ARRAYS)
    for prompts in index.text_attrs or ("*",):
        yield from _missing_arrays(index, f"text/{prompts}", TEXT_ARRAYS)
    yield from _missing_partners(index)
    for key in (*ATTRIBUTES, *DOCUMENTS):
        if key not in index.attrs:
            yield key
    for prompts, attrs in index.text_attrs.items():
        for key in (*TEXT_ATTRIBUTES, *TEXT_DOCUMENTS):
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


def _missing_partners(index: Index) -> Iterator[str]:
    """Rows without views, views without rows, and lists of contents, which schema 2 has."""
    for name in index.arrays:
        if "/views/" in name:
            views = name.removesuffix("_rows")
            partner = f"{views}_rows" if name == views else views
            if partner not in index.arrays:
                yield partner
    if index.attrs["schema"] > 1:
        for root in ("", *(f"text/{prompts}/" for prompts in index.text_attrs)):
            if f"{root}contents" not in index.arrays:
                yield f"{root}contents"


# ----------------------------------------------------------------------------------------- values


def _check_documents(path: Path, index: Index) -> None:
    """CacheError where a recipe or the versions are not the JSON text of an object."""
    for key in DOCUMENTS:
        _check_document(path, key, index.attrs[key])
    for prompts, attrs in index.text_attrs.items():
        for key in TEXT_DOCUMENTS:
            _check_document(path, f"{key} of prompts '{prompts}'", attrs[key])


def _check_document(path: Path, what: str, text: str) -> None:
    document = parse_json(text, f"{path}: {what}", CacheError, AGAIN)
    if not isinstance(document, dict):
        raise FormError(f"it is damaged, its {what} are no JSON object")


def _check_values(path: Path, arrays: Mapping[str, StoredArray], split: str) -> None:
    """FormError where marks, labels or numbers of rows of a split are impossible."""
    labels = arrays[f"splits/{split}/labels"].read(path)
    if len(labels) > 0 and labels.min() < 0:
        raise FormError(f"{split}: label {labels.min()} is below 0")
    status = arrays[f"splits/{split}/status"].read(path)
    if len(status) > 0 and status.max() > UNREADABLE:
        raise FormError(f"{split}: status {status.max()} is none of 0 to do, 1 done, 2 unreadable")
    for name, array in arrays.items():
        if name.startswith(f"splits/{split}/views/") and name.endswith("_rows"):
            _check_view_rows(array.read(path), name, len(labels))


def _check_view_rows(rows: np.ndarray, name: str, n: int) -> None:
    if len(rows) == 0:
        return
    ascending = (rows[1:] > rows[:-1]).all()
    if rows[0] < 0 or rows[-1] >= n or not ascending:
        raise FormError(f"{name} are not ascending row numbers below {n}")

"""The format of a cache file, written down, and the small types that describe one.

Layout (schema 2). Every HDF5 data set is contiguous, every string UTF-8 of fixed length; the table
in `table.py` holds the same for programs:

    /                           attributes: schema dataset encoder encoder_id image_id
                                batch unit_rows
    /image_recipe, /versions    (n_byte,) uint8    JSON texts
    /contents                   (n_byte,) uint8    checksums, see `contents.py`

    /splits/<split>/
        features                (n, dim)       raw image features of the plain view
        labels                  (n,) int32
        paths                   (n,)           in the split file's order; "" where unknown
        status                  (n,) uint8     0 to do, 1 done, 2 unreadable
        checksums               (n_batch,) uint32, see `batch_checksum`
        pre_projection          (n, dim_pre)                optional
        tokens                  (n, n_token, dim)           optional
        views/<name>            (n_view, n_row, dim)        optional; attributes: how they were made
        views/<name>_rows       (n_row,) int64 the rows of the split that have views, ascending

    /text/<prompts>/            attributes: text_id encoder_id logit_scale
        text_recipe             (n_byte,) uint8             JSON text
        features                (n_template, n_class, dim)  raw, optional; a row of zeros: the
                                class has no such sentence
        pre_projection          (n_template, n_class, dim_text)  optional
        templates               (n_template,)
        classnames              (n_class,)
        contents                (n_byte,) uint8             checksums, see `contents.py`

Schema 1 is still read: its recipes and versions are attributes, so of 64 KB at most, it has no
`contents`, and its batch checksums leave `status` out.

An id is the first 8 hex digits of the sha256 of its recipe, a JSON object that holds everything
that decides the numbers.

Crash safety: h5py writes the skeleton, complete and at full size, and closes it. From then on rows
are written past HDF5, at the offset of their data set, are synced to the disk, and only then
marked in `status`; HDF5's own metadata never changes again. Until all rows are there, the file is
named `name.h5.part`.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cliad.errors import CliadError

# The version of the format, and those that are read. A file with another one is refused.
SCHEMA = 2
SCHEMAS = (1, 2)

# The values of `status`.
TO_DO = 0
DONE = 1
UNREADABLE = 2


class CacheError(CliadError):
    """A cache file that cannot be written, read or trusted; the message says what to do."""


# ------------------------------------------------------------------------------------------ types


@dataclass(frozen=True)
class Views:
    """Augmented views of some rows of a split.

    `n_view` views of each of `rows` (n_row,). `how` says how they were made and is stored with
    them, as attributes.
    """

    n_view: int
    rows: np.ndarray
    how: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitLayout:
    """What a split will hold.

    paths (n,), labels (n,), the shape of a row of each array, such as {"features": (512,)}, and
    the views by name.
    """

    paths: Sequence[str]
    labels: np.ndarray
    columns: Mapping[str, tuple[int, ...]]
    views: Mapping[str, Views] = field(default_factory=dict)


@dataclass(frozen=True)
class TextSet:
    """A prompt set: raw text features (n_template, n_class, dim) or None, and their origin."""

    name: str
    features: np.ndarray | None
    templates: Sequence[str]
    classnames: Sequence[str]
    recipe: Mapping
    encoder_id: str
    logit_scale: float
    pre_projection: np.ndarray | None = None

    @property
    def text_id(self) -> str:
        """The id of the recipe."""
        return recipe_id(self.recipe)


@dataclass(frozen=True)
class Header:
    """The attributes of the file itself. `recipe` decides the image id, `versions` does not."""

    dataset: str
    encoder: str
    encoder_id: str
    recipe: Mapping
    batch: int
    dtype: str = "float16"
    unit_rows: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def image_id(self) -> str:
        """The id of the recipe."""
        return recipe_id(self.recipe)


# ------------------------------------------------------------------------- names, ids, checksums


def part_of(path: Path) -> Path:
    """The name that the cache file `path` has until it is complete."""
    return path.with_name(path.name + ".part")


def canonical_json(value: object) -> str:
    """One JSON text per value, whatever the order of the keys: the text that ids are hashes of."""
    # Letters stay as they are: an id must not change with the way JSON escapes them.
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def recipe_id(recipe: Mapping) -> str:
    """The 8-character id of a recipe."""
    return hashlib.sha256(canonical_json(recipe).encode()).hexdigest()[:8]


def file_list_hash(splits: Mapping[str, tuple[Sequence[str], np.ndarray]]) -> str:
    """The sha256 of the lines `split<TAB>label<TAB>path` of all splits, name -> (paths, labels).

    Splits come in the order of their names, rows in their own order.
    """
    digest = hashlib.sha256()
    for name in sorted(splits):
        paths, labels = splits[name]
        lines = [f"{name}\t{label}\t{path}\n" for path, label in zip(paths, labels, strict=True)]
        digest.update("".join(lines).encode())
    return digest.hexdigest()


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    if array.size == 0:
        return memoryview(b"")  # a view of an empty array cannot be cast
    return array.data.cast("B")


def batch_checksum(arrays: Mapping[str, np.ndarray], status: np.ndarray | None) -> int:
    """The CRC-32 of the rows of one batch: the bytes of its arrays one after another.

    Arrays come in the order of their names ("features", "tokens", "views/<name>", ...), in the
    type in which the file stores them; then `status` (n,) uint8, which is None in schema 1.
    """
    # The CRC of a concatenation is computed piece by piece, each starting from the last.
    checksum = 0
    for name in sorted(arrays):
        checksum = zlib.crc32(as_bytes(np.ascontiguousarray(arrays[name])), checksum)
    if status is not None:
        checksum = zlib.crc32(as_bytes(np.ascontiguousarray(status)), checksum)
    return checksum


def view_array(view_set: str) -> str:
    """The name of the array with the views of a view set, below its split."""
    return f"views/{view_set}"


def is_view_array(name: str) -> bool:
    """Whether an array of a split belongs to a view set: its views, or the rows that these cover.

    Such an array is the only kind that need not have a row for each row of the split.
    """
    return name.startswith("views/")


def covered_rows_array(name: str) -> str:
    """The name of the array with the rows that the view array `name` covers."""
    return f"{name}_rows"


def view_positions(view_rows: np.ndarray, start: int, stop: int) -> slice:
    """Where the views of rows `start` to `stop` of a split lie along the axis n_row of the views.

    Views cover some rows of a split only: `view_rows` (n_row,), ascending.
    """
    first, last = np.searchsorted(view_rows, [start, stop])
    return slice(int(first), int(last))

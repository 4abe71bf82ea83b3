"""The feature cache: one HDF5 file per image identity. The only module that imports h5py.

Layout (schema 1). Every data set is contiguous, every string UTF-8 of fixed length:

    /                                  attributes: schema dataset encoder encoder_id image_id image_recipe batch unit_rows versions
    /splits/<split>/features           (n, dim)                    raw image features of the plain view
    /splits/<split>/labels             (n,) int32
    /splits/<split>/paths              (n,)                        in the split file's order; "" where an import knows none
    /splits/<split>/status             (n,) uint8                  0 to do, 1 done, 2 unreadable
    /splits/<split>/checksums          (n_batch,) uint32           CRC-32 of the rows of a batch, all arrays in name order
    /splits/<split>/pre_projection     (n, dim_pre)                optional
    /splits/<split>/tokens             (n, n_token, dim)           optional
    /splits/<split>/views/<name>       (n_view, n_row, dim)        optional; attributes say how they were made
    /splits/<split>/views/<name>_rows  (n_row,) int64              the split's rows that the views cover, ascending
    /text/<prompts>/features           (n_template, n_class, dim)  raw; a zero row: the class has no such sentence
    /text/<prompts>/pre_projection     (n_template, n_class, dim_text)  optional
    /text/<prompts>/templates          (n_template,)
    /text/<prompts>/classnames         (n_class,)                  attributes: text_id text_recipe encoder_id logit_scale

An id is the first 8 hex digits of the sha256 of its recipe, a JSON object that holds all that decides the numbers.

Crash safety: the skeleton is made by h5py, complete and at full size, and closed. From then on rows go to their data set's
offset past HDF5, are synced, and only then marked in `status`; HDF5's own metadata is never touched again. The file has
its final name only when it is whole (`name.h5.part` until then).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cliad.errors import CliadError

SCHEMA = 1
TO_DO, DONE, UNREADABLE = 0, 1, 2


class CacheError(CliadError):
    """A cache file that cannot be made, read or trusted; the message says what to do."""


def recipe_id(recipe: Mapping) -> str:
    """The 8-character id of a recipe: a JSON object, the order of its keys does not matter."""
    return hashlib.sha256(
        json.dumps(recipe, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()[:8]


def file_list_hash(splits: Mapping[str, tuple[Sequence[str], np.ndarray]]) -> str:
    """sha256 over `split<TAB>label<TAB>path` in order, for splits as name -> (paths, labels)."""
    digest = hashlib.sha256()
    for name in sorted(splits):
        paths, labels = splits[name]
        digest.update(
            "".join(
                f"{name}\t{y}\t{path}\n" for path, y in zip(paths, labels, strict=True)
            ).encode()
        )
    return digest.hexdigest()


@dataclass(frozen=True)
class Views:
    """Augmented views of some rows of a split: `n_view` of each of `rows` (n_row,); `how` is stored beside them."""

    n_view: int
    rows: np.ndarray
    how: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitLayout:
    """What a split is to hold: paths (n,), labels (n,), row shapes such as {"features": (512,)}, and views by name."""

    paths: Sequence[str]
    labels: np.ndarray
    columns: Mapping[str, tuple[int, ...]]
    views: Mapping[str, Views] = field(default_factory=dict)


@dataclass(frozen=True)
class TextSet:
    """A prompt set: features (n_template, n_class, dim) raw or None, and what they were made from."""

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
        return recipe_id(self.recipe)


@dataclass(frozen=True)
class Header:
    """The file's own facts. `recipe` decides the image id; `versions` is recorded only."""

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
        return recipe_id(self.recipe)


def part_of(path: Path) -> Path:
    """The name that a cache bears until it is whole."""
    return path.with_name(path.name + ".part")

"""The folder that `clip-retrieval inference` writes, one for all splits or one below each of train/, val/, test/.

    img_emb/img_emb_<i>.npy (n, dim)      any number of shards, taken in the order of their numbers
    metadata/metadata_<i>.parquet         a row for each embedding: image_path, caption, and whatever else
    text.npz                              optional, ours: class text, names and logit scale as in `cliad.cache.formats.npz`

Labels are a column's values (`labels`), or with "folder" the folder that an image lies in. By default the first of the
columns `label`, `class`, `classname`, `caption` is taken, else the folder. Integers are class numbers; strings become
classes in sorted order. The splits are the folders, else the column `split`, else all is train.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from cliad.cache.file.layout import CacheError
from cliad.cache.formats.base import (
    SPLITS,
    Classes,
    ImportedFeatures,
    checked_rows,
    reading,
    storable,
)
from cliad.cache.formats.npz import read_classes

LABELS = ("label", "class", "classname", "caption")
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class _Table:
    """Rows of one folder, shards joined: x (n, dim); label, split, path, status (n,) as lists; status may be None."""

    x: np.ndarray
    label: list
    split: list[str]
    path: list[str]
    status: list[int] | None


def read_clip_retrieval(folder: Path, labels: str | None = None) -> ImportedFeatures:
    """Read such a folder; CacheError for missing or unequal shards, labels that are no classes, a missing pyarrow."""
    parts = {
        split: folder / split for split in SPLITS if (folder / split / "img_emb").is_dir()
    } or {None: folder}
    tables = [_read_folder(part, split, labels) for split, part in parts.items()]
    y, names = _class_numbers(folder, [label for table in tables for label in table.label], labels)
    splits, start = {}, 0
    for table in tables:
        splits |= _split_rows(folder, table, y[start : start + len(table.label)])
        start += len(table.label)
    classes = (
        read_classes(folder / "text.npz", need_text=False)
        if (folder / "text.npz").is_file()
        else Classes(classnames=names)
    )
    return ImportedFeatures(splits, max(1 + int(y.max()), len(names or [])), classes)


def _split_rows(folder: Path, table: _Table, y: np.ndarray) -> dict:
    splits = {}
    for split in dict.fromkeys(table.split):
        rows = np.flatnonzero(np.array(table.split) == split)
        together = rows[-1] - rows[0] == len(rows) - 1
        x = (
            table.x[rows[0] : rows[-1] + 1] if together else table.x[rows]
        )  # a slice of a mapped file is not read yet
        status = None if table.status is None else np.array(table.status, np.uint8)[rows]
        splits[split] = checked_rows(
            f"{folder}: {split}", x, y[rows], [table.path[row] for row in rows], status
        )
    return splits


def _read_folder(folder: Path, split: str | None, labels: str | None) -> _Table:
    found = (folder / "img_emb").glob("img_emb_*.npy")
    files = sorted(
        (int(match[1]), path)
        for path in found
        if (match := re.fullmatch(r"img_emb_(\d+)\.npy", path.name))
    )
    if not files:
        raise CacheError(
            f"{folder} has no img_emb/img_emb_<i>.npy; give the output folder of `clip-retrieval inference`"
        )
    shards, columns = [], []
    for _number, path in files:
        with reading(path, "an npy file", "write it again"):
            shards.append(np.load(path, mmap_mode="r", allow_pickle=False))
        columns.append(
            _read_columns(
                folder
                / "metadata"
                / path.name.replace("img_emb", "metadata").replace(".npy", ".parquet"),
                labels,
            )
        )
        if shards[-1].ndim != 2 or len(shards[-1]) != len(columns[-1]["label"]):
            raise CacheError(
                f"{path} is {shards[-1].shape} but its metadata has {len(columns[-1]['label'])} rows; one row for each is asked"
            )
    widths = {path.name: x.shape[1] for (_, path), x in zip(files, shards, strict=True)}
    if len(set(widths.values())) > 1:
        raise CacheError(
            f"{folder}: feature widths differ: {widths}; all shards must come from one encoder"
        )
    joined = {name: [value for part in columns for value in part[name]] for name in columns[0]}
    split_names = [split] * len(joined["label"]) if split else joined["split"]
    x = shards[0] if len(shards) == 1 else np.concatenate(shards)
    return _Table(
        x,
        joined["label"],
        split_names,
        joined["path"],
        joined["status"] if any(s != 1 for s in joined["status"]) else None,
    )


def _read_columns(path: Path, labels: str | None) -> dict[str, list]:
    """label, split, path, status of one metadata file, each a list (n,)."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise CacheError(
            "reading parquet needs pyarrow, which is not installed; run: pip install 'cliad[interop]'"
        ) from None
    with (
        reading(
            path, "a parquet file", "each img_emb_<i>.npy needs its metadata/metadata_<i>.parquet"
        ),
        open(path, "rb") as stream,
    ):
        file = parquet.ParquetFile(stream)
        have, n = file.schema_arrow.names, file.metadata.num_rows
        label = labels or next((name for name in LABELS if name in have), "folder")
        column = "image_path" if label == "folder" else label
        if column not in have:
            raise CacheError(
                f"{path} has no column '{column}' to take labels from; it has {have}; choose one with --labels COLUMN"
            )
        table = file.read(
            columns=sorted({column, "image_path", "split", "status"} & set(have))
        ).to_pydict()
    paths = [value or "" for value in table.get("image_path", [""] * n)]
    label_values = (
        [PurePosixPath(p.replace("\\", "/")).parent.name for p in paths]
        if label == "folder"
        else table[label]
    )
    splits = [_split_name(path, value) for value in table.get("split", ["train"] * n)]
    return {
        "label": label_values,
        "split": splits,
        "path": storable(f"{path}: image_path", paths),
        "status": table.get("status", [1] * n),
    }


def _split_name(path: Path, value) -> str:
    if (name := SPLIT_NAMES.get(value)) is None:
        raise CacheError(f"{path}: column 'split' holds {value!r}; known are {sorted(SPLIT_NAMES)}")
    return name


def _class_numbers(
    folder: Path, values: list, labels: str | None
) -> tuple[np.ndarray, list[str] | None]:
    """Class numbers (n,), and the class names where the labels are strings."""
    kinds = {type(value) for value in values}
    if kinds == {int}:
        return np.array(values), None
    if kinds != {str} or "" in values:
        raise CacheError(
            f"{folder}: labels are not all integers or all non-empty strings; found {sorted(k.__name__ for k in kinds)}"
        )
    names = sorted(set(values))
    if labels is None and 2 * len(names) > len(values):
        what = f"{len(names)} different labels for {len(values)} images"
        raise CacheError(
            f"{folder}: {what}, as free captions have; choose the classes with --labels COLUMN or --labels folder"
        )
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[value] for value in values]), storable(f"{folder}: labels", names)

"""The cache folder of Tip-Adapter's code and its many descendants. Read only.

    keys_<k>shots.pt (dim, n), values_<k>shots.pt (n, n_class) one-hot    support features
    val_f.pt (n, dim), val_l.pt (n,), test_f.pt, test_l.pt                optional, each as a pair

The largest support set is taken as train. Its rows are the unit mean over augmented views of an
image; which image is not recorded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cliad.cache.file.layout import CacheError
from cliad.cache.formats.base import (
    ImportedFeatures,
    ImportedSplit,
    check_widths,
    checked_split,
)
from cliad.cache.formats.labels import Labels, read_labels
from cliad.cache.formats.named_arrays import Log
from cliad.cache.formats.torch_file import load_torch, tensor_array

HINT = "it should be a tensor saved by torch.save; fetch or save it again"


def read_tip_adapter(folder: Path, log: Log = lambda message: None) -> ImportedFeatures:
    """Train from the largest keys file, val and test where they are.

    Smaller support sets are left out; `log` gets a line that names them.

    Raises:
        CacheError: no keys files, or files that do not fit together.
    """
    present = {path.name for path in folder.glob("*.pt")} if folder.is_dir() else set()
    keys, features = _load_features(folder, present)
    # One support set becomes train; smaller ones are left out.
    largest = max(keys, key=lambda name: len(keys[name]))
    smaller = sorted(set(keys) - {largest})
    if smaller:
        log(f"{folder}: train is {largest}; smaller sets are not imported: {', '.join(smaller)}")
    labels = _labels_of_values(folder, largest.replace("keys", "values"))
    if len(labels.y) == keys[largest].shape[1] != len(keys[largest]):
        raise CacheError(
            f"{folder}: {largest} is {keys[largest].T.shape} and seems to be transposed;"
            " Tip-Adapter stores an image as a column (dim, n), save its .T"
        )
    splits = {"train": checked_split(f"{folder}: {largest}", keys[largest], labels.y)}
    for split in ("val", "test"):
        if {f"{split}_f.pt", f"{split}_l.pt"} & present:
            splits[split] = _read_split(folder, split, features)
    # Test may have classes that the support lacks.
    highest = max(int(rows.y.max()) for rows in splits.values())
    return ImportedFeatures(splits, max(labels.n_class, 1 + highest))


class _Features(NamedTuple):
    """Features (n, dim) by file name: of the support sets, and of val and test."""

    keys: dict[str, np.ndarray]
    others: dict[str, np.ndarray]


def _load_features(folder: Path, present: set[str]) -> _Features:
    keys = {}
    for name in sorted(present):
        if re.fullmatch(r"keys_\d+shots\.pt", name):
            # Tip-Adapter stores an image as a column.
            keys[name] = _load_matrix(folder / name).T
    if not keys:
        found = sorted(present) or "no .pt files"
        raise CacheError(
            f"{folder} has no keys_<k>shots.pt; found {found};"
            " give the folder that Tip-Adapter calls cache_dir"
        )
    others = {}
    for name in ("val_f.pt", "test_f.pt"):
        if name in present:
            others[name] = _load_matrix(folder / name)
    widths = {name: x.shape[1] for name, x in (keys | others).items()}
    hint = "they come from two encoders, move those of one elsewhere"
    check_widths(str(folder), widths, hint)
    return _Features(keys, others)


def _read_split(folder: Path, split: str, features: Mapping[str, np.ndarray]) -> ImportedSplit:
    x = features.get(f"{split}_f.pt")
    if x is None:
        raise CacheError(
            f"{folder} has {split}_l.pt but no {split}_f.pt; a split needs features and labels"
        )
    labels = read_labels(f"{folder}: {split}_l.pt", _load(folder / f"{split}_l.pt"), len(x))
    if labels.names is not None:
        raise CacheError(f"{folder}: {split}_l.pt holds names; labels must be class numbers")
    return checked_split(f"{folder}: {split}", x, labels.y)


def _labels_of_values(folder: Path, name: str) -> Labels:
    """Labels out of one-hot rows (n, n_class)."""
    values = _load_matrix(folder / name)
    if values.shape[1] == 1:
        raise CacheError(f"{folder / name} has one column; it needs one for each class")
    return read_labels(str(folder / name), values, len(values))


def _load_matrix(path: Path) -> np.ndarray:
    array = _load(path)
    if array.ndim != 2 or not array.size:
        raise CacheError(
            f"{path}: expected a matrix, neither side 0; got {array.dtype} {array.shape}"
        )
    return array


def _load(path: Path) -> np.ndarray:
    """One tensor as an array."""
    import torch  # takes a second or two, and no other format needs it

    tensor = load_torch(path, HINT)
    if not isinstance(tensor, torch.Tensor):
        raise CacheError(
            f"{path} holds a {type(tensor).__name__}, not a tensor;"
            " save the tensor itself with torch.save"
        )
    return tensor_array(str(path), tensor)

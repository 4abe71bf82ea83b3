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
    reading,
)


def read_tip_adapter(folder: Path) -> ImportedFeatures:
    """Train from the largest keys file, val and test where they are.

    Raises:
        CacheError: no keys files, or files that do not fit together.
    """
    present = {path.name for path in folder.glob("*.pt")} if folder.is_dir() else set()
    keys, features = _load_features(folder, present)
    # One support set becomes train; smaller ones are left out.
    largest = max(keys, key=lambda name: len(keys[name]))
    labels = _labels_of_values(folder, largest.replace("keys", "values"))
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
    return checked_split(f"{folder}: {split}", x, _load(folder / f"{split}_l.pt"))


class _Labels(NamedTuple):
    """Labels y (n,), and the number of classes."""

    y: np.ndarray
    n_class: int


def _labels_of_values(folder: Path, name: str) -> _Labels:
    """Labels out of one-hot rows (n, n_class)."""
    values = _load_matrix(folder / name)
    # One value that is not 0, and that is 1.
    one_hot = (values.max(axis=1) == 1) & (np.count_nonzero(values, axis=1) == 1)
    wrong = np.flatnonzero(~one_hot)
    if len(wrong):
        raise CacheError(
            f"{folder / name}: row {wrong[0]} is not one-hot ({len(wrong)} such rows);"
            " labels cannot be told from it"
        )
    return _Labels(values.argmax(axis=1), values.shape[1])


def _load_matrix(path: Path) -> np.ndarray:
    array = _load(path)
    if array.ndim != 2 or not array.size:
        raise CacheError(
            f"{path}: expected a matrix, neither side 0; got {array.dtype} {array.shape}"
        )
    return array


def _load(path: Path) -> np.ndarray:
    """One tensor as an array; bfloat16, which NumPy does not have, as float32."""
    import torch  # takes a second or two, and no other format needs it

    hint = "it should be a tensor saved by torch.save; fetch or save it again"
    with reading(path, "a tensor without code", hint):
        # weights_only: no code of the file is run
        tensor = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(tensor, torch.Tensor):
            raise CacheError(
                f"{path} holds a {type(tensor).__name__}, not a tensor;"
                " save the tensor itself with torch.save"
            )
        tensor = tensor.detach()
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
        return tensor.numpy()

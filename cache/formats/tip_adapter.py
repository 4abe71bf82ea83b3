"""The cache folder of Tip-Adapter's code and its many descendants.

    keys_<k>shots.pt (dim, n), values_<k>shots.pt (n, n_class) one-hot    support features; the largest is taken as train
    val_f.pt (n, dim), val_l.pt (n,), test_f.pt, test_l.pt                optional, each as a pair

The support rows are the unit mean over augmented views of an image, which image is not recorded.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from cliad.cache.file.layout import CacheError
from cliad.cache.formats.base import ImportedFeatures, Rows, checked_rows, reading


def read_tip_adapter(folder: Path) -> ImportedFeatures:
    """Train from the largest keys file, val and test where they are; CacheError for anything that does not fit together."""
    found = sorted(path.name for path in folder.glob("*.pt")) if folder.is_dir() else []
    names = [name for name in found if re.fullmatch(r"keys_\d+shots\.pt", name)]
    if not names:
        raise CacheError(
            f"{folder} has no keys_<k>shots.pt; found {found or 'no .pt files'}; give the folder that Tip-Adapter calls cache_dir"
        )
    keys = {name: _matrix(folder / name).T for name in names}
    rest = {name: _matrix(folder / name) for name in ("val_f.pt", "test_f.pt") if name in found}
    _check_widths(folder, {name: x.shape[1] for name, x in (keys | rest).items()})
    largest = max(keys, key=lambda name: len(keys[name]))
    y, n_class = _labels_of_values(folder, largest.replace("keys", "values"))
    splits = {"train": checked_rows(f"{folder}: {largest}", keys[largest], y)}
    splits |= {
        split: _plain_split(folder, split, rest)
        for split in ("val", "test")
        if {f"{split}_f.pt", f"{split}_l.pt"} & set(found)
    }
    return ImportedFeatures(
        splits, max(n_class, *(1 + int(rows.y.max()) for rows in splits.values()), 0)
    )


def _plain_split(folder: Path, split: str, features: dict[str, np.ndarray]) -> Rows:
    if f"{split}_f.pt" not in features:
        raise CacheError(
            f"{folder} has {split}_l.pt but no {split}_f.pt; a split needs features and labels"
        )
    return checked_rows(
        f"{folder}: {split}", features[f"{split}_f.pt"], _load(folder / f"{split}_l.pt")
    )


def _check_widths(folder: Path, widths: dict[str, int]) -> None:
    if len(set(widths.values())) > 1:
        groups = [
            f"{width} in {', '.join(n for n in widths if widths[n] == width)}"
            for width in sorted(set(widths.values()))
        ]
        raise CacheError(
            f"{folder}: feature widths differ: {'; '.join(groups)}; they come from two encoders, move those of one elsewhere"
        )


def _labels_of_values(folder: Path, name: str) -> tuple[np.ndarray, int]:
    """Labels (n,) out of one-hot rows (n, n_class), and n_class."""
    values = _matrix(folder / name)
    wrong = np.flatnonzero((values.max(axis=1) != 1) | (np.count_nonzero(values, axis=1) != 1))
    if len(wrong):
        raise CacheError(
            f"{folder / name}: row {wrong[0]} is not one-hot ({len(wrong)} such rows); labels cannot be told from it"
        )
    return values.argmax(axis=1), values.shape[1]


def _matrix(path: Path) -> np.ndarray:
    array = _load(path)
    if array.ndim != 2 or not array.size:
        raise CacheError(
            f"{path}: a matrix is asked, neither side 0; found {array.dtype} {array.shape}"
        )
    return array


def _load(path: Path) -> np.ndarray:
    import torch  # takes a second or two, and no other format needs it

    with reading(
        path,
        "a tensor without code",
        "it should be a tensor saved by torch.save; fetch or save it again",
    ):
        tensor = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(tensor, torch.Tensor):
            raise CacheError(
                f"{path} holds a {type(tensor).__name__}, not a tensor; save the tensor itself with torch.save"
            )
        tensor = tensor.detach()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()

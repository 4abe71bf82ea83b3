"""Arrays in an npz file, the plainest way to bring features along.

train_x (n, dim), train_y (n,)       and the same for val and test; at least one split
train_paths (n,), train_status (n,)  optional; status as in the cache file: 1 done, 2 unreadable
text                                 (n_class, dim) or (n_template, n_class, dim), optional
classnames (n_class,), templates (n_template,), prompts (n_class,)   strings, optional
class_index (n_class,)               the labels that the classes of `text` have in the features, where not 0, 1, 2, ...
logit_scale, logit_scale_is          a number, and "multiplier" or "log"; optional
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cliad.cache.file.layout import CacheError
from cliad.cache.formats.base import (
    MAX_CLASS,
    SPLITS,
    Classes,
    ImportedFeatures,
    checked_rows,
    reading,
    strings,
)

OF_SPLIT = ("x", "y", "paths", "status")
OF_CLASSES = (
    "text",
    "classnames",
    "templates",
    "prompts",
    "class_index",
    "logit_scale",
    "logit_scale_is",
)
ALIASES = {"text_features": "text", "class_names": "classnames"}


def read_npz(file: Path) -> ImportedFeatures:
    """Features, labels and whatever is said of the classes; CacheError names the array that is missing or wrong."""
    arrays = _load(file)
    of_splits = {f"{split}_{part}" for split in SPLITS for part in OF_SPLIT}
    if unknown := sorted(set(arrays) - of_splits - set(OF_CLASSES)):
        raise CacheError(
            f"{file} has arrays {unknown} that mean nothing here; known are <split>_x, _y, _paths, _status for {SPLITS}, {OF_CLASSES}"
        )
    splits = {
        split: _rows(file, arrays, split)
        for split in SPLITS
        if any(f"{split}_{part}" in arrays for part in OF_SPLIT)
    }
    if not splits:
        raise CacheError(
            f"{file} has no features; found {sorted(arrays)}; it needs train_x and train_y, and test_x and test_y to score"
        )
    widths = {f"{split}_x": rows.x.shape[1] for split, rows in splits.items()}
    if len(set(widths.values())) > 1:
        raise CacheError(
            f"{file}: feature widths differ: {widths}; all splits must come from one encoder"
        )
    return ImportedFeatures(
        splits, 1 + max(int(rows.y.max()) for rows in splits.values()), _classes(file, arrays)
    )


def read_classes(file: Path, *, need_text: bool = True) -> Classes:
    """The classes alone: an npz with `text` (or `text_features`) and any of the arrays that belong to it."""
    classes = _classes(file, arrays := _load(file))
    if need_text and classes.text is None:
        raise CacheError(f"{file} has no array 'text' or 'text_features'; found {sorted(arrays)}")
    return classes


def _load(file: Path) -> dict[str, np.ndarray]:
    with (
        reading(
            file, "an npz file", "save it with np.savez, strings as np.array(names, dtype=str)"
        ),
        open(file, "rb") as stream,
    ):
        loaded = np.load(stream, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise CacheError(
                f"{file} is a single array {loaded.shape}, not an npz; save it with np.savez(file, train_x=..., train_y=...)"
            )
        return {ALIASES.get(name, name): loaded[name] for name in loaded.files}


def _rows(file: Path, arrays: dict[str, np.ndarray], split: str):
    x, y, paths, status = (arrays.get(f"{split}_{part}") for part in OF_SPLIT)
    if x is None or y is None:
        raise CacheError(
            f"{file} has no {split}_{'x' if x is None else 'y'}; a split needs both {split}_x and {split}_y"
        )
    if status is not None and (status.dtype.kind not in "iu" or not np.isin(status, (1, 2)).all()):
        raise CacheError(
            f"{file}: {split}_status must hold 1 (done) or 2 (unreadable) for each row; found {status.dtype} {status.shape}"
        )
    paths = None if paths is None else strings(f"{file}: {split}_paths", paths)
    return checked_rows(f"{file}: {split}", x, y, paths, status)


def _classes(file: Path, arrays: dict[str, np.ndarray]) -> Classes:
    text = arrays.get("text")
    if text is not None and text.ndim == 2:
        text = text[None]
    if text is not None and (text.ndim != 3 or text.dtype.kind != "f" or not text.size):
        found = f"{text.dtype} {arrays['text'].shape}"
        raise CacheError(
            f"{file}: text must be floats of shape (n_class, dim) or (n_template, n_class, dim); found {found}"
        )
    lists = {
        name: strings(f"{file}: {name}", arrays[name])
        for name in ("classnames", "templates", "prompts")
        if name in arrays
    }
    if (index := arrays.get("class_index")) is not None:
        _check_index(file, index)
    if text is not None:
        _check_lengths(file, text.shape, lists, index)
    elif index is not None:
        raise CacheError(
            f"{file} has class_index but no text; it says which labels the classes of text have"
        )
    scale = _number(file, arrays["logit_scale"]) if "logit_scale" in arrays else None
    scale_is = str(arrays["logit_scale_is"]) if "logit_scale_is" in arrays else None
    return Classes(text, index, **lists, logit_scale=scale, logit_scale_is=scale_is)


def _check_index(file: Path, index: np.ndarray) -> None:
    numbers = (
        index.ndim == 1
        and index.size
        and index.dtype.kind in "iu"
        and index.min() >= 0
        and index.max() < MAX_CLASS
    )
    if not numbers or len(np.unique(index)) < len(index):
        found = f"found {index.dtype} {index.shape}"
        raise CacheError(
            f"{file}: class_index must hold different labels from 0 on, one for each class of text; {found}"
        )


def _check_lengths(
    file: Path, shape: tuple[int, ...], lists: dict[str, list[str]], index: np.ndarray | None
) -> None:
    lengths = {name: len(values) for name, values in lists.items()} | (
        {} if index is None else {"class_index": len(index)}
    )
    for name, length in lengths.items():
        expected = shape[0] if name == "templates" else shape[1]
        if length != expected:
            raise CacheError(
                f"{file}: text is {shape} (n_template, n_class, dim) but {name} has {length} entries; {expected} are asked"
            )


def _number(file: Path, value: np.ndarray) -> float:
    if value.size != 1 or value.dtype.kind not in "fiu":
        raise CacheError(
            f"{file}: logit_scale must be one number; found {value.dtype} {value.shape}"
        )
    return float(value.reshape(()))

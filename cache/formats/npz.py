"""Arrays in an npz file, the plainest way to bring features along.

train_x (n, dim), train_y (n,)       and the same for val and test; at least one split
train_paths (n,), train_status (n,)  optional; status as in the cache file: 1 done, 2 unreadable
text                                 (n_class, dim) or (n_template, n_class, dim), optional
classnames (n_class,), templates (n_template,), prompts (n_class,)   strings, optional
class_index (n_class,)               the labels that the classes of `text` have in the features,
                                     where not 0, 1, 2, ...
logit_scale, logit_scale_is          a number, and "multiplier" or "log"; optional
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from cliad.cache.datasets.base import SPLITS
from cliad.cache.file.layout import DONE, UNREADABLE, CacheError
from cliad.cache.file.read import FeatureCache
from cliad.cache.formats.base import (
    MAX_CLASS,
    Classes,
    ImportedFeatures,
    ImportedSplit,
    check_widths,
    checked_split,
    reading,
    strings,
)

# Of each split, after its name: train_x, ...
SPLIT_PARTS = ("x", "y", "paths", "status")
CLASS_ARRAYS = (
    "text",
    "classnames",
    "templates",
    "prompts",
    "class_index",
    "logit_scale",
    "logit_scale_is",
)
# What other tools call these arrays.
ALIASES = {"text_features": "text", "class_names": "classnames"}
Arrays = dict[str, np.ndarray]

# ------------------------------------------------------------------------------------ reading


def read_npz(file: Path) -> ImportedFeatures:
    """Features, labels and whatever is said about the classes.

    Raises:
        CacheError: not such a file; the message names the array that is missing or wrong.
    """
    arrays = _load(file)
    _check_names(file, arrays)
    splits = {}
    for split in SPLITS:
        if any(f"{split}_{part}" in arrays for part in SPLIT_PARTS):
            splits[split] = _read_split(file, arrays, split)
    if not splits:
        raise CacheError(
            f"{file} has no features; found {sorted(arrays)};"
            " it needs train_x and train_y, and test_x and test_y to score"
        )
    widths = {f"{split}_x": rows.x.shape[1] for split, rows in splits.items()}
    check_widths(str(file), widths, "all splits must come from one encoder")
    n_class = 1 + max(int(rows.y.max()) for rows in splits.values())
    return ImportedFeatures(splits, n_class, _classes(file, arrays))


def read_classes(file: Path, *, need_text: bool = True) -> Classes:
    """The classes alone: an npz with `text` and any of the arrays that belong to it.

    Raises:
        CacheError: not such a file, or it has no text although `need_text`.
    """
    arrays = _load(file)
    classes = _classes(file, arrays)
    if need_text and classes.text is None:
        raise CacheError(f"{file} has no array 'text' or 'text_features'; found {sorted(arrays)}")
    return classes


def _load(file: Path) -> Arrays:
    hint = "save it with np.savez, strings as np.array(names, dtype=str)"
    with reading(file, "an npz file", hint), open(file, "rb") as stream:
        # Without pickles, so that no code of the file can run.
        loaded = np.load(stream, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise CacheError(
                f"{file} is a single array {loaded.shape}, not an npz;"
                " save it with np.savez(file, train_x=..., train_y=...)"
            )
        return {ALIASES.get(name, name): loaded[name] for name in loaded.files}


def _check_names(file: Path, arrays: Arrays) -> None:
    # An unknown name is often a misspelt one, whose array would be missed silently.
    known = set(CLASS_ARRAYS)
    for split in SPLITS:
        known |= {f"{split}_{part}" for part in SPLIT_PARTS}
    unknown = sorted(set(arrays) - known)
    if unknown:
        raise CacheError(
            f"{file} has arrays {unknown} that mean nothing here;"
            f" known are <split>_x, _y, _paths, _status for {SPLITS}, {CLASS_ARRAYS}"
        )


def _read_split(file: Path, arrays: Arrays, split: str) -> ImportedSplit:
    x = arrays.get(f"{split}_x")
    y = arrays.get(f"{split}_y")
    if x is None or y is None:
        missing = "x" if x is None else "y"
        raise CacheError(
            f"{file} has no {split}_{missing}; a split needs both {split}_x and {split}_y"
        )
    status = arrays.get(f"{split}_status")
    if status is not None:
        _check_status(f"{file}: {split}_status", status)
    paths = None
    if f"{split}_paths" in arrays:
        paths = strings(f"{file}: {split}_paths", arrays[f"{split}_paths"])
    return checked_split(f"{file}: {split}", x, y, paths, status)


def _check_status(where: str, status: np.ndarray) -> None:
    if status.dtype.kind not in "iu" or not np.isin(status, (DONE, UNREADABLE)).all():
        raise CacheError(
            f"{where} must hold {DONE} (done) or {UNREADABLE} (unreadable) for each row;"
            f" found {status.dtype} {status.shape}"
        )


def _classes(file: Path, arrays: Arrays) -> Classes:
    text = _text(file, arrays)
    lists: dict[str, list[str]] = {}
    for name in ("classnames", "templates", "prompts"):
        if name in arrays:
            lists[name] = strings(f"{file}: {name}", arrays[name])
    index = arrays.get("class_index")
    if index is not None:
        _check_index(file, index)
    if text is not None:
        lengths = {name: len(values) for name, values in lists.items()}
        if index is not None:
            lengths["class_index"] = len(index)
        _check_lengths(file, text.shape, lengths)
    elif index is not None:
        raise CacheError(
            f"{file} has class_index but no text; it says which labels the classes of text have"
        )
    scale_is = arrays.get("logit_scale_is")
    return Classes(
        text=text,
        index=index,
        classnames=lists.get("classnames"),
        templates=lists.get("templates"),
        prompts=lists.get("prompts"),
        logit_scale=_number(file, arrays.get("logit_scale")),
        logit_scale_is=None if scale_is is None else str(scale_is),
    )


def _text(file: Path, arrays: Arrays) -> np.ndarray | None:
    """Text features (n_template, n_class, dim), None where there are none."""
    given = arrays.get("text")
    if given is None:
        return None
    # Text of two axes is that of one template.
    text = given[None] if given.ndim == 2 else given
    if text.ndim != 3 or text.dtype.kind != "f" or not text.size:
        raise CacheError(
            f"{file}: text must be floats of shape (n_class, dim) or (n_template, n_class, dim);"
            f" found {given.dtype} {given.shape}"
        )
    return text


def _check_index(file: Path, index: np.ndarray) -> None:
    # One after the other: an empty array has no smallest value.
    correct = index.ndim == 1 and index.size > 0 and index.dtype.kind in "iu"
    if correct:
        correct = index.min() >= 0 and index.max() < MAX_CLASS
    if correct:
        correct = len(np.unique(index)) == len(index)
    if not correct:
        raise CacheError(
            f"{file}: class_index must hold different labels from 0 on,"
            f" one for each class of text; found {index.dtype} {index.shape}"
        )


def _check_lengths(file: Path, shape: tuple[int, ...], lengths: Mapping[str, int]) -> None:
    """CacheError where an array that belongs to text of this shape has another length."""
    n_template, n_class, _ = shape
    for name, length in lengths.items():
        expected = n_template if name == "templates" else n_class
        if length != expected:
            raise CacheError(
                f"{file}: text is {shape} (n_template, n_class, dim)"
                f" but {name} has {length} entries; expected {expected}"
            )


def _number(file: Path, value: np.ndarray | None) -> float | None:
    if value is None:
        return None
    if value.size != 1 or value.dtype.kind not in "fiu":
        raise CacheError(
            f"{file}: logit_scale must be one number; found {value.dtype} {value.shape}"
        )
    return float(value.reshape(()))


# ------------------------------------------------------------------------------------ writing


def write_npz(cache: FeatureCache, new: Path) -> None:
    """Write a cache as such a file; `read_npz` gives the same features back."""
    arrays = class_arrays(cache)
    for split in cache.split_names:
        arrays |= split_arrays(cache, split)
        paths = known_paths(cache, split)
        if paths:
            arrays[f"{split}_paths"] = np.array(paths, dtype=str)
    save_arrays(new, arrays)


def save_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An npz file under exactly this name, to which np.savez would append .npz."""
    # NumPy's type hints take every keyword for `allow_pickle`, a bool.
    savez: Callable[..., None] = np.savez
    with open(file, "wb") as stream:
        savez(stream, **arrays)


def class_arrays(cache: FeatureCache) -> Arrays:
    """What the cache knows about its classes, as CLASS_ARRAYS."""
    arrays = {
        "classnames": np.array(cache.classnames, dtype=str),
        "logit_scale": np.array(cache.logit_scale),
        "logit_scale_is": np.array("multiplier"),
    }
    if cache.text is not None:
        # As the file holds it; cache.text is the same in float32.
        arrays["text"] = cache.read(f"text/{cache.prompts}/features")
        arrays["templates"] = np.array(cache.templates, dtype=str)
    prompts = cache.text_recipe.get("prompts")
    if prompts:
        arrays["prompts"] = np.array(prompts, dtype=str)
    return arrays


def split_arrays(cache: FeatureCache, name: str) -> Arrays:
    """<split>_x and _y, and _status where an image was unreadable."""
    split = cache.split(name)
    arrays = {f"{name}_x": split.x, f"{name}_y": split.y}
    if not (split.status == DONE).all():
        arrays[f"{name}_status"] = split.status
    return arrays


def known_paths(cache: FeatureCache, name: str) -> list[str]:
    """The paths of a split; none where an import knew none."""
    paths = cache.split(name).paths()
    return paths if any(paths) else []

"""Arrays by name, checked: what npz, safetensors and .pt files have in common.

train_x (n, dim), train_y (n,)       and the same for val and test; at least one split. Labels are
                                     numbers, one-hot rows or class names, see `labels`
train_paths (n,), train_status (n,)  optional; status as in the cache file: 1 done, 2 unreadable
text                                 (n_class, dim) or (n_template, n_class, dim), optional
classnames (n_class,), templates (n_template,), prompts (n_class,)   strings, optional
class_index (n_class,)               the labels that the classes of `text` have in the features,
                                     where not 0, 1, 2, ...
logit_scale, logit_scale_is          a number, and "multiplier" or "log"; optional

A format is a reader, which gives such arrays, and a writer, which takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
    check_text_width,
    check_widths,
    checked_split,
    strings,
)
from cliad.cache.formats.labels import Labels, numbered, read_labels

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
KNOWN = (
    *CLASS_ARRAYS,
    *(f"{split}_{part}" for split in SPLITS for part in SPLIT_PARTS),
)
# What other tools call these arrays.
ALIASES = {
    "text_features": "text",
    "class_names": "classnames",
    **{f"{split}_features": f"{split}_x" for split in SPLITS},
    **{f"{split}_labels": f"{split}_y" for split in SPLITS},
}
Arrays = dict[str, np.ndarray]
Log = Callable[[str], None]

# ------------------------------------------------------------------------------------ reading


def features_of(file: Path, given: Mapping[str, np.ndarray]) -> ImportedFeatures:
    """Features, labels and whatever is said about the classes, all checked.

    Args:
        file: where the arrays are from, for messages.
        given: arrays by name.

    Raises:
        CacheError: the message names the array that is missing or wrong.
    """
    arrays = _canonical(file, given)
    _check_names(file, arrays)
    present = [
        split for split in SPLITS if any(f"{split}_{part}" in arrays for part in SPLIT_PARTS)
    ]
    if not present:
        raise CacheError(
            f"{file} has no features; found {listing(given)};"
            " it needs train_x and train_y, and test_x and test_y to score"
        )
    labels, label_names = numbered(
        str(file), {split: _labels(file, arrays, split) for split in present}
    )
    splits = {split: _read_split(file, arrays, split, labels[split].y) for split in present}
    widths = {f"{split}_x": rows.x.shape[1] for split, rows in splits.items()}
    check_widths(str(file), widths, "all splits must come from one encoder")
    columns = max(found.n_class for found in labels.values())
    n_class = max(columns, 1 + max(int(rows.y.max()) for rows in splits.values()))
    dim = next(iter(widths.values()))
    classes = _classes(file, arrays, dim)
    return ImportedFeatures(splits, n_class, classes, label_names)


def classes_of(
    file: Path, given: Mapping[str, np.ndarray], *, need_text: bool, log: Log
) -> Classes:
    """The classes alone: `text` and any of the arrays that belong to it.

    Raises:
        CacheError: an array is wrong, or there is no text although `need_text`.
    """
    arrays = _canonical(file, given)
    classes = _classes(file, arrays)
    if need_text and classes.text is None:
        raise CacheError(f"{file} has no array 'text' or 'text_features'; found {listing(given)}")
    unused = sorted(set(arrays) - set(CLASS_ARRAYS))
    if unused:
        log(
            f"{file}: only the classes are read; {len(unused)} other arrays are not:"
            f" {listing(unused)}"
        )
    return classes


def listing(names: Iterable[str]) -> str:
    """Names for a message, the first few of many."""
    known = sorted(names)
    more = f" and {len(known) - 8} more" if len(known) > 8 else ""
    return ", ".join(name[:60] for name in known[:8]) + more if known else "nothing"


def _canonical(file: Path, given: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays under our names for them."""
    arrays: Arrays = {}
    for name, values in given.items():
        ours = ALIASES.get(name, name)
        if ours in arrays:
            raise CacheError(f"{file} has {ours} twice, once as {name}; leave out one of the two")
        arrays[ours] = values
    return arrays


def _check_names(file: Path, arrays: Arrays) -> None:
    # An unknown name is often a misspelt one, whose array would be missed silently.
    unknown = sorted(set(arrays) - set(KNOWN))
    if unknown:
        raise CacheError(
            f"{file} has arrays that mean nothing here: {listing(unknown)};"
            f" known are <split>_x, _y, _paths, _status for {', '.join(SPLITS)},"
            f" and {', '.join(CLASS_ARRAYS)}"
        )


def _labels(file: Path, arrays: Arrays, split: str) -> Labels:
    x = arrays.get(f"{split}_x")
    y = arrays.get(f"{split}_y")
    if x is None or y is None:
        missing = "x" if x is None else "y"
        raise CacheError(
            f"{file} has no {split}_{missing}; a split needs both {split}_x and {split}_y"
        )
    n = len(x) if x.ndim else 0
    return read_labels(f"{file}: {split}_y", y, n)


def _read_split(file: Path, arrays: Arrays, split: str, y: np.ndarray) -> ImportedSplit:
    status = arrays.get(f"{split}_status")
    if status is not None:
        _check_status(f"{file}: {split}_status", status)
    paths = None
    if f"{split}_paths" in arrays:
        paths = strings(f"{file}: {split}_paths", arrays[f"{split}_paths"])
    return checked_split(f"{file}: {split}", arrays[f"{split}_x"], y, paths, status)


def _check_status(where: str, status: np.ndarray) -> None:
    if status.dtype.kind not in "iu" or not np.isin(status, (DONE, UNREADABLE)).all():
        raise CacheError(
            f"{where} must hold {DONE} (done) or {UNREADABLE} (unreadable) for each row;"
            f" found {status.dtype} {status.shape}"
        )


def _classes(file: Path, arrays: Arrays, dim: int | None = None) -> Classes:
    """What the arrays say about the classes; dim: the width of the features, if there are any."""
    text = _text(file, arrays)
    lists: dict[str, list[str]] = {}
    for name in ("classnames", "templates", "prompts"):
        if name in arrays:
            lists[name] = strings(f"{file}: {name}", arrays[name])
    index = arrays.get("class_index")
    if index is not None:
        _check_index(file, index)
    if text is not None:
        if dim is not None:
            check_text_width(str(file), text, dim)
        lengths = {name: len(values) for name, values in lists.items()}
        if index is not None:
            lengths["class_index"] = len(index)
        _check_lengths(file, text.shape, lengths)
    elif index is not None:
        raise CacheError(
            f"{file} has class_index but no text; it says which labels the classes of text have"
        )
    return Classes(
        text=text,
        index=index,
        classnames=lists.get("classnames"),
        templates=lists.get("templates"),
        prompts=lists.get("prompts"),
        logit_scale=_number(file, arrays.get("logit_scale")),
        logit_scale_is=_word(file, arrays.get("logit_scale_is")),
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
        if name == "classnames" and length == shape[2] != n_class:
            raise CacheError(
                f"{file}: text is {shape} but there are {length} class names: it seems to be"
                " transposed; save it as (n_class, dim) or (n_template, n_class, dim)"
            )
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


def _word(file: Path, value: np.ndarray | None) -> str | None:
    if value is None:
        return None
    return strings(f"{file}: logit_scale_is", value.reshape(-1)[:1])[0] if value.size else ""


# ------------------------------------------------------------------------------------ writing


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

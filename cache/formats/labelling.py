"""Which classes imported features have: their names, their text, and their logit scale."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cliad.cache.datasets.split_file import SplitRow, read_split_file
from cliad.cache.file.layout import DONE, CacheError
from cliad.cache.formats.base import (
    Classes,
    ImportedFeatures,
    ImportedSplit,
    check_text_width,
    storable,
)
from cliad.cache.formats.named_arrays import listing

CLIP_SCALE = 100.0  # CLIP's own logit scale, and that of all of its kin


@dataclass(frozen=True)
class LabelledFeatures:
    """Imported features with a name for each class; labels are 0, 1, 2, ... in the names' order.

    text (n_template, n_class, dim), templates and prompts are None where the source has none.
    """

    splits: Mapping[str, ImportedSplit]
    classnames: Sequence[str]
    text: np.ndarray | None
    templates: Sequence[str] | None
    prompts: Sequence[str] | None


def with_text(features: ImportedFeatures, given: Classes, where: str) -> ImportedFeatures:
    """The features with the classes of --text.

    Where that file is silent, the source's own logit scale holds, and its own class names if both
    mean the same classes.

    Raises:
        CacheError: text of another width than the image features; the message starts with `where`.
    """
    if given.text is not None:
        check_text_width(where, given.text, _width(features.splits))
    own = features.classes
    classnames = given.classnames
    # With an index on either side, the i-th class is not the same one in both.
    same_classes = given.index is None and own.index is None
    if not classnames:
        classnames = own.classnames if same_classes else None
    scale = own.logit_scale if given.logit_scale is None else given.logit_scale
    return replace(features, classes=replace(given, classnames=classnames, logit_scale=scale))


def with_split_file(
    features: ImportedFeatures, file: Path, without_paths: Collection[str] = ()
) -> tuple[ImportedFeatures, list[str]]:
    """The features with the paths of a split file, and its class names in label order.

    Args:
        without_paths: splits whose rows are not those of the file.

    Raises:
        SplitFileError: see `read_split_file`.
        CacheError: its counts or labels are not those of the features.
    """
    content = read_split_file(file)
    splits = dict(features.splits)
    for name, rows in features.splits.items():
        if name not in without_paths:
            listed = content.splits.get(name, ())
            _check_same_labels(file, name, listed, rows.y)
            splits[name] = replace(rows, paths=[row.path for row in listed])
    classnames = storable(str(file), content.classnames)
    return replace(features, splits=splits), classnames


def _check_same_labels(file: Path, split: str, listed: Sequence[SplitRow], y: np.ndarray) -> None:
    if len(listed) != len(y):
        raise CacheError(
            f"{file} lists {len(listed)} {split} images, the features have {len(y)} rows;"
            " is it the split they were made with?"
        )
    labels = np.array([row.label for row in listed])
    wrong = np.flatnonzero(y != labels)
    if len(wrong):
        row = wrong[0]
        raise CacheError(
            f"{file}: {split} row {row} has label {labels[row]}, the features say {y[row]}"
            f" ({len(wrong)} such rows)"
        )


def label_classes(
    features: ImportedFeatures,
    names: Sequence[str] | None,
    log: Callable[[str], None] = lambda message: None,
) -> LabelledFeatures:
    """Name the classes, and keep those alone that text covers, in its order.

    Args:
        names: in the order of the features' labels; None: the source's own, else "class 0", ...
        log: gets a line for rows that are left out, and for names that are taken by their order.

    Raises:
        CacheError: too few names, names in another order than the source's own, text of another
            number of classes, or labels with gaps and nothing that names the classes.
    """
    if features.label_names:
        features = _matched(features, names, log)
    classes = features.classes
    if names is not None:
        classnames = _given_names(classes, names)
    elif classes.classnames:
        classnames = list(classes.classnames)
    else:
        if classes.text is None:
            _check_gaps(features)
        classnames = [f"class {label}" for label in _labels_of_classes(features)]
    # Further names are fine: of classes without an image in these splits.
    if classes.index is None and len(classnames) < features.n_class:
        raise CacheError(
            f"{len(classnames)} class names but labels go up to {features.n_class - 1};"
            " labels start at 0, give a name for each class with --classnames FILE"
        )
    if classes.text is not None and classes.text.shape[1] != len(classnames):
        raise CacheError(
            f"text has {classes.text.shape[1]} classes but there are {len(classnames)} class names;"
            " text for some classes only needs an array class_index with their labels"
        )
    splits = features.splits
    if classes.index is not None:
        splits = _renumbered(features, classes.index, log)
    return LabelledFeatures(splits, classnames, classes.text, classes.templates, classes.prompts)


def _width(splits: Mapping[str, ImportedSplit]) -> int:
    return int(next(iter(splits.values())).x.shape[1])


def _check_gaps(features: ImportedFeatures) -> None:
    """CacheError where a class without a name has no row: nothing says that there is one."""
    used = np.zeros(features.n_class, bool)
    for rows in features.splits.values():
        used[rows.y] = True
    missing = np.flatnonzero(~used)
    if len(missing):
        first = ", ".join(str(label) for label in missing[:8].tolist())
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise CacheError(
            f"labels go from {used.argmax()} to {features.n_class - 1}, but no row has label"
            f" {first}{more}; number the classes from 0 without gaps, or name them all with"
            " --classnames FILE"
        )


def note_untrained(labelled: LabelledFeatures, log: Callable[[str], None]) -> None:
    """Tell `log` which classes have no readable training image, and which share a name."""
    names = labelled.classnames
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        log(f"{len(repeated)} class names stand for more than one class: {listing(repeated)}")
    train = labelled.splits.get("train")
    if train is None:
        return
    trained = np.zeros(len(names), bool)
    trained[train.y[train.status == DONE]] = True
    untrained = [names[label] for label in np.flatnonzero(~trained).tolist()]
    if untrained:
        log(
            f"{len(untrained)} of {len(names)} classes have no training image and cannot be"
            f" learnt: {listing(untrained)}"
        )


def _matched(
    features: ImportedFeatures, names: Sequence[str] | None, log: Callable[[str], None]
) -> ImportedFeatures:
    """The features with labels in the order of the class names, for labels that are names."""
    classes = features.classes
    own = list(features.label_names)
    if classes.index is not None:
        raise CacheError(
            "class_index numbers the labels, but the labels are names; leave class_index out"
        )
    wanted = names if names is not None else classes.classnames
    if not wanted:
        if classes.text is not None:
            log("labels are names and text has none: it is taken to be in their sorted order")
        return replace(features, classes=replace(classes, classnames=own))
    number = {name: label for label, name in enumerate(wanted)}
    lacking = [name for name in own if name not in number]
    if not lacking:
        if len(number) < len(wanted):
            raise CacheError("labels are names, but two of the class names are equal; rename one")
        new_label = np.array([number[name] for name in own])
    elif len(wanted) == len(own) and len(lacking) == len(own):
        # Such as folders called n01440764, and a list of what these mean.
        log(
            f"no label is a class name: labels in sorted order are taken for them, {own[0]!r} for"
            f" {wanted[0]!r}"
        )
        new_label = np.arange(len(own))
    elif len(wanted) == len(own) and _share_places(own, wanted):
        # Other spellings of some names are fine where the order is that of the labels.
        log(
            f"{len(lacking)} labels are taken for the class names at their place in sorted order:"
            f" {listing(lacking)}"
        )
        new_label = np.arange(len(own))
    else:
        raise CacheError(
            f"{len(lacking)} of {len(own)} labels are none of the {len(wanted)} class names:"
            f" {listing(lacking)}; give a name for each, spelt as in the labels"
        )
    splits = {}
    for name, rows in features.splits.items():
        splits[name] = replace(rows, y=new_label[rows.y])
    n_class = 1 + int(new_label.max())
    return replace(features, splits=splits, n_class=n_class)


def _share_places(own: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether all names that two lists of equal length share stand at the same place in both."""
    in_wanted = set(wanted)
    return all(a == b or a not in in_wanted for a, b in zip(own, wanted, strict=True))


def _given_names(classes: Classes, names: Sequence[str]) -> list[str]:
    """The names of text's classes, out of `names` of all labels."""
    if classes.classnames is not None:
        _check_order(classes.classnames, names, classes.index)
    if classes.index is None:
        return list(names)
    highest = int(classes.index.max())
    if highest >= len(names):
        raise CacheError(
            f"class_index goes up to {highest} but there are {len(names)} class names;"
            " give a name for every label"
        )
    return [names[label] for label in classes.index.tolist()]


def _labels_of_classes(features: ImportedFeatures) -> Iterable[int]:
    """The label of each class of text; without text, of each class of the features."""
    classes = features.classes
    if classes.text is None:
        return range(features.n_class)
    if classes.index is None:
        return range(classes.text.shape[1])
    return classes.index.tolist()


def _check_order(own: Sequence[str], names: Sequence[str], index: np.ndarray | None) -> None:
    """CacheError where the source's own list of names and the one given number classes differently.

    Other spellings are fine; a name that stands at another place in the other list is not.
    """
    # Without an index, the i-th name of the source's own list is that of label i.
    labels = list(range(len(own))) if index is None else index.tolist()
    for label, name in zip(labels, own, strict=True):
        if label < len(names) and name != names[label] and name in names:
            raise CacheError(
                f"class {label} is '{name}' in the features' own list"
                f" but '{names[label]}' in the names given; their order differs"
            )


def _renumbered(
    features: ImportedFeatures, index: np.ndarray, log: Callable[[str], None]
) -> dict[str, ImportedSplit]:
    """The rows of the labels in `index` (n_class,), where label index[i] becomes i."""
    n_label = max(features.n_class, int(index.max()) + 1)
    # -1: the label has no class in text, and its rows are left out.
    new_label = np.full(n_label, -1)
    new_label[index] = np.arange(len(index))
    splits = {}
    for name, rows in features.splits.items():
        splits[name] = _rows_with_label(name, rows, new_label[rows.y])
        n_left_out = len(rows.y) - len(splits[name].y)
        if n_left_out:
            log(f"{name}: {n_left_out:,} of {len(rows.y):,} rows are of no class in class_index")
    return splits


def _rows_with_label(split: str, rows: ImportedSplit, y: np.ndarray) -> ImportedSplit:
    """The rows whose new label `y` (n,) is not -1."""
    chosen = np.flatnonzero(y >= 0)
    if not len(chosen):
        raise CacheError(
            f"no {split} row is of a class in class_index;"
            " it must hold the labels that the features use"
        )
    paths = [rows.paths[row] for row in chosen.tolist()]
    return ImportedSplit(rows.x[chosen], y[chosen], paths, rows.status[chosen])


def multiplier(classes: Classes, scale: float | None, scale_is: str | None) -> float:
    """The logit scale as a multiplier; by default the source's own, else 100.

    Args:
        scale_is: "multiplier" or "log"; None: a multiplier, if it cannot be a logarithm.

    Raises:
        CacheError: it cannot be a logit scale, or may be a logarithm and nobody says.
    """
    if scale is None:
        scale = CLIP_SCALE if classes.logit_scale is None else classes.logit_scale
        scale_is = scale_is or classes.logit_scale_is
    if scale_is not in (None, "multiplier", "log"):
        raise CacheError(f"logit_scale_is '{scale_is}' is not one of multiplier, log")
    # CLIP's parameter is the logarithm, 4.6 for 100, and both are called logit_scale.
    if scale_is is None and 0 < scale < 10:
        raise CacheError(
            f"logit scale {scale:g} looks like a logarithm (exp of it is {math.exp(scale):.4g});"
            " give --logit-scale-is log or multiplier"
        )
    value = scale
    if scale_is == "log":
        value = math.exp(min(scale, 99))  # more would overflow, and is refused below
    if not 0 < value < 1e4:
        raise CacheError(
            f"logit scale {scale:g} gives a multiplier of {value:.4g};"
            f" expected one between 0 and 10000, CLIP's is {CLIP_SCALE:g}"
        )
    return value

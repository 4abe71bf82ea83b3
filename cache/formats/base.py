"""What a reader of a foreign format hands over, and the checks that all of them share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cliad.cache.file.layout import DONE, CacheError

SPLITS = ("train", "val", "test")
MAX_CLASS = 1_000_000  # a label beyond it is an id or an accident, not a class number


@dataclass(frozen=True)
class Rows:
    """One split: x (n, dim) of any float type, y (n,) integers, paths (n,), status (n,) as in the store."""

    x: np.ndarray
    y: np.ndarray
    paths: Sequence[str]
    status: np.ndarray


@dataclass(frozen=True)
class Classes:
    """What a file says of the classes; None is "not said". All lists are in the order of `text`'s classes.

    text (n_template, n_class, dim) raw or unit; index (n_class,): the label that each of these classes has in the
    features, where it is not 0, 1, 2, ...; prompts (n_class,): the sentences, where no template makes them.
    """

    text: np.ndarray | None = None
    index: np.ndarray | None = None
    classnames: Sequence[str] | None = None
    templates: Sequence[str] | None = None
    prompts: Sequence[str] | None = None
    logit_scale: float | None = None
    logit_scale_is: str | None = None


@dataclass(frozen=True)
class ImportedFeatures:
    """Features from elsewhere: splits by name; n_class covers every label."""

    splits: dict[str, Rows]
    n_class: int
    classes: Classes = field(default_factory=Classes)


@contextmanager
def reading(path: Path, what: str, hint: str) -> Iterator[None]:
    """Turn whatever a broken or hostile file raises into one line: `path` is not `what`, the reason, `hint`."""
    try:
        yield
    except CacheError:
        raise
    except FileNotFoundError:
        raise CacheError(f"there is no file {path}; {hint}") from None
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise CacheError(f"{path} cannot be read as {what} ({reason}); {hint}") from None


def checked_rows(where: str, x: np.ndarray, y: np.ndarray, paths=None, status=None) -> Rows:
    """`Rows` whose shapes, types and labels are sound; CacheError that starts with `where` otherwise."""
    if x.ndim != 2 or x.dtype.kind != "f" or not x.size:
        raise CacheError(
            f"{where}: features must be floats of shape (n, dim), neither of them 0; found {x.dtype} {x.shape}"
        )
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise CacheError(
            f"{where}: labels must be integers of shape (n,); found {y.dtype} {y.shape}"
        )
    if len(x) != len(y):
        raise CacheError(
            f"{where}: {len(x)} rows of features but {len(y)} labels; both must list the same images"
        )
    if y.min() < 0 or y.max() >= MAX_CLASS:
        wrong = y.min() if y.min() < 0 else y.max()
        raise CacheError(f"{where}: label {wrong} found; labels must be class numbers from 0 on")
    status = np.full(len(y), DONE, np.uint8) if status is None else status.astype(np.uint8)
    paths = [""] * len(y) if paths is None else paths
    if len(paths) != len(y) or status.shape != y.shape:
        raise CacheError(
            f"{where}: {len(y)} labels but {len(paths)} paths and status {status.shape}; one for each row is asked"
        )
    return Rows(x, y, paths, status)


def strings(where: str, values: np.ndarray) -> list[str]:
    """A list of str out of a one-dimensional array of str or bytes that a cache can hold."""
    if values.ndim != 1 or values.dtype.kind not in "US":
        raise CacheError(
            f"{where} must be strings of shape (n,); found {values.dtype} {values.shape}; save it with dtype=str"
        )
    return storable(
        where, [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]
    )


def storable(where: str, values: Sequence[str]) -> list[str]:
    """The same strings; CacheError for one that the file's fixed-length UTF-8 would not give back."""
    for i, value in enumerate(values):
        if "\0" in value or value.encode(errors="ignore").decode() != value:
            raise CacheError(
                f"{where}: entry {i} is {value!r}, which is no UTF-8 text without zero bytes; correct it"
            )
    return list(values)


def read_classnames(file: Path) -> list[str]:
    """Class names, one a line, in label order; empty lines are allowed at the end only."""
    with reading(file, "a list of class names", "give a UTF-8 text file with one name a line"):
        names = [line.strip() for line in file.read_text("utf-8-sig").rstrip().splitlines()]
    if not all(names):
        where = f"line {names.index('') + 1}" if names else "all of it"
        raise CacheError(
            f"{file}: {where} is empty; one class name a line, in label order, is asked"
        )
    return storable(str(file), names)


def read_split_file(file: Path) -> dict[str, list[tuple[str, int, str]]]:
    """The field's `split_zhou_X.json`: split -> [(path, label, class name)]."""
    with reading(
        file,
        "a split file",
        'it should hold {"train": [[path, label, classname], ...], "val": ..., "test": ...}',
    ):
        content = json.loads(file.read_text("utf-8"))
        return {
            split: [(str(path), int(label), str(name)) for path, label, name in items]
            for split, items in content.items()
        }


def split_file_names(file: Path, content: dict[str, list[tuple[str, int, str]]]) -> list[str]:
    """The class names of a split file in label order; CacheError where a label has none or two."""
    names: dict[int, str] = {}
    for _path, label, name in (item for items in content.values() for item in items):
        if names.setdefault(label, name) != name:
            raise CacheError(
                f"{file}: label {label} is '{names[label]}' and also '{name}'; each label must have one name"
            )
    if sorted(names) != list(range(len(names))):
        raise CacheError(
            f"{file}: labels are not 0 to {len(names) - 1} without gaps; found {min(names)} to {max(names)}"
        )
    return storable(str(file), [names[label] for label in range(len(names))])

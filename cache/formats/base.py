"""What a reader of a foreign format hands over, and the checks that all of them share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cliad.cache.file.layout import DONE, CacheError

MAX_CLASS = 1_000_000  # a label beyond it is an id or an accident, not a class number
LARGEST_WIDTH = 65_536  # columns; no encoder's feature has a tenth of it
LARGEST_PADDING = 2**28
LONGEST_STRING = 10_000  # letters; every string of a list takes the place of the longest


@dataclass(frozen=True)
class ImportedSplit:
    """One split: x (n, dim) of any float type, y (n,) integers, paths (n,), status (n,).

    status is as in the cache file.
    """

    x: np.ndarray
    y: np.ndarray
    paths: Sequence[str]
    status: np.ndarray


@dataclass(frozen=True)
class Classes:
    """What a file says about the classes; None: it says nothing.

    All lists are in the order of `text`'s classes.

    text: (n_template, n_class, dim), raw or unit.
    index: (n_class,) the label that each of these classes has in the features, where it is not
        0, 1, 2, ...
    prompts: (n_class,) the sentences, where no template makes them.
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
    """Features from elsewhere: splits by name; n_class covers every label.

    label_names: the names that the labels number, in sorted order, where the source's labels are
        names and not numbers; else empty.
    """

    splits: Mapping[str, ImportedSplit]
    n_class: int
    classes: Classes = field(default_factory=Classes)
    label_names: Sequence[str] = ()


@contextmanager
def reading(path: Path, what: str, hint: str) -> Iterator[None]:
    """Turn whatever a broken or hostile file raises into one line.

    The message says that `path` cannot be read as `what`, the reason, and `hint`.

    Raises:
        CacheError: the block raised an Exception; a CacheError is passed on as it is.
    """
    try:
        # What libraries have to say about odd headers would stand beside our one line.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CacheError:
        raise
    except FileNotFoundError:
        raise CacheError(f"there is no file {path}; {hint}") from None
    except Exception as error:
        # The first line of a message alone: torch writes whole paragraphs.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CacheError(f"{path} cannot be read as {what} ({lines[0][:120]}); {hint}") from None


def checked_split(
    where: str,
    x: np.ndarray,
    y: np.ndarray,
    paths: Sequence[str] | None = None,
    status: np.ndarray | None = None,
) -> ImportedSplit:
    """A split whose shapes, types and labels are correct; without `status` all rows are done.

    Raises:
        CacheError: they are not; the message starts with `where`.
    """
    if x.ndim != 2 or x.dtype.kind != "f" or not x.size:
        raise CacheError(
            f"{where}: features must be floats of shape (n, dim), neither of them 0;"
            f" found {x.dtype} {x.shape}"
        )
    if x.shape[1] > LARGEST_WIDTH:
        raise CacheError(
            f"{where}: features have {x.shape[1]:,} columns; expected at most {LARGEST_WIDTH:,}"
        )
    _check_labels(where, x, y)
    # The file has no other integers; values of these fit.
    y = y.astype(np.int64, copy=False)
    # Most sources do not record which images were readable.
    if status is None:
        status = np.full(len(y), DONE)
    status = status.astype(np.uint8)
    if paths is None:
        paths = [""] * len(y)
    if len(paths) != len(y) or status.shape != y.shape:
        raise CacheError(
            f"{where}: {len(y)} labels but {len(paths)} paths and status {status.shape};"
            " expected one for each row"
        )
    if not (status == DONE).any() and not where.endswith("val"):
        raise CacheError(f"{where}: all {len(y)} rows are unreadable (status 2); nothing is left")
    return ImportedSplit(x, y, paths, status)


def _check_labels(where: str, x: np.ndarray, y: np.ndarray) -> None:
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise CacheError(
            f"{where}: labels must be integers of shape (n,); found {y.dtype} {y.shape}"
        )
    if len(x) != len(y) and x.shape[1] == len(y):
        raise CacheError(
            f"{where}: features of shape {x.shape} for {len(y)} labels seem to be transposed;"
            " they must have a row for each image, save their .T"
        )
    if len(x) != len(y):
        raise CacheError(
            f"{where}: {len(x)} rows of features but {len(y)} labels;"
            " both must list the same images"
        )
    if y.min() < 0 or y.max() >= MAX_CLASS:
        wrong = y.min() if y.min() < 0 else y.max()
        raise CacheError(f"{where}: label {wrong} found; labels must be class numbers from 0 on")


def strings(where: str, values: np.ndarray) -> list[str]:
    """A list of str out of a one-dimensional array of str or bytes that a cache can hold.

    Raises:
        CacheError: an array of other things, or see `storable`.
    """
    if values.ndim != 1 or values.dtype.kind not in "US":
        raise CacheError(
            f"{where} must be strings of shape (n,); found {values.dtype} {values.shape};"
            " save it with dtype=str"
        )
    if values.dtype.kind == "U":
        return storable(where, _texts(where, values))
    texts: list[str] = []
    try:
        texts.extend(value.decode() for value in values.tolist())
    except UnicodeDecodeError as error:
        raise CacheError(
            f"{where}: entry {len(texts)} is {error.object[:40]!r}, which is not UTF-8;"
            " save it as text"
        ) from None
    return storable(where, texts)


def _texts(where: str, values: np.ndarray) -> list[str]:
    """The entries of an array of str; four bytes of a file need not be a letter."""
    # (n, n_letter): NumPy stores each letter as a number.
    width = values.dtype.itemsize // 4
    if width and len(values):
        native = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
        letters = native.view(np.uint32).reshape(len(values), width)
        wrong = np.flatnonzero((letters > 0x10FFFF).any(axis=1))
        if len(wrong):
            raise CacheError(f"{where}: entry {wrong[0]} holds what is no letter; make it again")
    return [str(value) for value in values.tolist()]


def storable(where: str, values: Sequence[str]) -> list[str]:
    """The same strings, if the file's fixed-length UTF-8, padded with zero bytes, can hold them.

    Raises:
        CacheError: a string has a zero byte or half of a surrogate pair, or one is so much longer
            than the others that the padding would be most of the file.
    """
    for number, value in enumerate(values):
        if "\0" in value or value.encode(errors="ignore").decode() != value:
            raise CacheError(
                f"{where}: entry {number} is {value[:60]!r}, which is not UTF-8 text without zero"
                " bytes; correct it"
            )
    longest = max(map(len, values), default=0)
    if longest > LONGEST_STRING:
        raise CacheError(
            f"{where}: an entry has {longest:,} letters; expected at most {LONGEST_STRING:,}"
        )
    padded = longest * len(values)
    if padded > LARGEST_PADDING and padded > 8 * sum(map(len, values)):
        raise CacheError(
            f"{where}: an entry has {longest:,} letters, and each of {len(values):,} would take as"
            " much place; shorten it"
        )
    return list(values)


def check_text_width(where: str, text: np.ndarray, dim: int) -> None:
    """CacheError where text (n_template, n_class, dim) has not the width of the image features."""
    if text.shape[2] == dim:
        return
    if text.shape[1] == dim:
        raise CacheError(
            f"{where}: text features of shape {text.shape[1:]} seem to be transposed, as the image"
            f" features have {dim} columns; save them as (n_class, dim), which is their .T"
        )
    raise CacheError(
        f"{where}: text features have {text.shape[2]} columns, the image features {dim};"
        " they come from two encoders"
    )


def check_widths(where: str, widths: Mapping[str, int], hint: str) -> None:
    """CacheError where the features in some arrays, by name, have not all the same width."""
    names_by_width: dict[int, list[str]] = {}
    for name, width in widths.items():
        names_by_width.setdefault(width, []).append(name)
    if len(names_by_width) > 1:
        groups = [
            f"{width} in {', '.join(names_by_width[width])}" for width in sorted(names_by_width)
        ]
        raise CacheError(f"{where}: feature widths differ: {'; '.join(groups)}; {hint}")

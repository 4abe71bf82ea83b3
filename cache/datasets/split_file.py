"""The field's split files, `split_zhou_*.json` of CoOp: which images are train, val and test.

    {"train": [[path, label, class name], ...], "val": [...], "test": [...]}

Paths are relative to the image folder. Draws and hashes depend on the order of the rows.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cliad.cache.datasets.base import DatasetError
from cliad.cache.documents import read_json
from cliad.errors import printable

FORM = '{"train": [[path, label, class name], ...], "val": [...], "test": [...]}'


class SplitFileError(DatasetError):
    """A split file that cannot be read or contradicts itself; the message names the file."""


class SplitRow(NamedTuple):
    """One image: its path below the image folder, its label, the name of its class."""

    path: str
    label: int
    classname: str


@dataclass(frozen=True)
class SplitFile:
    """What a split file says.

    splits: the rows of each split that the file has, in the file's order.
    classnames: in label order, as the file spells them.
    """

    splits: Mapping[str, Sequence[SplitRow]]
    classnames: Sequence[str]


def read_split_file(file: Path, required: Sequence[str] = ()) -> SplitFile:
    """Read a split file; a split that is not `required` may be missing.

    Raises:
        SplitFileError: the file cannot be read or has another form, a required split is missing,
            a path leads out of the image folder, a label has two names, or the labels are not
            0, 1, 2, ... without gaps.
    """
    splits = _rows_of(file, read_json(file, SplitFileError, f"expected {FORM}"))
    for split in required:
        if split not in splits:
            raise SplitFileError(
                f"{file} is not a complete split file: it has no '{split}', only {sorted(splits)};"
                f" expected {FORM}"
            )
    return SplitFile(splits, _classnames(file, splits))


def _rows_of(file: Path, content: object) -> dict[str, list[SplitRow]]:
    if not isinstance(content, dict):
        raise _wrong_form(file, f"it holds a {type(content).__name__}")
    splits = {}
    for split, items in content.items():
        if not isinstance(items, list):
            raise _wrong_form(file, f"'{split[:40]}' holds a {type(items).__name__}")
        splits[split] = [_row(file, item) for item in items]
    return splits


def _row(file: Path, item: object) -> SplitRow:
    if not (isinstance(item, list) and len(item) == 3):
        raise _wrong_form(file, f"it has the row {item!r:.60}")
    path, label, name = item
    # Other writers left labels as text and names as numbers; the rest would be a guess.
    is_number = isinstance(label, int | str) and not isinstance(label, bool)
    is_name = isinstance(name, int | str) and not isinstance(name, bool)
    if not (isinstance(path, str) and is_number and is_name):
        raise _wrong_form(file, f"it has the row {item!r:.60}")
    try:
        row = SplitRow(path, int(label), str(name))
    except ValueError as error:  # no number, or one of thousands of digits
        raise _wrong_form(file, error) from None
    if not (path and row.classname.strip()) or "\0" in path + row.classname:
        raise _wrong_form(file, f"a path or name is empty in {item!r:.60}")
    normal = posixpath.normpath(path)
    if normal.startswith("/") or normal.split("/")[0] == "..":
        raise SplitFileError(
            f"{file} names {printable(path)}, which is outside of the image folder;"
            " paths must be relative to that"
        )
    return row


def _wrong_form(file: Path, reason: object) -> SplitFileError:
    return SplitFileError(f"{file} is not a split file ({str(reason)[:80]}); expected {FORM}")


def _classnames(file: Path, splits: Mapping[str, Sequence[SplitRow]]) -> list[str]:
    """The one name of each label, in label order."""
    names: dict[int, str] = {}
    for split, rows in splits.items():
        for row in rows:
            # The first name found for the label.
            known = names.setdefault(row.label, row.classname)
            if known != row.classname:
                raise SplitFileError(
                    f"{file}: label {row.label} has two names, '{known}' and '{row.classname}'"
                    f" ({split}); each label must have one name"
                )
    # Text features have a row for each label, so a gap would shift the classes behind it.
    if sorted(names) != list(range(len(names))):
        raise SplitFileError(
            f"{file} has labels {min(names)} to {max(names)} with gaps;"
            f" {len(names)} classes need the labels 0 to {len(names) - 1} without gaps"
        )
    return [names[label] for label in range(len(names))]

"""A user's list of images, `csv:FILE`: one line an image below a heading.

Columns: `path` (relative to the file), `label` (a number or a name), and optionally `split` and
`classname`. Separated by commas, semicolons or tabs; other columns are ignored.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cliad.cache.datasets.base import SPLIT_NAMES, SPLITS, DatasetError
from cliad.cache.documents import read_text

REQUIRED = {"path", "label"}


@dataclass(frozen=True)
class Item:
    """One image: its label and split as a word; split is empty where there is no such column."""

    path: str
    label: str
    split: str
    classname: str


@dataclass(frozen=True)
class CsvList:
    """The list as read: the number of each label as written, and class names by number."""

    items: Sequence[Item]
    labels: Mapping[str, int]
    classnames: Sequence[str]
    has_splits: bool


def read_csv_list(file: Path) -> CsvList:
    """Read and check such a list.

    Labels that are all numbers are kept, so they must be 0, 1, 2, ...; otherwise the class names
    are numbered in sorted order.

    Raises:
        DatasetError: not such a file, an empty path or label, an unknown split, a label with two
            names, or numbers with gaps.
    """
    columns, table = _read_table(file)
    has_splits = "split" in columns
    items = []
    for line, row in table:
        if not (row["path"] and row["label"]):
            raise DatasetError(f"{file}, line {line}: path or label is empty")
        classname = row.get("classname") or row["label"]
        items.append(Item(row["path"], row["label"], row.get("split", ""), classname))
    names_by_label = _names_by_label(file, items)
    # Not isdigit: it is true for superscripts too, which int() does not read.
    if all(label.isdecimal() for label in names_by_label):
        classnames = _numbered_names(file, names_by_label)
        labels = {label: int(label) for label in names_by_label}
    else:
        classnames = sorted(set(names_by_label.values()))
        numbers = {name: number for number, name in enumerate(classnames)}
        # Labels with the same class name are one class.
        labels = {label: numbers[name] for label, name in names_by_label.items()}
    if has_splits:
        items = [_with_known_split(file, item) for item in items]
    return CsvList(items, labels, classnames, has_splits)


def _read_table(file: Path) -> tuple[set[str], list[tuple[int, dict[str, str]]]]:
    """The names of the columns, and each row with the line that it stands in."""
    text = read_text(
        file, DatasetError, "give a list that begins with a line such as path,label,split"
    )
    try:
        # Spreadsheets write semicolons where the comma is the decimal sign. The sniffer fails on
        # an empty line, and an empty file has a message of its own below.
        dialect = csv.Sniffer().sniff(text.partition("\n")[0] or ",", ",;\t")
        reader = csv.DictReader(text.splitlines(), dialect=dialect)
        # The reader skips empty lines, so the line is not the number of the row.
        table = [(reader.line_num, _cleaned(file, reader.line_num, row)) for row in reader]
    except csv.Error as error:
        raise DatasetError(
            f"{file} cannot be read as a list ({str(error)[:80]});"
            " it should begin with a line such as path,label,split"
        ) from None
    # An empty file has no heading: fieldnames is None.
    columns = {name.strip().lower() for name in reader.fieldnames or ()}
    if not table or not columns >= REQUIRED:
        found = sorted(columns) if table else "no rows"
        raise DatasetError(
            f"{file} should begin with a line that names the columns path and label; it has {found}"
        )
    return columns, table


def _cleaned(file: Path, line: int, row: Mapping[str | None, str | None]) -> dict[str, str]:
    """A row without spaces at the ends, its columns' names in lower case."""
    cleaned = {}
    for column, value in row.items():
        if column is None:  # what the csv module calls fields beyond the last column
            raise DatasetError(f"{file}, line {line} has more fields than the heading has columns")
        cleaned[column.strip().lower()] = (value or "").strip()
    return cleaned


def _names_by_label(file: Path, items: Sequence[Item]) -> dict[str, str]:
    """The class name of each label as written."""
    names: dict[str, str] = {}
    for item in items:
        known = names.setdefault(item.label, item.classname)
        if known != item.classname:
            raise DatasetError(
                f"{file}: label {item.label} has two names, '{known}' and '{item.classname}'"
            )
    return names


def _numbered_names(file: Path, names_by_label: Mapping[str, str]) -> list[str]:
    """Class names by number, where all labels are numbers."""
    names = {int(label): name for label, name in names_by_label.items()}
    n_label = len(names_by_label)
    if sorted(names) != list(range(n_label)):
        raise DatasetError(
            f"{file}: {n_label} labels go up to {max(names)}; numbers must be 0 to {n_label - 1}"
        )
    return [names[number] for number in range(n_label)]


def _with_known_split(file: Path, item: Item) -> Item:
    split = SPLIT_NAMES.get(item.split.lower())
    if split is None:
        raise DatasetError(
            f"{file}: split '{item.split}' of {item.path} is not one of {', '.join(SPLITS)}"
        )
    return Item(item.path, item.label, split, item.classname)

"""A user's list of images, `csv:FILE`: one line an image below a heading.

Columns: `path` (relative to the file), `label` (a number or a name), and optionally `split` and
`classname`. Separated by commas, semicolons or tabs, quoted as Python's `csv.excel` reads it;
other columns are ignored.
"""

from __future__ import annotations

import csv
import io
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cliad.cache.datasets.base import SPLIT_NAMES, SPLITS, DatasetError
from cliad.cache.documents import read_text

REQUIRED = ("path", "label")
SEPARATORS = (",", ";", "\t")
HEADING = "path,label,split"
# Numbers that are no labels: `1.0` is what a table with gaps becomes in pandas.
OTHER_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
MOST_DIGITS = 9  # of a label; Python reads longer numbers slowly, and no data set has as many


@dataclass(frozen=True)
class TableRow:
    """A row of a list: where it stands, for messages, and its values by column."""

    place: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """A list as it is written; `columns` are in lower case."""

    source: str
    columns: Sequence[str]
    rows: Sequence[TableRow]


@dataclass(frozen=True)
class Item:
    """One image: its label and split as a word; split is empty where there is no such column."""

    path: str
    label: str
    split: str
    classname: str
    place: str


@dataclass(frozen=True)
class ImageList:
    """The list as read: the number of each label as written, and class names by number."""

    items: Sequence[Item]
    labels: Mapping[str, int]
    classnames: Sequence[str]
    has_splits: bool

    def repeated(self) -> list[Item]:
        """The items whose image stood further up already, in the list's order."""
        seen = set()
        items = []
        for item in self.items:
            # `a.jpg` and `./a.jpg` are one image.
            path = posixpath.normpath(item.path)
            if path in seen:
                items.append(item)
            seen.add(path)
        return items


def read_csv_list(file: Path) -> ImageList:
    """Read and check such a list.

    Labels that are all whole numbers are kept by their value, so they must be 0, 1, 2, ...;
    otherwise the class names are numbered in sorted order.

    Raises:
        DatasetError: not such a file, an empty path or label, an unknown split, a label with two
            names, a name with two labels, an image with two labels, or numbers with gaps.
    """
    table = read_csv_table(file, REQUIRED)
    missing = set(REQUIRED) - set(table.columns)
    if missing or not table.rows:
        found = sorted(table.columns) if table.rows else "no rows"
        raise DatasetError(
            f"{file} should begin with a line that names the columns path and label; it has {found}"
        )
    return image_list(table)


def read_csv_table(file: Path, expected: Iterable[str]) -> Table:
    """The rows of a CSV file; `expected` are columns by which its separator is known.

    Raises:
        DatasetError: not such a file, or a row is longer than the heading.
    """
    text = read_text(file, DatasetError, f"give a list that begins with a line such as {HEADING}")
    if "\0" in text:
        raise DatasetError(f"{file} holds zero bytes, as UTF-16 text does; save the list as UTF-8")
    try:
        # The reader itself ends lines; str.splitlines would do it in the middle of quoted fields.
        records = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text, expected))
        heading = next((record for record in records if record), [])
        columns = [name.strip().lower() for name in heading]
        _check_heading(file, columns)
        rows = list(_rows(file, columns, records))
    except csv.Error as error:
        raise DatasetError(
            f"{file} cannot be read as a list ({str(error)[:80]});"
            f" it should begin with a line such as {HEADING}"
        ) from None
    return Table(str(file), columns, rows)


def _separator(text: str, expected: Iterable[str]) -> str:
    """The one that makes the expected columns of the heading.

    Spreadsheets write semicolons where the comma is the decimal sign.
    """
    heading = text.lstrip().split("\n", 1)[0]
    for separator in SEPARATORS:
        columns = next(csv.reader([heading], delimiter=separator), [])
        if {name.strip().lower() for name in columns} >= set(expected):
            return separator
    return max(SEPARATORS, key=heading.count)


def _check_heading(file: Path, columns: Sequence[str]) -> None:
    for name in columns:
        # Columns without a name, as a separator at the end of each line makes them, are ignored.
        if name and columns.count(name) > 1:
            raise DatasetError(f"{file} has two columns '{name[:40]}'; leave one of them")


def _rows(file: Path, columns: Sequence[str], records: Iterable[list[str]]) -> Iterator[TableRow]:
    # An iterator of the csv module, which counts the lines that it has read.
    for record in records:
        if not record:
            continue  # an empty line
        place = f"{file}, line {records.line_num}"  # type: ignore[attr-defined]
        if len(record) > len(columns):
            raise DatasetError(f"{place} has more fields than the heading has columns")
        values = [value.strip() for value in record]
        values += [""] * (len(columns) - len(values))
        yield TableRow(place, dict(zip(columns, values, strict=True)))


# ----------------------------------------------------------------------------- what a list means


def image_list(table: Table) -> ImageList:
    """The images of a table with the columns path and label.

    Raises:
        DatasetError: see `read_csv_list`.
    """
    items = [_item(row) for row in table.rows]
    keys = _keys(table.source, items, "classname" in table.columns)
    names = _names_by_key(table.source, items, keys)
    if all(isinstance(key, int) for key in keys.values()):
        classnames = _numbered_names(table.source, names)
        labels = {label: int(key) for label, key in keys.items()}
    else:
        classnames = sorted(names.values())
        numbers = {name: number for number, name in enumerate(classnames)}
        labels = {label: numbers[names[key]] for label, key in keys.items()}
    has_splits = "split" in table.columns
    if has_splits:
        items = [_with_known_split(item) for item in items]
    _check_one_label(items, labels)
    return ImageList(items, labels, classnames, has_splits)


def _item(row: TableRow) -> Item:
    values = row.values
    if not (values["path"] and values["label"]):
        raise DatasetError(f"{row.place}: path or label is empty")
    for column in (*REQUIRED, "classname"):
        text = values.get(column, "")
        if "\n" in text or "\r" in text:
            raise DatasetError(
                f"{row.place}: {column} goes over several lines; is a quote missing?"
            )
    return Item(
        values["path"],
        values["label"],
        values.get("split", ""),
        values.get("classname", ""),
        row.place,
    )


def _keys(source: str, items: Sequence[Item], has_names: bool) -> dict[str, int | str]:
    """What tells classes apart, by label as written: its number where all are, else its text."""
    labels = list(dict.fromkeys(item.label for item in items))
    # Not isdigit: it is true for superscripts too, which int() does not read.
    if not all(label.isdecimal() for label in labels):
        numbers = [label for label in labels if OTHER_NUMBER.fullmatch(label)]
        if len(numbers) == len(labels) and not has_names:
            other = next(label for label in labels if not label.isdecimal())
            raise DatasetError(
                f"{source}: label {other[:40]} is a number that no class can have;"
                " write 0, 1, 2, ... or names"
            )
        return {label: label for label in labels}
    for label in labels:
        if len(label.lstrip("0")) > MOST_DIGITS:
            raise DatasetError(
                f"{source}: label {label[:20]}... has {len(label):,} digits;"
                f" numbers must be 0 to {len(labels) - 1}"
            )
    return {label: int(label) for label in labels}


def _names_by_key(
    source: str, items: Sequence[Item], keys: Mapping[str, int | str]
) -> dict[int | str, str]:
    """The one class name of each class: as the list names it, else its label as first written."""
    firsts: dict[int | str, Item] = {}
    for item in items:
        first = firsts.setdefault(keys[item.label], item)
        if item.classname != first.classname:
            raise DatasetError(
                f"{source}: label {item.label} has two names,"
                f" '{first.classname}' and '{item.classname}' ({item.place})"
            )
    names = {key: first.classname or first.label for key, first in firsts.items()}
    labels: dict[str, str] = {}
    for key, name in names.items():
        label = firsts[key].label
        other = labels.setdefault(name, label)
        if other != label:
            raise DatasetError(
                f"{source}: labels {other} and {label} have one class name, '{name}';"
                " give the classes names of their own, or one label"
            )
    return names


def _numbered_names(source: str, names: Mapping[int | str, str]) -> list[str]:
    """Class names by number, where all labels are numbers."""
    n_label = len(names)
    if set(names) != set(range(n_label)):
        raise DatasetError(
            f"{source}: {n_label} labels go up to {max(map(int, names))};"
            f" numbers must be 0 to {n_label - 1}"
        )
    return [names[number] for number in range(n_label)]


def _with_known_split(item: Item) -> Item:
    split = SPLIT_NAMES.get(item.split.lower())
    if split is None:
        raise DatasetError(
            f"{item.place}: split '{item.split}' of {item.path} is not one of {', '.join(SPLITS)}"
        )
    return replace(item, split=split)


def _check_one_label(items: Sequence[Item], labels: Mapping[str, int]) -> None:
    firsts: dict[str, Item] = {}
    for item in items:
        first = firsts.setdefault(posixpath.normpath(item.path), item)
        if labels[first.label] != labels[item.label]:
            raise DatasetError(
                f"{item.place}: {item.path} has label {item.label}, and label {first.label}"
                f" further up ({first.place}); an image has one class"
            )

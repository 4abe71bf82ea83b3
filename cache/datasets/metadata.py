"""`metadata.csv` or `metadata.jsonl` beside images, as Hugging Face's imagefolder has them.

Each row names an image in the column `file_name`, relative to the file, and its class in `label`,
a number or a name. The file lies in the data set's folder or in each of train/, val/ and test/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from cliad.cache.datasets.base import SPLIT_NAMES, DatasetError
from cliad.cache.datasets.csv_list import (
    ImageList,
    Table,
    TableRow,
    image_list,
    read_csv_table,
)
from cliad.cache.documents import parse_json, read_text

FILES = ("metadata.csv", "metadata.jsonl")
FORM = 'each line is like {"file_name": "0001.jpg", "label": "cat"}'
COLUMNS = ("file_name", "label")


@dataclass(frozen=True)
class Metadata:
    """What such files say: `table` is None where they do not name a class for each image."""

    files: Sequence[Path]
    table: Table | None
    columns: Sequence[str]

    @property
    def shown(self) -> str:
        return ", ".join(map(str, self.files))

    def is_by_folder(self) -> bool:
        """Whether each class is a folder of its own, so that the folders say the same."""
        if self.table is None:
            return True
        labels: dict[str, str] = {}
        for row in self.table.rows:
            # Without its name, split/class/file and class/file are told apart from file alone.
            folder = PurePosixPath(row.values["path"]).parent.name
            if folder.lower() in {"", *SPLIT_NAMES}:
                return False
            if labels.setdefault(folder, row.values["label"]) != row.values["label"]:
                return False
        return len(set(labels.values())) == len(labels)

    def images(self) -> ImageList:
        """The images with paths from the data set's folder on.

        Raises:
            DatasetError: see `csv_list.read_csv_list`.
        """
        if self.table is None:
            raise DatasetError(
                f"{self.shown} should have the columns file_name and label;"
                f" it has {', '.join(self.columns) or 'no rows'}"
            )
        return image_list(self.table)


def read_metadata(root: Path) -> Metadata | None:
    """The metadata files of a folder of images; None where there are none.

    Raises:
        DatasetError: several files for one folder, or one that is not as it should be.
    """
    places = {"": root}
    for entry in sorted(root.iterdir()):
        if entry.name.lower() in SPLIT_NAMES and entry.is_dir():
            places[entry.name] = entry
    found: dict[str, Path] = {}
    for name, place in places.items():
        files = [place / file for file in FILES if (place / file).is_file()]
        if len(files) > 1 or (files and "" in found):
            others = [*found.values(), *files][:2]
            raise DatasetError(f"{others[0]} and {others[1]} are both there; leave one of them")
        if files:
            found[name] = files[0]
    if not found:
        return None
    return _joined({name: (file, _read_table(file)) for name, file in found.items()})


def _joined(tables: Mapping[str, tuple[Path, Table]]) -> Metadata:
    """One table of those of the root ("") or of the split folders."""
    rows: list[TableRow] = []
    files = []
    columns: dict[str, None] = {}
    for folder, (file, table) in tables.items():
        files.append(file)
        columns |= dict.fromkeys(table.columns)
        rows += [_with_path(folder, row) for row in table.rows]
    is_complete = all(set(COLUMNS) <= set(table.columns) for _, table in tables.values())
    if not (rows and is_complete):
        return Metadata(files, None, list(columns))
    names = list(columns)
    # A file at the root has the split of an image in a column, or in its path.
    if "split" not in columns:
        splits = [_split_of(row.values["path"]) for row in rows]
        if all(splits):
            names.append("split")
            rows = [
                replace(row, values={**row.values, "split": split})
                for row, split in zip(rows, splits, strict=True)
            ]
        elif any(splits):
            row = rows[splits.index("")]
            raise DatasetError(
                f"{row.place}: {row.values['path']} is in no split, as others are;"
                " add a column split"
            )
    return Metadata(files, Table(", ".join(map(str, files)), names, rows), names)


def _with_path(folder: str, row: TableRow) -> TableRow:
    """The row with its path from the root on."""
    name = row.values.get("file_name", "")
    path = f"{folder}/{name}" if folder and name else name
    return replace(row, values={**row.values, "path": path})


def _split_of(path: str) -> str:
    first, slash, _ = path.removeprefix("./").partition("/")
    return SPLIT_NAMES.get(first.lower(), "") if slash else ""


def _read_table(file: Path) -> Table:
    if file.suffix == ".csv":
        return read_csv_table(file, ["file_name"])
    columns: dict[str, None] = {}
    rows = []
    # Not splitlines, which also ends lines at marks that JSON has within texts.
    for number, line in enumerate(read_text(file, DatasetError, FORM).split("\n"), 1):
        if line.strip():
            place = f"{file}, line {number}"
            row = TableRow(place, _values(place, parse_json(line, place, DatasetError, FORM)))
            columns |= dict.fromkeys(row.values)
            rows.append(row)
    # A column that some rows lack is empty there.
    empty = dict.fromkeys(columns, "")
    rows = [replace(row, values={**empty, **row.values}) for row in rows]
    return Table(str(file), list(columns), rows)


def _values(place: str, content: object) -> dict[str, str]:
    """The texts of a line of JSON that a list is made of."""
    if not isinstance(content, dict):
        raise DatasetError(f"{place} holds a {type(content).__name__}; {FORM}")
    values = {}
    for column in (*COLUMNS, "split", "classname"):
        value = content.get(column, "")
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            raise DatasetError(
                f"{place}: {column} is a {type(value).__name__}, not a text or a whole number"
            )
        if column in content:
            values[column] = "" if value is None else str(value).strip()
    if "\0" in "".join(values.values()):
        raise DatasetError(f"{place} holds a zero byte, which no file name can have")
    return values

"""A user's own images with no code: `folder:PATH` (a folder per class) and `csv:FILE` (a list).

A `cliad.toml` beside the images may name classes and templates:

    templates = ["a photo of a {}, a type of bird."]
    [classnames]
    n01 = "house sparrow"
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cliad.cache.datasets.base import (
    SPLIT_NAMES,
    SPLITS,
    Dataset,
    DatasetError,
    Listing,
    Rows,
    opener,
    rows_of_class_folders,
)
from cliad.cache.datasets.csv_list import read_csv_list
from cliad.cache.datasets.folders import class_folders
from cliad.cache.documents import read_toml
from cliad.cache.prompts import clean

# The parts of each class where there is no split; the rest is test, as in the field's own splits.
TRAIN_SHARE = 0.5
VAL_SHARE = 0.2
# What may stand before the colon of a name.
READERS = ("folder", "csv")
Part = TypeVar("Part")


def own_dataset(name: str) -> Dataset | None:
    """The data set of a name such as `folder:PATH` or `csv:FILE`, None for other names."""
    kind, colon, where = name.partition(":")
    if not colon or kind not in READERS:
        return None

    def read(data: Path | None, split: str) -> Listing:
        place = _find_place(data, where, name)
        return read_folder(place) if kind == "folder" else read_csv(place)

    return Dataset(name, read, about="your own images")


def _find_place(data: Path | None, where: str, name: str) -> Path:
    """The file or folder `where`, from the working folder or else from the data folder."""
    places = [Path(where).expanduser()]
    if data:
        below_data = Path(data).expanduser() / where
        if below_data not in places:  # an absolute `where` gives the same place twice
            places.append(below_data)
    for place in places:
        if place.exists():
            return place
    raise DatasetError(f"{name}: there is no {' and no '.join(map(str, places))}")


def read_folder(root: Path) -> Listing:
    """List images that lie in a folder per class, below train/, val/, test/ or not.

    Without such folders each class is split by chance, the same on every machine: see `by_chance`,
    with the class folder's name.

    Raises:
        DatasetError: not a folder, or no class folders or no images in it.
    """
    if not root.is_dir():
        raise DatasetError(f"folder:{root} is not a folder; csv:FILE reads a list")
    split_folders = _split_folders(root)
    # A folder val/ alone may as well be a class of that name.
    has_splits = "train" in split_folders or "test" in split_folders
    # A class may be missing in one of the splits, so the classes are those of all of them.
    names = set()
    for folder in split_folders.values() if has_splits else [""]:
        names |= set(class_folders(root / folder))
    if not names:
        raise DatasetError(
            f"folder:{root} has no folders of images;"
            " it should have one folder per class, or train/, val/ and test/ with these"
        )
    classes = sorted(names)
    if has_splits:
        rows = {}
        for split, folder in split_folders.items():
            rows[split] = rows_of_class_folders(root / folder, classes, f"{folder}/")
    else:
        rows = by_chance(_rows_by_class(rows_of_class_folders(root, classes), classes))
    return _own_listing(root, rows, classes, f"folder:{root}")


def _split_folders(root: Path) -> dict[str, str]:
    """The folders that are named like a split, by split, in the order train, val, test."""
    found = {}
    for entry in root.iterdir():
        split = SPLIT_NAMES.get(entry.name.lower())
        if split is not None and entry.is_dir():
            found[split] = entry.name
    return in_order(found)


def in_order(by_split: Mapping[str, Part]) -> dict[str, Part]:
    """The same splits in the order train, val, test."""
    return {split: by_split[split] for split in SPLITS if split in by_split}


def _rows_by_class(rows: Rows, names: Sequence[str]) -> dict[str, Rows]:
    by_class: dict[str, Rows] = {name: [] for name in names}
    for path, label in rows:
        by_class[names[label]].append((path, label))
    return by_class


def by_chance(rows_by_class: Mapping[str, Rows]) -> dict[str, Rows]:
    """A fixed split of rows given by class: 50 % train (at least one), 20 % val, the rest test.

    Drawn by `random.Random("cliad:" + class)` from the rows sorted by path, so it is the same on
    every machine.
    """
    rows: dict[str, Rows] = {"train": [], "val": [], "test": []}
    for name, items in rows_by_class.items():
        shuffled = sorted(items)
        # A generator for each class: a new class leaves the split of the others as it is.
        random.Random(f"cliad:{name}").shuffle(shuffled)
        # A class with one image has it in train: without one, no head can learn the class.
        n_train = min(len(shuffled), max(1, round(TRAIN_SHARE * len(shuffled))))
        n_val = round(VAL_SHARE * len(shuffled))
        rows["train"] += shuffled[:n_train]
        rows["val"] += shuffled[n_train : n_train + n_val]
        rows["test"] += shuffled[n_train + n_val :]
    return rows


def read_csv(file: Path) -> Listing:
    """List the images that a CSV file names; see `csv_list` for its columns.

    Without a column `split` each class is split by chance as `read_folder` does, with the label as
    it stands in the file.

    Raises:
        DatasetError: the file cannot be read, or contradicts itself.
    """
    content = read_csv_list(file)
    rows: dict[str, Rows] = {}
    if content.has_splits:
        for item in content.items:
            rows.setdefault(item.split, []).append((item.path, content.labels[item.label]))
        rows = in_order(rows)
    else:
        # By the label as written, so that the split does not change when classes are renamed.
        by_class: dict[str, Rows] = {}
        for item in content.items:
            row = (item.path, content.labels[item.label])
            by_class.setdefault(item.label, []).append(row)
        rows = by_chance(by_class)
    return _own_listing(file.parent, rows, content.classnames, f"csv:{file}")


def _own_listing(
    root: Path, rows: Mapping[str, Rows], names: Sequence[str], source: str
) -> Listing:
    if not any(rows.values()):
        raise DatasetError(f"{source} has no images")
    settings = read_settings(root)
    # Most likely a misspelt class: its new name would silently be ignored.
    unknown = sorted(set(settings.classnames) - set(names))
    if unknown:
        raise DatasetError(
            f"{root / 'cliad.toml'} names class '{unknown[0]}', which {source} does not have;"
            f" it has {', '.join(names[:5])}"
        )
    return Listing(
        rows,
        [clean(settings.classnames.get(name, name)) for name in names],
        opener(root),
        root,
        settings.templates,
        _sizes_hash(root, rows),
    )


@dataclass(frozen=True)
class Settings:
    """What a `cliad.toml` says: templates, and class names by folder or label."""

    templates: Sequence[str] = ()
    classnames: Mapping[str, str] = field(default_factory=dict)


def read_settings(root: Path) -> Settings:
    """The settings in `root`/cliad.toml; empty ones where there is no such file.

    Raises:
        DatasetError: the file is not TOML, or has another form.
    """
    file = root / "cliad.toml"
    if not file.is_file():
        return Settings()
    content = read_toml(file, DatasetError)
    unknown = sorted(set(content) - {"templates", "classnames"})
    if unknown:
        raise DatasetError(f"{file} has '{unknown[0]}'; it may have templates and classnames")
    templates = content.get("templates", [])
    classnames = content.get("classnames", {})
    is_valid = isinstance(templates, list) and isinstance(classnames, dict)
    if is_valid:
        is_valid = all(isinstance(text, str) for text in [*templates, *classnames.values()])
    if not is_valid:
        raise DatasetError(
            f"{file}: templates is a list of texts,"
            " classnames a table of texts (folder or label = name)"
        )
    return Settings(tuple(templates), classnames)


def _sizes_hash(root: Path, rows: Mapping[str, Rows]) -> str:
    """A hash of the files' sizes: other images of the same names are another data set."""
    digest = hashlib.sha256()
    for items in rows.values():
        for path, _ in items:
            file = root / path
            # Sizes are quick to read; to hash the contents would mean to read every image.
            size = file.stat().st_size if file.is_file() else -1
            digest.update(f"{size}\n".encode())
    return digest.hexdigest()[:16]

"""A user's own images with no code: `folder:PATH` (a folder per class) and `csv:FILE` (path, label, ...).

A `cliad.toml` beside the images may name classes and templates:

    templates = ["a photo of a {}, a type of bird."]
    [classnames]
    n01 = "house sparrow"
"""

from __future__ import annotations

import csv
import hashlib
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from cliad.cache.datasets.base import Dataset, DatasetError, Listing, Rows, image_files, opener
from cliad.cache.prompts import clean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
SHARES = (
    0.5,
    0.2,
)  # train and val of each class where there is no split; the rest is test, as in the field's own splits


def own_dataset(name: str) -> Dataset | None:
    """The data set of a name such as `folder:PATH` or `csv:FILE`, None for other names."""
    kind, colon, where = name.partition(":")
    readers: dict[str, Callable[[Path], Listing]] = {"folder": read_folder, "csv": read_csv}
    if not colon or kind not in readers:
        return None
    return Dataset(
        name, lambda data, split: readers[kind](_found(data, where, name)), about="your own images"
    )


def _found(data: Path | None, where: str, name: str) -> Path:
    places = dict.fromkeys(
        [Path(where).expanduser(), *([Path(data).expanduser() / where] if data else [])]
    )  # one, where it is absolute
    for place in places:
        if place.exists():
            return place
    raise DatasetError(f"{name}: there is no {' and no '.join(map(str, places))}")


def read_folder(root: Path) -> Listing:
    """Images in a folder per class, below train/, val/, test/ or not.

    Without such folders each class is split by chance, the same on every machine: 50 % train, 20 % val, 30 % test, at least one
    training image, drawn by `random.Random("cliad:" + class folder)` from the paths in name order.
    """
    if not root.is_dir():
        raise DatasetError(f"folder:{root} is no folder; csv:FILE reads a list")
    parts = {
        SPLIT_NAMES[entry.name.lower()]: entry.name
        for entry in root.iterdir()
        if entry.is_dir() and entry.name.lower() in SPLIT_NAMES
    }
    given = "train" in parts or "test" in parts
    folders = [root / name for name in parts.values()] if given else [root]
    classes = sorted(
        {
            entry.name
            for folder in folders
            for entry in folder.iterdir()
            if entry.is_dir() and entry.name[0] != "."
        }
    )
    if not classes:
        raise DatasetError(
            f"folder:{root} has no folders of images; it should have one folder per class, or train/, val/ and test/ with these"
        )
    listed = lambda prefix, label: [
        (f"{prefix}{classes[label]}/{path}", label)
        for path in image_files(root / prefix / classes[label])
    ]
    if given:
        rows = {
            part: [row for i in range(len(classes)) for row in listed(f"{name}/", i)]
            for part, name in _in_order(parts).items()
        }
    else:
        rows = by_chance({name: listed("", i) for i, name in enumerate(classes)})
    return _own(root, rows, classes, f"folder:{root}")


def _in_order(parts: Mapping[str, str]) -> dict[str, str]:
    return {part: parts[part] for part in ("train", "val", "test") if part in parts}


def by_chance(of_class: Mapping[str, Rows]) -> dict[str, Rows]:
    """A fixed split of rows given by class: 50 % train (at least one), 20 % val, the rest test."""
    rows: dict[str, Rows] = {"train": [], "val": [], "test": []}
    for name, items in of_class.items():
        items = sorted(items)
        random.Random(f"cliad:{name}").shuffle(items)
        n_train = min(len(items), max(1, round(SHARES[0] * len(items))))
        n_val = round(SHARES[1] * len(items))
        rows["train"] += items[:n_train]
        rows["val"] += items[n_train : n_train + n_val]
        rows["test"] += items[n_train + n_val :]
    return rows


def read_csv(file: Path) -> Listing:
    """A list with a heading: `path` (relative to the file), `label` (a number or a name), and perhaps `split` and `classname`."""
    items = _table(file)
    names = _class_names(items, file)
    numbered = all(item["label"].isdigit() for item in items)
    label = {
        item["label"]: int(item["label"]) if numbered else names.index(_name_of(item))
        for item in items
    }
    if "split" in items[0]:
        rows: dict[str, Rows] = {}
        for item in items:
            part = SPLIT_NAMES.get(item["split"].lower())
            if part is None:
                raise DatasetError(
                    f"{file}: split '{item['split']}' of {item['path']} is none of train, val, test"
                )
            rows.setdefault(part, []).append((item["path"], label[item["label"]]))
        rows = {part: rows[part] for part in ("train", "val", "test") if part in rows}
    else:
        of_class: dict[str, Rows] = {}
        for item in items:
            of_class.setdefault(item["label"], []).append((item["path"], label[item["label"]]))
        rows = by_chance(of_class)
    return _own(file.parent, rows, names, f"csv:{file}")


def _table(file: Path) -> list[dict[str, str]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        dialect = csv.Sniffer().sniff(text.partition("\n")[0] or ",", ",;\t")
        items = [
            {(key or "").strip().lower(): (value or "").strip() for key, value in row.items()}
            for row in csv.DictReader(text.splitlines(), dialect=dialect)
        ]
    except (csv.Error, UnicodeDecodeError, OSError, AttributeError) as error:
        raise DatasetError(
            f"{file} cannot be read as a list ({str(error)[:80]}); it should begin with a line such as path,label,split"
        ) from None
    if not items or not {"path", "label"} <= set(items[0]):
        raise DatasetError(
            f"{file} should begin with a line that names the columns path and label; it has {sorted(items[0]) if items else 'no rows'}"
        )
    if empty := next(
        (i for i, item in enumerate(items) if not item["path"] or not item["label"]), None
    ):
        raise DatasetError(f"{file}, line {empty + 2}: path or label is empty")
    return items


def _name_of(item: Mapping[str, str]) -> str:
    return item.get("classname") or item["label"]


def _class_names(items: list[dict[str, str]], file: Path) -> list[str]:
    """Class names by label: labels that are numbers are kept, labels that are names are numbered in name order."""
    by_label: dict[str, str] = {}
    for item in items:
        if by_label.setdefault(item["label"], _name_of(item)) != _name_of(item):
            raise DatasetError(
                f"{file}: label {item['label']} has two names, '{by_label[item['label']]}' and '{_name_of(item)}'"
            )
    if not all(label.isdigit() for label in by_label):
        return sorted(set(by_label.values()))
    if sorted(map(int, by_label)) != list(range(len(by_label))):
        raise DatasetError(
            f"{file}: {len(by_label)} labels go up to {max(map(int, by_label))}; numbers must be 0 to {len(by_label) - 1}"
        )
    return [by_label[str(label)] for label in range(len(by_label))]


def _own(root: Path, rows: dict[str, Rows], names: list[str], what: str) -> Listing:
    if not any(rows.values()):
        raise DatasetError(f"{what} has no images")
    settings = read_settings(root)
    renamed = settings.get("classnames", {})
    if unknown := sorted(set(renamed) - set(names)):
        raise DatasetError(
            f"{root / 'cliad.toml'} names class '{unknown[0]}', which {what} does not have; it has {', '.join(names[:5])}"
        )
    shown = [clean(renamed.get(name, name)) for name in names]
    return Listing(
        rows, shown, opener(root), root, tuple(settings.get("templates", ())), _sizes(root, rows)
    )


def read_settings(root: Path) -> dict:
    """What `cliad.toml` in a folder says: `templates` (list) and `classnames` (table: folder or label -> name)."""
    file = root / "cliad.toml"
    try:
        settings = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file}: {error}") from None
    if unknown := sorted(set(settings) - {"templates", "classnames"}):
        raise DatasetError(f"{file} has '{unknown[0]}'; it may have templates and classnames")
    templates, names = settings.get("templates", []), settings.get("classnames", {})
    if (
        not isinstance(templates, list)
        or not isinstance(names, dict)
        or not all(isinstance(x, str) for x in [*templates, *names.values()])
    ):
        raise DatasetError(
            f"{file}: templates is a list of texts, classnames a table of texts (folder or label = name)"
        )
    return settings


def _sizes(root: Path, rows: Mapping[str, Rows]) -> str:
    """A hash of the files' sizes: other images of the same names are another data set."""
    digest = hashlib.sha256()
    for items in rows.values():
        for path, _ in items:
            file = root / path
            digest.update(f"{file.stat().st_size if file.is_file() else -1}\n".encode())
    return digest.hexdigest()[:16]

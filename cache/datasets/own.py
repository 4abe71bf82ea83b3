"""A user's own images with no code: `folder:PATH` (a folder per class) and `csv:FILE` (a list).

A folder may have Hugging Face's metadata.csv or metadata.jsonl instead; see `metadata`. A
`cliad.toml` beside the images may name classes and templates:

    templates = ["a photo of a {}, a type of bird."]
    [classnames]
    n01 = "house sparrow"
"""

from __future__ import annotations

import hashlib
import os
import random
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cliad.cache.datasets.base import (
    SPLITS,
    Dataset,
    DatasetError,
    Listing,
    Rows,
    opener,
)
from cliad.cache.datasets.class_folders import ClassFolders, read_class_folders
from cliad.cache.datasets.csv_list import ImageList, read_csv_list
from cliad.cache.datasets.fence import Fence
from cliad.cache.datasets.folders import Note, Walk, class_folders, number_of
from cliad.cache.datasets.metadata import Metadata, read_metadata
from cliad.cache.documents import read_toml
from cliad.cache.prompts import clean
from cliad.errors import printable

# The parts of each class where there is no split; the rest is test, as in the field's own splits.
TRAIN_SHARE = 0.5
VAL_SHARE = 0.2
# What may stand before the colon of a name.
READERS = ("folder", "csv")
Part = TypeVar("Part")


@dataclass(frozen=True)
class Allowed:
    """What a user allows beyond the rule.

    root: a folder that paths and links may lead to, beside the data set's own; paths of a list
        may also begin there.
    overlap: an image may be in several splits.
    """

    root: Path | None = None
    overlap: bool = False


NOTHING = Allowed()


def own_dataset(name: str, allowed: Allowed = NOTHING) -> Dataset | None:
    """The data set of a name such as `folder:PATH` or `csv:FILE`, None for other names."""
    kind, colon, where = name.partition(":")
    if not colon or kind not in READERS:
        return None

    def read(data: Path | None, split: str) -> Listing:
        place = _find_place(data, where, name)
        return read_folder(place, allowed) if kind == "folder" else read_csv(place, allowed)

    return Dataset(name, read, about="your own images")


def _find_place(data: Path | None, where: str, name: str) -> Path:
    """The file or folder `where`, from the working folder or else from the data folder."""
    places = [Path(where).expanduser()]
    if data:
        below_data = Path(data).expanduser() / where
        if below_data not in places:  # an absolute `where` gives the same place twice
            places.append(below_data)
    for place in places:
        # Not Path.exists, which raises an error of its own on a name that is too long.
        if os.path.exists(place):
            return place
    raise DatasetError(f"{name}: there is no {' and no '.join(map(str, places))}")


def read_folder(root: Path, allowed: Allowed = NOTHING) -> Listing:
    """List images that lie in a folder per class, below train/, val/, test/ or not.

    Without such folders each class is split by chance, the same on every machine: see `by_chance`,
    with the class folder's name. A metadata.csv or metadata.jsonl is read instead, unless its
    classes are the class folders.

    Raises:
        DatasetError: not a folder, no class folders or no images in it, two folders for one
            split, two classes of one name, a class without training images, a folder in two
            splits, or a link that leads outside.
    """
    if not root.is_dir():
        raise DatasetError(f"folder:{root} is not a folder; csv:FILE reads a list")
    metadata = read_metadata(root)
    if metadata is not None and not metadata.is_by_folder():
        return _read_metadata(root, metadata, allowed)
    if metadata is not None and metadata.table is None and not class_folders(root):
        metadata.images()  # says which columns it lacks
    found = read_class_folders(root, allowed.root)
    if metadata is not None:
        found.notes.append(Note(f"classes are read from the folders, not from {metadata.shown}"))
    return _of_folders(root, found, allowed)


def _of_folders(root: Path, found: ClassFolders, allowed: Allowed) -> Listing:
    classes = found.classes()
    if not classes:
        raise DatasetError(f"folder:{root} has no images")
    rows: dict[str, Rows] = {}
    for split, by_class in found.images.items():
        folder = found.folders[split]
        prefix = f"{folder}/" if folder else ""
        rows[split] = []
        for label, name in enumerate(classes):
            rows[split] += [(f"{prefix}{name}/{path}", label) for path in by_class.get(name, [])]
    if not found.has_splits:
        rows = by_chance(_rows_by_class(rows[""], classes))
    if found.shared and not allowed.overlap:
        raise DatasetError(
            f"folder:{root} has one folder in two splits: {printable(found.shared[0])};"
            " scores on training images mean nothing (--allow-overlap lets it pass)"
        )
    return _own_listing(root, rows, classes, f"folder:{root}", found.notes)


def _read_metadata(root: Path, metadata: Metadata, allowed: Allowed) -> Listing:
    content = metadata.images()
    fence = Fence(root, root if allowed.root is None else allowed.root)
    for item in content.items:
        fence.check(item.path, item.place)
    walk = Walk(allowed.root or root)
    listed = {os.path.normpath(item.path) for item in content.items}
    unlisted = [path for path in walk.images(root, [""])[""] if path not in listed]
    notes = [Note(f"classes are read from {metadata.shown}")]
    if unlisted:
        what = number_of(len(unlisted), "image")
        notes.append(Note(f"left out {what} that it does not list", unlisted))
    return _of_list(root, content, f"folder:{root}", notes, allowed)


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


def read_csv(file: Path, allowed: Allowed = NOTHING) -> Listing:
    """List the images that a CSV file names; see `csv_list` for its columns.

    Without a column `split` each class is split by chance as `read_folder` does, with the label as
    it stands in the file.

    Raises:
        DatasetError: the file cannot be read, contradicts itself, names a path outside, an image
            in two splits, or a class without training images.
    """
    content = read_csv_list(file)
    base = file.parent
    notes: list[Note] = []
    # A list may lie elsewhere than its images: the first of them tells.
    first = content.items[0].path
    is_elsewhere = allowed.root is not None and os.path.exists(allowed.root / first)
    if allowed.root is not None and is_elsewhere and not os.path.exists(base / first):
        base = allowed.root
        notes.append(Note(f"paths of {file} are read from {base}"))
    fence = Fence(base, file.parent if allowed.root is None else allowed.root)
    for item in content.items:
        fence.check(item.path, item.place)
    return _of_list(base, content, f"csv:{file}", notes, allowed)


def _of_list(
    root: Path, content: ImageList, source: str, notes: list[Note], allowed: Allowed
) -> Listing:
    repeated = content.repeated()
    if content.has_splits:
        rows: dict[str, Rows] = {}
        for item in content.items:
            rows.setdefault(item.split, []).append((item.path, content.labels[item.label]))
        rows = in_order(rows)
        n_shared = _n_shared(rows)
        if n_shared and not allowed.overlap:
            raise DatasetError(
                f"{source}: {_images(n_shared)} in several splits, such as {repeated[0].path}"
                f" ({repeated[0].place}); --allow-overlap lets it pass"
            )
    else:
        if repeated and not allowed.overlap:
            # Split by chance, such an image may be in training and in test.
            raise DatasetError(
                f"{source}: {_images(len(repeated))} listed more than once, such as"
                f" {repeated[0].path} ({repeated[0].place}); --allow-overlap lets it pass"
            )
        # By the label as written, so that the split does not change when classes are renamed.
        by_class: dict[str, Rows] = {}
        for item in content.items:
            row = (item.path, content.labels[item.label])
            by_class.setdefault(item.label, []).append(row)
        rows = by_chance(by_class)
    if repeated:
        paths = [item.path for item in repeated]
        notes.append(Note(f"{_images(len(paths))} listed again, and counted each time", paths))
    return _own_listing(root, rows, content.classnames, source, notes)


def _images(number: int) -> str:
    return number_of(number, "image is", "images are")


def _n_shared(rows: Mapping[str, Rows]) -> int:
    """How many images are in more than one split."""
    seen: set[str] = set()
    shared: set[str] = set()
    for items in rows.values():
        paths = {os.path.normpath(path) for path, _ in items}
        shared |= seen & paths
        seen |= paths
    return len(shared)


def _own_listing(
    root: Path,
    rows: Mapping[str, Rows],
    names: Sequence[str],
    source: str,
    notes: Sequence[Note],
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
    classnames = [clean(settings.classnames.get(name, name)) for name in names]
    check_classnames(source, names, classnames)
    return Listing(
        rows,
        classnames,
        opener(root),
        root,
        settings.templates,
        _sizes_hash(root, rows),
        [*notes, *notes_on_splits(rows, names)],
        never_trained(source, rows, names),
    )


def check_classnames(source: str, names: Sequence[str], classnames: Sequence[str]) -> None:
    """Refuse class names that a text encoder cannot tell apart, or that are empty.

    Args:
        source: what has these classes, for the message.
        names: the classes as their folders or list spell them.
        classnames: what prompts call them.
    """
    known: dict[str, str] = {}
    for name, classname in zip(names, classnames, strict=True):
        if not classname or "\0" in classname:
            raise DatasetError(
                f"{source}: class '{printable(name)}' has no name that a prompt can hold; rename it"
            )
        # Letters with accents are written as one sign or as two; encoders read capitals as small.
        plain = unicodedata.normalize("NFC", classname).casefold()
        other = known.setdefault(plain, name)
        if other != name:
            raise DatasetError(
                f"{source}: classes '{printable(other)}' and '{printable(name)}' have one name,"
                f" '{printable(classname)}'; rename one, or join them"
            )


def never_trained(source: str, rows: Mapping[str, Rows], names: Sequence[str]) -> list[str]:
    """Names the classes that no head can learn. With no training images only zero-shot is left."""
    trained = {label for _, label in rows.get("train", [])}
    lacking = [name for label, name in enumerate(names) if label not in trained]
    if not (trained and lacking):
        return []
    what = number_of(len(lacking), "class", "classes")
    note = Note(f"{source} has no training images of {what}", lacking)
    return [f"{note.line()}; add some, or leave these folders or rows out"]


def notes_on_splits(rows: Mapping[str, Rows], names: Sequence[str]) -> list[Note]:
    """What a cache of these rows cannot show."""
    notes = []
    if not rows.get("train"):
        notes.append(Note("there are no training images: only zero-shot can be measured"))
    tested = {label for _, label in rows.get("test", [])}
    lacking = [name for label, name in enumerate(names) if label not in tested]
    if not tested:
        notes.append(Note("test is empty: nothing can be measured on it"))
    elif lacking:
        what = number_of(len(lacking), "class", "classes")
        notes.append(Note(f"test has no images of {what}", lacking))
    return notes


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
            file = os.path.join(root, path)
            # Sizes are quick to read; to hash the contents would mean to read every image.
            size = os.stat(file).st_size if os.path.isfile(file) else -1
            digest.update(f"{size}\n".encode())
    return digest.hexdigest()[:16]

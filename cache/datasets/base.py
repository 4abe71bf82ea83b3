"""What a data set is to stage one, how it is found on a disk, and how an image file is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from cliad.cache.datasets.folders import DatasetError, Note, Walk
from cliad.cache.datasets.pictures import open_image
from cliad.cache.documents import read_text
from cliad.errors import closest

# CoOp's prompt where a data set has none of its own.
PHOTO = ("a photo of a {}.",)
# The splits of a data set, in the order of all lists and files.
SPLITS = ("train", "val", "test")
# What people call the splits, in folder names and lists of their own.
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
Rows = list[tuple[str, int]]  # (path, label), in the split's own order


class DatasetMissing(DatasetError):
    """Files of a known data set are not on the disk."""


@dataclass(frozen=True)
class Listing:
    """A data set as found on the disk; nothing but lists has been read.

    splits: rows (path, label) by split.
    classnames: in label order.
    open: reads the image of a path as RGB; raises any exception where that is not possible.
    root: the folder that paths are relative to; None where images are not files.
    templates: those of a user's own data.
    content_hash: tells images apart that have the same names.
    notes: what was left out or chosen; none where everything was used.
    problems: why no cache should be made of it, a line each.
    """

    splits: Mapping[str, Rows]
    classnames: Sequence[str]
    open: Callable[[str], Image.Image]
    root: Path | None = None
    templates: Sequence[str] = ()
    content_hash: str = ""
    notes: Sequence[Note] = ()
    problems: Sequence[str] = ()


@dataclass(frozen=True)
class Remote:
    """A file to fetch.

    file: the name under which it is kept, relative to the data set's folder.
    checksum: "md5:..." or "sha256:..."; empty: not checked.
    megabytes: its size, for messages; 0: not known or small.
    unpack: it is an archive, which is unpacked and removed.
    """

    url: str
    file: str
    checksum: str = ""
    megabytes: float = 0
    unpack: bool = False


@dataclass(frozen=True)
class Dataset:
    """A known data set.

    read: read(data, split) lists it as found below the folder `data`, by the "field" split or the
        "official" one.
    about: a few words for `cliad datasets`.
    counts: rows per split as they should be.
    folder: the folder's usual name below the data folder; folder_aliases: its other names.
    by_hand: what must be fetched by hand, and from where.
    bundled: its images come with an installed package; nothing needs to be fetched.
    """

    name: str
    read: Callable[[Path | None, str], Listing]
    templates: tuple[str, ...] = PHOTO
    about: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    n_class: int = 0
    folder: str = ""
    folder_aliases: tuple[str, ...] = ()
    remotes: tuple[Remote, ...] = ()
    by_hand: str = ""
    bundled: bool = False


class RowsAndNames(NamedTuple):
    """Rows by split, and class names in label order."""

    rows: dict[str, Rows]
    classnames: list[str]


class FoundFolder(NamedTuple):
    """A data set's folder, and the folder in it that holds the images."""

    folder: Path
    images: Path


def find_folder(data: Path | None, names: Sequence[str], inside: Sequence[str]) -> FoundFolder:
    """A data set's folder and its image folder.

    Args:
        data: the folder that holds the data sets, or the data set's own folder.
        names: names of the data set's folder, the usual one first; case, dashes and underscores
            do not matter.
        inside: where images may lie in it, the usual place first.

    Raises:
        DatasetMissing: no data folder, or nothing in it that fits; says what was looked for.
    """
    data = _need_data_folder(data, names[0])
    entries = sorted(data.iterdir(), key=lambda entry: entry.name)
    folders = [entry for entry in entries if entry.is_dir()]
    wanted = [_squashed(name) for name in names]
    named = _folders_named(folders, wanted)
    # A folder of the right name without images may stand beside one that has them, so all of them
    # are tried; and `data` may be the data set's own folder.
    candidates = list(named)
    if _squashed(data.resolve().name) in wanted:
        candidates.append(data)
    # The first name counts most, then the first place for the images.
    for folder in candidates:
        for place in inside:
            if (folder / place).is_dir():
                return FoundFolder(folder, folder / place)
    if named:
        raise DatasetMissing(
            f"{named[0]} has no folder {inside[0]}/ with the images{_content_hint(named[0])}"
        )
    # Not renamed silently: a folder with a similar name may be another data set.
    near = closest(names[0], [folder.name for folder in folders])
    hint = f"; is it {near}/? then rename or link it" if near else ""
    raise DatasetMissing(f"{data} has no folder {names[0]}/{hint}")


def _need_data_folder(data: Path | None, name: str) -> Path:
    if data is None:
        raise DatasetMissing(
            f"where is {name}? give the folder that holds it with --data DIR or $CLIAD_DATA"
        )
    data = Path(data).expanduser()
    if not data.is_dir():
        raise DatasetMissing(
            f"there is no data folder {data};"
            f" give the folder that holds {name}/ with --data DIR or $CLIAD_DATA"
        )
    return data


def _folders_named(folders: Sequence[Path], wanted: Sequence[str]) -> list[Path]:
    """The folders that have a wanted name, in the order of `wanted`, then by their own names."""
    found: list[Path] = []
    # Names that differ in case or dashes alone are one wanted name.
    for name in dict.fromkeys(wanted):
        found += [folder for folder in folders if _squashed(folder.name) == name]
    return found


def _squashed(name: str) -> str:
    """A folder's name without case, dashes and underscores."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _content_hint(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())[:5]
    if not names:
        return " (it is empty)"
    return f" (there is: {', '.join(names)})"


def need_file(folder: Path, *names: str) -> Path:
    """The first of `names` that is a file in the folder.

    Raises:
        DatasetMissing: none of them is.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DatasetMissing(f"{folder} has no {names[0]}{_content_hint(folder)}")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped, without blank ones."""
    stripped = [line.strip() for line in read_text(path, DatasetError).splitlines()]
    return [line for line in stripped if line]


def rows_of_class_folders(root: Path, names: Sequence[str], prefix: str = "") -> Rows:
    """All images of the class folders `names` below `root`: label i is folder i, files by name.

    A path is `prefix`, the class folder, and the path in it.
    """
    found = Walk(utf8=True).images(root, names)
    rows: Rows = []
    for label, name in enumerate(names):
        rows += [(f"{prefix}{name}/{path}", label) for path in found[name]]
    return rows


def opener(root: Path) -> Callable[[str], Image.Image]:
    """A function that reads images by their path below `root`."""
    return lambda path: open_image(root / path)

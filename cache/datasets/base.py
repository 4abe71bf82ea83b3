"""What a data set is to stage one, how it is found on a disk, and how an image file is read."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps

from cliad.errors import CliadError, closest

PHOTO = ("a photo of a {}.",)
IMAGE_ENDINGS = {
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".jpe",
    ".jfif",
}
Rows = list[tuple[str, int]]  # (path, label), in the split's own order


class DatasetError(CliadError):
    """A data set that is unknown, missing or not as it should be; the message says what to do."""


class DatasetMissing(DatasetError):
    """Files of a known data set are not on the disk."""


@dataclass(frozen=True)
class Listing:
    """A data set as found: rows (path, label) per split, class names by label, and how a path becomes an RGB image.

    `open` raises any exception where an image cannot be read. `root` is the folder that paths are relative to, None where
    images are no files. `templates` are those of a user's own data. `content_hash` is what tells images of the same names apart.
    """

    splits: Mapping[str, Rows]
    classnames: Sequence[str]
    open: Callable[[str], Image.Image]
    root: Path | None = None
    templates: Sequence[str] = ()
    content_hash: str = ""


@dataclass(frozen=True)
class Remote:
    """A file to fetch: where it lies, under which name (relative to the data set's folder) it is kept, and what it is."""

    url: str
    file: str
    checksum: str = ""  # "md5:..." or "sha256:..."
    megabytes: float = 0
    unpack: bool = False


@dataclass(frozen=True)
class Dataset:
    """A data set by name. `read(data, split)` lists it as found under the folder `data`, by the "field" split or the "official" one."""

    name: str
    read: Callable[[Path | None, str], Listing]
    templates: tuple[str, ...] = PHOTO
    about: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)  # rows per split as they should be
    n_class: int = 0
    folder: str = ""  # the folder's usual name under the data folder
    folder_aliases: tuple[str, ...] = ()  # other names of the folder
    remotes: tuple[Remote, ...] = ()
    by_hand: str = ""  # what must be fetched by hand, and from where
    bundled: bool = False


def find_folder(
    data: Path | None, names: Sequence[str], inside: Sequence[str]
) -> tuple[Path, Path]:
    """A data set's folder and its image folder.

    Args:
        data: the folder that holds the data sets, or the data set's own folder.
        names: names of the data set's folder; case, dashes and underscores do not matter.
        inside: where images may lie in it, the usual place first.
    Raises:
        DatasetMissing: no data folder, or nothing in it that fits; says what was looked for.
    """
    if data is None:
        raise DatasetMissing(
            f"where is {names[0]}? give the folder that holds it with --data DIR or $CLIAD_DATA"
        )
    data = Path(data).expanduser()
    if not data.is_dir():
        raise DatasetMissing(
            f"there is no data folder {data}; give the folder that holds {names[0]}/ with --data DIR or $CLIAD_DATA"
        )
    wanted = [_squashed(name) for name in names]
    folders = sorted(
        (entry for entry in data.iterdir() if entry.is_dir()), key=lambda entry: entry.name
    )
    named = sorted(
        (entry for entry in folders if _squashed(entry.name) in wanted),
        key=lambda entry: wanted.index(_squashed(entry.name)),
    )
    for folder in [*named, *([data] if _squashed(data.resolve().name) in wanted else [])]:
        for place in inside:
            if (folder / place).is_dir():
                return folder, folder / place
    if named:
        raise DatasetMissing(
            f"{named[0]} has no folder {inside[0]}/ with the images{_seen(named[0])}"
        )
    near = closest(names[0], [folder.name for folder in folders])
    hint = f"; is it {near}/? then rename or link it" if near else ""
    raise DatasetMissing(f"{data} has no folder {names[0]}/{hint}")


def _squashed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _seen(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())[:5]
    return f" (there is: {', '.join(names)})" if names else " (it is empty)"


def need_file(folder: Path, *names: str) -> Path:
    """The first of `names` that is a file in the folder.

    Raises:
        DatasetMissing: none of them is.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DatasetMissing(f"{folder} has no {names[0]}{_seen(folder)}")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without blank ones."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def image_files(folder: Path) -> list[str]:
    """All images below a folder, as sorted relative paths; hidden files are left out."""
    found = []
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(here).relative_to(folder)
        found += [
            (inside / name).as_posix()
            for name in files
            if Path(name).suffix.lower() in IMAGE_ENDINGS and name[0] != "."
        ]
    return sorted(found)


def opener(root: Path) -> Callable[[str], Image.Image]:
    """Reads images by their path below `root`."""
    return lambda path: open_image(root / path)


def open_image(source: Path | IO[bytes], formats: Sequence[str] | None = None) -> Image.Image:
    """An image file as upright RGB: EXIF rotation applied, 16 bits scaled to 8, CMYK and palettes converted, alpha dropped.

    `formats` are Pillow's names of those allowed, None: all that it knows.
    Raises:
        Exception: whatever Pillow raises on a file that is missing, truncated, or no image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # odd metadata and very large pictures are no reason to stop
        with Image.open(source, formats=formats) as image:
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # Pillow would clip, not scale
                image = image.point(lambda value: value / 256).convert("L")
            return image.convert("RGB")

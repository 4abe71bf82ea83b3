"""Images in folders: which files are taken, which are left out, and how that is said.

Each real folder is walked once, so that a link cannot count images twice or never end.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from cliad.cache.datasets.pictures import allowed_formats, is_image
from cliad.errors import CliadError, is_utf8, printable

# Endings of what Pillow reads, in lower case. Such files are images without a look at them, so
# that one that is damaged is counted where it is read; others are images if they begin like one.
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
    ".avif",
    ".jp2",
    ".mpo",
}
# What systems and programs put beside people's folders.
SYSTEM_FOLDERS = {
    "__MACOSX",
    "__pycache__",
    "@eaDir",
    "@Recycle",
    "#recycle",
    "$RECYCLE.BIN",
    "lost+found",
    "System Volume Information",
}
SHOWN = 5  # names in a line
FIRST_BYTES = 32  # enough for every format's mark
FolderKey = tuple[int, int]  # device and number of a folder on it


class DatasetError(CliadError):
    """A data set that is unknown, missing or not as it should be; the message says what to do."""


@dataclass
class LeftOut:
    """What was not taken, to be said in notes.

    endings: files that are not images, counted by ending; hidden: files whose names begin with a
    dot; folders: those of systems and hidden ones; repeated: links to folders that are taken.
    """

    endings: Counter[str] = field(default_factory=Counter)
    hidden: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)

    def notes(self, root: Path) -> list[Note]:
        """A note for each kind that there is, with paths from `root` on."""
        notes = []
        if self.endings:
            what = number_of(sum(self.endings.values()), "file that is", "files that are")
            most = self.endings.most_common()
            kinds = [f"{number:,} {ending}" for ending, number in most]
            notes.append(Note(f"left out {what} not images", kinds))
        if self.hidden:
            what = number_of(len(self.hidden), "hidden file")
            notes.append(Note(f"left out {what}", _from(root, self.hidden)))
        if self.folders:
            what = number_of(len(self.folders), "hidden or system folder")
            notes.append(Note(f"left out {what}", _from(root, self.folders)))
        if self.repeated:
            what = number_of(len(self.repeated), "link to a folder", "links to folders")
            notes.append(Note(f"left out {what} already taken", _from(root, self.repeated)))
        return notes


@dataclass(frozen=True)
class Note:
    """What was left out or chosen: a line that ends in names, of which there may be many."""

    text: str
    names: Sequence[str] = ()

    def line(self, shown: int | None = SHOWN) -> str:
        """The line with at most so many names; None: all."""
        names = list(self.names[:shown])
        if len(names) < len(self.names):
            names.append("...")
        # Names of files may hold what moves a terminal's cursor.
        return printable(f"{self.text}: {', '.join(names)}" if names else self.text)


def number_of(number: int, one: str, more: str = "") -> str:
    """A number and the word for it: `1 folder`, `2 folders`."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def _from(root: Path, paths: Sequence[Path]) -> list[str]:
    return sorted(os.path.relpath(path, root) for path in paths)


def is_left_out(folder_name: str) -> bool:
    """Whether a folder of that name holds nobody's images."""
    return folder_name.startswith(".") or folder_name in SYSTEM_FOLDERS


def subfolders(root: Path) -> list[str]:
    """Names of all folders in `root`, sorted, links to folders too."""
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir())


def class_folders(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted; hidden and system folders are left out."""
    return [name for name in subfolders(root) if not is_left_out(name)]


def loose_images(folder: Path) -> int:
    """How many files in `folder` itself have the ending of an image."""
    names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
    return sum(has_image_ending(name) for name in names)


def has_image_ending(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_ENDINGS and not name.startswith(".")


def image_files(folder: Path) -> list[str]:
    """All images below a folder, as sorted relative paths; hidden files are left out."""
    return Walk().images(folder, [""])[""]


class Walk:
    """A walk through folders that takes each real folder once.

    `left_out` says what was not taken, `seen` which folders were walked.
    """

    def __init__(
        self, fence: Path | None = None, *, utf8: bool = False, left_out: LeftOut | None = None
    ):
        """Nothing is walked yet.

        Args:
            fence: the folder that links must not leave; None: they may lead anywhere.
            utf8: refuse names that are not UTF-8, which no cache can hold.
            left_out: takes what is left out, where several walks count together.
        """
        self.left_out = LeftOut() if left_out is None else left_out
        self.seen: dict[FolderKey, Path] = {}
        self._fence = None if fence is None else os.path.realpath(fence)
        self._utf8 = utf8

    def images(self, root: Path, names: Sequence[str]) -> dict[str, list[str]]:
        """The images below each of the folders `names` in `root`, as sorted paths in that folder.

        A folder that is not there has none; the name "" is `root` itself.

        Raises:
            DatasetError: a link leads outside, or a name is not UTF-8.
        """
        found: dict[str, list[str]] = {name: [] for name in names}
        # A link to what lies above it is a link to a folder that is taken.
        if "" not in names:
            self._see(root)
        links: list[_Place] = []
        for name in names:
            place = _Place(name, root / name if name else root, "")
            # Folders before links to them, so that an image is known by its own place. The root
            # itself may be a link.
            self._check_name(name, root)
            if name and place.folder.is_symlink():
                links.append(place)
            elif place.folder.is_dir():
                self._into(place, found[name], links)
        while links:
            place = links.pop(0)
            self.check_link(place.folder)
            self._into(place, found[place.name], links)
        # The order of the file system differs between machines.
        return {name: sorted(paths) for name, paths in found.items()}

    def _see(self, folder: Path) -> bool:
        """Note a folder; False where it was seen before."""
        status = os.stat(folder)
        key = (status.st_dev, status.st_ino)
        if key in self.seen:
            return False
        self.seen[key] = folder
        return True

    def _into(self, first: _Place, found: list[str], links: list[_Place]) -> None:
        """Add the images below a folder to `found`, and the links to folders in it to `links`."""
        places = [first]
        while places:
            place = places.pop()
            if not self._see(place.folder):
                self.left_out.repeated.append(place.folder)
                continue
            with os.scandir(place.folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
            for entry in entries:
                if not entry.is_dir():
                    self._file(entry, place, found)
                elif is_left_out(entry.name):
                    self.left_out.folders.append(Path(entry.path))
                else:
                    self._check_name(entry.name, place.folder)
                    inside = f"{place.inside}{entry.name}/"
                    below = _Place(place.name, Path(entry.path), inside)
                    (links if entry.is_symlink() else places).append(below)

    def _file(self, entry: os.DirEntry[str], place: _Place, found: list[str]) -> None:
        """Add a file of the folder `place` to `found`, or count why it is not taken."""
        if entry.name.startswith("."):
            self.left_out.hidden.append(Path(entry.path))
        elif has_image_ending(entry.name) or begins_as_image(entry):
            self._check_name(entry.name, place.folder)
            # A broken link, or one to a device, stays: it is counted where it is not read.
            if entry.is_symlink() and entry.is_file():
                self.check_link(Path(entry.path))
            found.append(f"{place.inside}{entry.name}")
        else:
            ending = os.path.splitext(entry.name)[1].lower()
            self.left_out.endings[ending or "without an ending"] += 1

    def _check_name(self, name: str, folder: Path) -> None:
        if self._utf8 and not is_utf8(name):
            raise DatasetError(f"the name {printable(name)} in {folder} is not UTF-8; rename it")

    def check_link(self, link: Path) -> None:
        """Refuse a link that leads out of the fence.

        Raises:
            DatasetError: it does.
        """
        if self._fence is None or not link.is_symlink():
            return
        target = os.path.realpath(link)
        common = os.path.commonpath([self._fence, target])
        if common != self._fence:
            raise DatasetError(
                f"{link} is a link to {target}, outside of {self._fence};"
                f" if it is meant, allow it with --root {common}"
            )


@dataclass(frozen=True)
class _Place:
    """A folder of a walk: the class folder's name, where it lies, how paths in it begin."""

    name: str
    folder: Path
    inside: str


def begins_as_image(entry: os.DirEntry[str]) -> bool:
    """Whether a regular file without the ending of an image is one all the same."""
    if not entry.is_file():
        return False
    try:
        with open(entry.path, "rb", buffering=0) as stream:
            first = stream.read(FIRST_BYTES)
    except OSError:
        return False
    # Annotations may be as many as images, and to try each decoder takes far longer.
    for name in allowed_formats():
        accepts = Image.OPEN[name][1]
        if accepts is None or accepts(first):
            return is_image(Path(entry.path))
    return False

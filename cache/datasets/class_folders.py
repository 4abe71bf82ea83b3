"""Folders of a user's own images: which of them are splits, and which are classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cliad.cache.datasets.base import SPLIT_NAMES, SPLITS
from cliad.cache.datasets.folders import (
    DatasetError,
    FolderKey,
    LeftOut,
    Note,
    Walk,
    class_folders,
    is_left_out,
    loose_images,
    number_of,
    subfolders,
)


@dataclass(frozen=True)
class ClassFolders:
    """What was found: `images` has paths by split and class folder, from the class folder on.

    Without splits it has one part, "". `folders` has each part's folder; `shared` are folders
    that lie in several splits; `notes` say what was left out.
    """

    images: Mapping[str, Mapping[str, Sequence[str]]]
    folders: Mapping[str, str]
    shared: Sequence[str]
    notes: list[Note]

    @property
    def has_splits(self) -> bool:
        return "" not in self.images

    def classes(self) -> list[str]:
        """The folders that hold images in some split, sorted.

        A class may be missing in one of the splits, so they are those of all of them.
        """
        names = set()
        for by_class in self.images.values():
            names |= {name for name, paths in by_class.items() if paths}
        return sorted(names)


def read_class_folders(root: Path, allowed_root: Path | None = None) -> ClassFolders:
    """Find the splits and classes below `root`, and the images in them.

    Args:
        root: the data set's folder, which may be a link itself.
        allowed_root: a folder that links below it may lead to; None: `root`.

    Raises:
        DatasetError: no class folders, two folders for one split, a link that leads outside, or a
            name that is not UTF-8.
    """
    splits = _split_folders(root)
    # A folder val/ alone may as well be a class of that name.
    folders = splits if "train" in splits or "test" in splits else {"": ""}
    left_out = LeftOut()
    images = {}
    walks = []
    notes: list[Note] = []
    for split, folder in folders.items():
        walk = Walk(allowed_root or root, utf8=True, left_out=left_out)
        if folder:
            walk.check_link(root / folder)
        images[split] = walk.images(root / folder, class_folders(root / folder))
        walks.append(walk)
        notes += _loose(root / folder)
    found = ClassFolders(images, folders, _shared(walks), notes)
    _check_names(root, found)
    for folder in {"", *folders.values()}:
        left_out.folders += [entry for entry in _paths(root / folder) if is_left_out(entry.name)]
    notes += [*_beside(root, folders), *_empty(found), *left_out.notes(root)]
    return found


def _paths(folder: Path) -> list[Path]:
    return [folder / name for name in subfolders(folder)]


def _split_folders(root: Path) -> dict[str, str]:
    """The folders that are named like a split and hold class folders, by split, in order."""
    found: dict[str, str] = {}
    for name in class_folders(root):
        split = SPLIT_NAMES.get(name.lower())
        # A class may be called train: it holds images, not folders of them.
        if split is None or not class_folders(root / name):
            continue
        if split in found:
            raise DatasetError(
                f"folder:{root} has {found[split]}/ and {name}/, which are both {split};"
                " rename or remove one of them"
            )
        found[split] = name
    return {split: found[split] for split in SPLITS if split in found}


def _check_names(root: Path, found: ClassFolders) -> None:
    names = set()
    for by_class in found.images.values():
        names |= set(by_class)
    if not names:
        raise DatasetError(
            f"folder:{root} has no folders of images;"
            " it should have one folder per class, or train/, val/ and test/ with these"
        )
    if not found.has_splits and all(name.lower() in SPLIT_NAMES for name in names):
        raise DatasetError(
            f"folder:{root} has images in {', '.join(sorted(names))}, but no folders per class"
            " there; or put a list metadata.csv with file_name and label beside them"
        )


def _loose(folder: Path) -> list[Note]:
    n_image = loose_images(folder)
    if not n_image:
        return []
    what = number_of(n_image, "image that is", "images that are")
    return [Note(f"left out {what} in no class folder, but in {folder} itself")]


def _beside(root: Path, folders: Mapping[str, str]) -> list[Note]:
    """Folders beside those of the splits."""
    if "" in folders:
        return []
    others = [name for name in class_folders(root) if name not in folders.values()]
    if not others:
        return []
    return [Note(f"left out {number_of(len(others), 'folder')} beside the splits", others)]


def _empty(found: ClassFolders) -> list[Note]:
    classes = set(found.classes())
    empty: set[str] = set()
    for by_class in found.images.values():
        empty |= set(by_class) - classes
    if not empty:
        return []
    return [Note(f"left out {number_of(len(empty), 'folder')} without images", sorted(empty))]


def _shared(walks: Sequence[Walk]) -> list[str]:
    """Folders that were walked more than once: a split that is a link to another."""
    seen: set[FolderKey] = set()
    shared = []
    for walk in walks:
        shared += [str(folder) for key, folder in walk.seen.items() if key in seen]
        seen |= set(walk.seen)
    return shared

"""How the field's data sets that come with a split file (`split_zhou_*.json` of CoOp) are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cliad.cache.datasets.base import (
    SPLITS,
    Dataset,
    DatasetError,
    DatasetMissing,
    Listing,
    Remote,
    RowsAndNames,
    find_folder,
    opener,
)
from cliad.cache.datasets.split_file import read_split_file
from cliad.cache.prompts import clean

# CoOp's own copies are on Google Drive, which gives files no plain address.
SPLIT_FILES_URL = "https://raw.githubusercontent.com/linzhiqiu/cross_modal_adaptation/main/splits/"


@dataclass(frozen=True)
class Place:
    """Where a data set with a split file lies.

    folders: names of its folder, the usual one first; images: image folders in it, likewise.
    official: reads the split that the data set itself brings, from its folder and image folder.
    """

    name: str
    folders: tuple[str, ...]
    images: tuple[str, ...]
    split_file: str
    official: Callable[[Path, Path], RowsAndNames] | None = None

    def read(self, data: Path | None, split: str) -> Listing:
        """List the data set below `data`, by its split file or by its "official" split."""
        folder, images = find_folder(data, (*self.folders, self.name), self.images)
        if split != "official":
            content = _read_rows(self._find_split_file(folder, data or folder.parent))
        elif self.official is not None:
            content = self.official(folder, images)
        else:
            raise DatasetError(f"{self.name} has no official split; leave out --split official")
        return Listing(content.rows, content.classnames, opener(images), images)

    def _find_split_file(self, folder: Path, data: Path) -> Path:
        # CoOp has its split files beside the images; others keep all of them in one folder.
        places = (folder, Path(data), Path(data) / "splits", folder.parent / "splits")
        for place in places:
            if (place / self.split_file).is_file():
                return place / self.split_file
        raise DatasetMissing(
            f"{folder} has no {self.split_file};"
            f" `cliad data download {self.name}` fetches it, or use --split official"
        )


def _read_rows(split_file: Path) -> RowsAndNames:
    """The rows of train, val and test, in the file's order, and class names as prompts have them.

    Raises:
        SplitFileError: not a split file, one without all three splits, or one that contradicts
            itself.
    """
    content = read_split_file(split_file, required=SPLITS)
    rows = {}
    for split in SPLITS:
        rows[split] = [(row.path, row.label) for row in content.splits[split]]
    return RowsAndNames(rows, [clean(name) for name in content.classnames])


def field_dataset(
    place: Place,
    *,
    template: str,
    counts: tuple[int, int, int],
    n_class: int,
    checksum: str = "",
    remotes: Sequence[Remote] = (),
    by_hand: str = "",
) -> Dataset:
    """A known data set at `place`.

    Args:
        template: CoOp's hand-written prompt.
        counts: images of train, val and test by the split file.
        checksum: sha256 of the split file; empty where it is not known.
        remotes: files to fetch, beside the split file.
    """
    about = f"{n_class} classes"
    if place.official is not None:
        about += ", also --split official"
    # The split file comes last: it is small, and of no use without the images.
    split_file = Remote(
        url=SPLIT_FILES_URL + place.split_file,
        file=place.split_file,
        checksum=f"sha256:{checksum}" if checksum else "",
    )
    return Dataset(
        name=place.name,
        read=place.read,
        templates=(template,),
        about=about,
        counts=dict(zip(SPLITS, counts, strict=True)),
        n_class=n_class,
        folder=place.folders[0],
        folder_aliases=place.folders[1:],
        remotes=(*remotes, split_file),
        by_hand=by_hand,
    )

"""ImageNet and its four shifts (V2, Sketch, A, R), which are for testing only.

Labels follow the sorted WordNet ids of the folders, as everywhere in the field. Class names come
from `classnames.txt` in the data set's folder (lines `n01440764 tench`), else from the list of
OpenAI's prompt notebook that cliad brings. Images of a class are listed in name order (CoOp lists
them as the file system does, so its draws on ImageNet differ between machines).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from cliad.cache.datasets.base import (
    Dataset,
    DatasetError,
    Listing,
    Rows,
    find_folder,
    opener,
    read_lines,
    rows_of_class_folders,
)
from cliad.cache.datasets.folders import class_folders, image_files

BUNDLED = Path(__file__).parent / "imagenet_classes.txt"
# The field tests on the 50,000 validation images: the test labels were never published.
FOLDER_OF_SPLIT = {"train": "train", "test": "val"}


def _names(*folders: Path) -> dict[str, str]:
    """Class names by WordNet id, from the first folder that has a `classnames.txt`."""
    for folder in folders:
        if (folder / "classnames.txt").is_file():
            return _names_in(folder / "classnames.txt")
    return _names_in(BUNDLED)


def _names_in(file: Path) -> dict[str, str]:
    names = {}
    for line in read_lines(file):
        # A name may hold spaces: only the first one separates.
        wordnet_id, _, name = line.partition(" ")
        if not name:
            raise DatasetError(
                f"{file} has the line '{line}'; expected lines such as 'n01440764 tench'"
            )
        names[wordnet_id] = name
    return names


@cache
def wordnet_ids() -> list[str]:
    """The 1,000 ids of ImageNet in label order."""
    return [line.split()[0] for line in read_lines(BUNDLED)]


def _wordnet_folders(root: Path) -> list[str]:
    """The class folders in `root`, whose names must be WordNet ids, in label order."""
    names = class_folders(root)
    # Other folders would be classes and shift the labels of all that come after them.
    if not names or not all(name[0] == "n" and name[1:].isdigit() for name in names):
        raise DatasetError(
            f"{root} should hold folders named by WordNet ids such as n01440764;"
            f" it has {', '.join(names[:3]) or 'none'}"
        )
    return names


def _classnames(names: Mapping[str, str], ids: Sequence[str], folder: Path) -> list[str]:
    for wordnet_id in ids:
        if wordnet_id not in names:
            raise DatasetError(
                f"{folder}: no class name for folder {wordnet_id};"
                f" add a line '{wordnet_id} NAME' to classnames.txt"
            )
    return [names[wordnet_id] for wordnet_id in ids]


def _read_imagenet(data: Path | None, split: str) -> Listing:
    folder, images = find_folder(
        data,
        ("imagenet", "imagenet1k", "ilsvrc2012"),
        ("images", "ILSVRC/Data/CLS-LOC", "."),
    )
    ids_by_place: dict[str, list[str]] = {}
    for place in FOLDER_OF_SPLIT.values():
        if not (images / place).is_dir():
            raise DatasetError(f"{images} has no folder {place}/ with one folder per class")
        ids_by_place[place] = _wordnet_folders(images / place)
    ids = _same_ids(images, ids_by_place)
    rows = {}
    for part, place in FOLDER_OF_SPLIT.items():
        rows[part] = rows_of_class_folders(images / place, ids, f"{place}/")
    return Listing(rows, _classnames(_names(folder), ids, folder), opener(images), images)


def _same_ids(images: Path, ids_by_place: Mapping[str, Sequence[str]]) -> list[str]:
    """The ids that all places share: labels are positions in this list, so it must be one list."""
    ids = sorted(set().union(*ids_by_place.values()))
    for place, found in ids_by_place.items():
        missing = sorted(set(ids) - set(found))
        if missing:
            raise DatasetError(
                f"{images / place} lacks {len(missing)} of {len(ids)} class folders,"
                f" such as {missing[0]}; both splits need the same classes"
            )
    return ids


def _read_v2(data: Path | None, split: str) -> Listing:
    """ImageNetV2's class folders are label numbers, 0 to 999."""
    folder, images = find_folder(
        data,
        ("imagenetv2",),
        ("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency"),
    )
    rows: Rows = []
    # By number: in name order, 10 would come before 2.
    for label in range(1000):
        rows += [(f"{label}/{path}", label) for path in image_files(images / str(label))]
    if not rows:
        raise DatasetError(f"{images} has no images in folders 0 to 999")
    names = _names(folder, folder.parent / "imagenet")
    return Listing(
        {"test": rows}, _classnames(names, wordnet_ids(), folder), opener(images), images
    )


def _shift(
    name: str,
    *,
    about: str,
    folder: str,
    images: tuple[str, ...],
    n_class: int,
    n_test: int,
    by_hand: str,
) -> Dataset:
    """A data set of test images in folders by WordNet id."""

    def read(data: Path | None, split: str) -> Listing:
        found, root = find_folder(data, (folder, name), images)
        ids = _wordnet_folders(root)
        rows = rows_of_class_folders(root, ids)
        # A user's own names for ImageNet hold for its shifts, too.
        names = _names(found, found.parent / "imagenet")
        return Listing({"test": rows}, _classnames(names, ids, found), opener(root), root)

    return Dataset(
        name=name,
        read=read,
        about=about,
        counts={"test": n_test},
        n_class=n_class,
        folder=folder,
        by_hand=by_hand,
    )


IMAGENET = Dataset(
    name="imagenet",
    read=_read_imagenet,
    about="1,000 classes; the validation images are the test split",
    counts={"train": 1281167, "test": 50000},
    n_class=1000,
    folder="imagenet",
    by_hand="images/train/ and images/val/ with a folder per class"
    " (image-net.org asks for an account)",
)
IMAGENETV2 = Dataset(
    name="imagenetv2",
    read=_read_v2,
    about="ImageNetV2, matched frequency; test only",
    counts={"test": 10000},
    n_class=1000,
    folder="imagenetv2",
    by_hand="imagenetv2-matched-frequency-format-val/ (github.com/modestyachts/ImageNetV2)",
)
IMAGENET_SKETCH = _shift(
    "imagenet_sketch",
    about="ImageNet-Sketch; test only",
    folder="imagenet-sketch",
    images=("images", "sketch"),
    n_class=1000,
    n_test=50889,
    by_hand="images/ (github.com/HaohanWang/ImageNet-Sketch)",
)
IMAGENET_A = _shift(
    "imagenet_a",
    about="ImageNet-A; test only",
    folder="imagenet-adversarial",
    images=("imagenet-a", "."),
    n_class=200,
    n_test=7500,
    by_hand="imagenet-a/ (github.com/hendrycks/natural-adv-examples)",
)
IMAGENET_R = _shift(
    "imagenet_r",
    about="ImageNet-R; test only",
    folder="imagenet-rendition",
    images=("imagenet-r", "."),
    n_class=200,
    n_test=30000,
    by_hand="imagenet-r/ (github.com/hendrycks/imagenet-r)",
)

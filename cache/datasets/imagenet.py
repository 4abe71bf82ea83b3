"""ImageNet and its four shifts (V2, Sketch, A, R), which are for testing only.

Labels follow the sorted WordNet ids of the folders, as everywhere in the field. Class names come from `classnames.txt` in the
data set's folder (lines `n01440764 tench`), else from the list of OpenAI's prompt notebook that cliad brings. Images of a class
are listed in name order (CoOp lists them as the file system does, so its draws on ImageNet differ between machines).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from cliad.cache.datasets.base import (
    Dataset,
    DatasetError,
    Listing,
    Rows,
    find_folder,
    image_files,
    opener,
    read_lines,
)

BUNDLED = Path(__file__).parent / "imagenet_classes.txt"


def _names(*folders: Path) -> dict[str, str]:
    """Class names by WordNet id, from the first folder that has a `classnames.txt`."""
    found = [
        folder / "classnames.txt" for folder in folders if (folder / "classnames.txt").is_file()
    ]
    return dict(line.split(" ", 1) for line in read_lines((found or [BUNDLED])[0]))


@cache
def wordnet_ids() -> list[str]:
    """The 1,000 ids of ImageNet in label order."""
    return [line.split()[0] for line in read_lines(BUNDLED)]


def _read_imagenet(data: Path | None, split: str) -> Listing:
    folder, images = find_folder(
        data, ("imagenet", "imagenet1k", "ilsvrc2012"), ("images", "ILSVRC/Data/CLS-LOC", ".")
    )
    names, rows, ids = _names(folder), {}, []
    for part, place in (
        ("train", "train"),
        ("test", "val"),
    ):  # the field tests on the 50,000 validation images
        if not (images / place).is_dir():
            raise DatasetError(f"{images} has no folder {place}/ with one folder per class")
        listed, ids = _by_id(images / place, f"{place}/")
        rows[part] = listed
    return Listing(rows, [_name(names, i, folder) for i in ids], opener(images), images)


def _by_id(root: Path, prefix: str = "") -> tuple[Rows, list[str]]:
    """Rows of the class folders below `root`, labelled in the order of their names, and these names."""
    ids = sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if not ids or not all(name[0] == "n" and name[1:].isdigit() for name in ids):
        raise DatasetError(
            f"{root} should hold folders named by WordNet ids such as n01440764; it has {', '.join(ids[:3]) or 'none'}"
        )
    return [
        (f"{prefix}{name}/{path}", label)
        for label, name in enumerate(ids)
        for path in image_files(root / name)
    ], ids


def _name(names: dict[str, str], wordnet_id: str, folder: Path) -> str:
    if wordnet_id not in names:
        raise DatasetError(
            f"{folder}: no class name for folder {wordnet_id}; add a line '{wordnet_id} NAME' to classnames.txt"
        )
    return names[wordnet_id]


def _shift(
    name: str,
    about: str,
    folders: tuple[str, ...],
    inside: tuple[str, ...],
    n_class: int,
    n_test: int,
    by_hand: str,
) -> Dataset:
    def read(data: Path | None, split: str) -> Listing:
        folder, images = find_folder(data, (*folders, name), inside)
        rows, ids = _by_id(images)
        names = _names(folder, folder.parent / "imagenet")
        return Listing(
            {"test": rows}, [_name(names, i, folder) for i in ids], opener(images), images
        )

    return Dataset(
        name,
        read,
        about=about,
        counts={"test": n_test},
        n_class=n_class,
        folder=folders[0],
        by_hand=by_hand,
    )


def _read_v2(data: Path | None, split: str) -> Listing:
    """ImageNetV2's class folders are label numbers, 0 to 999."""
    folder, images = find_folder(
        data,
        ("imagenetv2",),
        ("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency"),
    )
    names, ids = _names(folder, folder.parent / "imagenet"), wordnet_ids()
    rows = [
        (f"{label}/{path}", label)
        for label in range(1000)
        for path in image_files(images / str(label))
    ]
    if not rows:
        raise DatasetError(f"{images} has no images in folders 0 to 999")
    return Listing({"test": rows}, [_name(names, i, folder) for i in ids], opener(images), images)


IMAGENET = Dataset(
    "imagenet",
    _read_imagenet,
    about="1,000 classes; the validation images are the test split",
    counts={"train": 1281167, "test": 50000},
    n_class=1000,
    folder="imagenet",
    by_hand="images/train/ and images/val/ with a folder per class (image-net.org asks for an account)",
)
IMAGENETV2 = Dataset(
    "imagenetv2",
    _read_v2,
    about="ImageNetV2, matched frequency; test only",
    counts={"test": 10000},
    n_class=1000,
    folder="imagenetv2",
    by_hand="imagenetv2-matched-frequency-format-val/ (github.com/modestyachts/ImageNetV2)",
)
IMAGENET_SKETCH = _shift(
    "imagenet_sketch",
    "ImageNet-Sketch; test only",
    ("imagenet-sketch",),
    ("images", "sketch"),
    1000,
    50889,
    "images/ (github.com/HaohanWang/ImageNet-Sketch)",
)
IMAGENET_A = _shift(
    "imagenet_a",
    "ImageNet-A; test only",
    ("imagenet-adversarial",),
    ("imagenet-a", "."),
    200,
    7500,
    "imagenet-a/ (github.com/hendrycks/natural-adv-examples)",
)
IMAGENET_R = _shift(
    "imagenet_r",
    "ImageNet-R; test only",
    ("imagenet-rendition",),
    ("imagenet-r", "."),
    200,
    30000,
    "imagenet-r/ (github.com/hendrycks/imagenet-r)",
)

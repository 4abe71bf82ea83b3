"""The field's data sets that come with a split file (`split_zhou_*.json` of CoOp), and FGVC-Aircraft, which has lists of its own.

A split file is {"train": [[path, label, class name], ...], "val": [...], "test": [...]}, paths relative to the image folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cliad.cache.datasets import official
from cliad.cache.datasets.base import (
    Dataset,
    DatasetError,
    DatasetMissing,
    Listing,
    Remote,
    Rows,
    find_folder,
    need_file,
    opener,
    read_lines,
)
from cliad.cache.prompts import clean

SPLITS = "https://raw.githubusercontent.com/linzhiqiu/cross_modal_adaptation/main/splits/"
AIRCRAFT_FOLDERS = ("fgvc_aircraft", "fgvc-aircraft-2013b", "fgvc", "aircraft")
OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/"


@dataclass(frozen=True)
class Place:
    """Where a data set lies: names of its folder (the usual one first), image folders in it, its split file."""

    name: str
    folders: tuple[str, ...]
    images: tuple[str, ...]
    split_file: str
    official: Callable[[Path, Path], tuple[dict[str, Rows], list[str]]] | None = None

    def read(self, data: Path | None, split: str) -> Listing:
        folder, images = find_folder(data, (*self.folders, self.name), self.images)
        if split == "official":
            if self.official is None:
                raise DatasetError(f"{self.name} has no official split; leave out --split official")
            rows, classnames = self.official(folder, images)
        else:
            rows, classnames = read_split_file(self._split_path(data, folder))
        return Listing(rows, classnames, opener(images), images)

    def _split_path(self, data: Path | None, folder: Path) -> Path:
        places = [folder, Path(data), Path(data) / "splits", folder.parent / "splits"]
        for place in places:
            if (place / self.split_file).is_file():
                return place / self.split_file
        raise DatasetMissing(
            f"{folder} has no {self.split_file}; `cliad data download {self.name}` fetches it, or use --split official"
        )


def read_split_file(path: Path) -> tuple[dict[str, Rows], list[str]]:
    """The rows of every split, in the file's order, and the class names by label.

    Raises:
        DatasetError: the file is no split file, or contradicts itself.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        rows = {
            split: [(str(item), int(label)) for item, label, _ in raw[split]]
            for split in ("train", "val", "test")
        }
        names = {int(label): str(name) for split in raw.values() for _, label, name in split}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{path} is no split file ({str(error)[:80]}); it must hold train, val and test as [path, label, name]"
        ) from None
    if sorted(names) != list(range(len(names))):
        raise DatasetError(
            f"{path} has labels {min(names)} to {max(names)} with gaps; labels must be 0 to {len(names) - 1}"
        )
    for split, items in raw.items():
        if wrong := next((item for item in items if names[int(item[1])] != item[2]), None):
            raise DatasetError(
                f"{path}: label {wrong[1]} has two names, '{wrong[2]}' and '{names[int(wrong[1])]}' ({split})"
            )
    return rows, [clean(names[label]) for label in range(len(names))]


def _read_aircraft(data: Path | None, split: str) -> Listing:
    _, images = find_folder(
        data, AIRCRAFT_FOLDERS, ("images", "data/images", "fgvc-aircraft-2013b/data/images")
    )
    lists = images.parent
    names = read_lines(need_file(lists, "variants.txt"))
    rows: dict[str, Rows] = {}
    for part in ("train", "val", "test"):
        items = [
            line.split(" ", 1)
            for line in read_lines(need_file(lists, f"images_variant_{part}.txt"))
        ]
        rows[part] = [(f"{image}.jpg", names.index(name)) for image, name in items]
    return Listing(rows, [clean(name) for name in names], opener(images), images)


def _dataset(
    place: Place,
    templates: str,
    counts: tuple[int, int, int],
    n_class: int,
    checksum: str,
    *remotes: Remote,
    by_hand: str = "",
) -> Dataset:
    split = Remote(
        SPLITS + place.split_file, place.split_file, f"sha256:{checksum}" if checksum else ""
    )
    sizes = dict(zip(("train", "val", "test"), counts, strict=True))
    about = f"{n_class} classes" + ("" if place.official is None else ", also --split official")
    remotes = (*remotes, split)
    return Dataset(
        place.name,
        place.read,
        (templates,),
        about,
        sizes,
        n_class,
        place.folders[0],
        place.folders[1:],
        remotes,
        by_hand,
    )


CALTECH101 = _dataset(
    Place(
        "caltech101",
        ("caltech-101",),
        ("101_ObjectCategories", "caltech-101/101_ObjectCategories"),
        "split_zhou_Caltech101.json",
    ),
    "a photo of a {}.",
    (4128, 1649, 2465),
    100,
    "52ce83205ff8ff8a1a18119aad6376120ae35c36e783a984bc560cbf10e73fa5",
    Remote(
        "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
        "caltech-101.zip",
        "md5:3138e1922a9193bfa496528edbbc45d0",
        137,
        True,
    ),
)
OXFORD_PETS = _dataset(
    Place(
        "oxford_pets",
        ("oxford_pets", "oxford-iiit-pet", "pets"),
        ("images",),
        "split_zhou_OxfordPets.json",
        official.pets,
    ),
    "a photo of a {}, a type of pet.",
    (2944, 736, 3669),
    37,
    "d7f3ffe65b3919f95132e51422894ae18686b83c331fd8c0adcdc3dc2de6301e",
    Remote(
        OXFORD + "pets/data/images.tar.gz",
        "images.tar.gz",
        "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",
        792,
        True,
    ),
    Remote(
        OXFORD + "pets/data/annotations.tar.gz",
        "annotations.tar.gz",
        "md5:95a8c909bbe2e81eed6a22bccdf3f68f",
        19,
        True,
    ),
)
STANFORD_CARS = _dataset(
    Place(
        "stanford_cars",
        ("stanford_cars", "cars"),
        (".",),
        "split_zhou_StanfordCars.json",
        official.cars,
    ),
    "a photo of a {}.",
    (6509, 1635, 8041),
    196,
    "40acee7aa65c8e4727a32d90e884b7c3f8960b523422317e163f7af65432959d",
    by_hand="cars_train/ and cars_test/ (the original site is gone; mirrors carry cars_train.tgz, cars_test.tgz, car_devkit.tgz)",
)
OXFORD_FLOWERS = _dataset(
    Place(
        "oxford_flowers",
        ("oxford_flowers", "flowers-102", "flower102", "flowers"),
        ("jpg",),
        "split_zhou_OxfordFlowers.json",
        official.flowers,
    ),
    "a photo of a {}, a type of flower.",
    (4093, 1633, 2463),
    102,
    "2f50c42fc1a17ca13c271cb4269b1347bdb43d2be672e34f74a4e4cbfbcca794",
    Remote(
        OXFORD + "flowers/102/102flowers.tgz",
        "102flowers.tgz",
        "md5:52808999861908f626f3c1f4e79d11fa",
        345,
        True,
    ),
    Remote(
        OXFORD + "flowers/102/imagelabels.mat",
        "imagelabels.mat",
        "md5:e0620be6f572b9609742df49c70aed4d",
    ),
    Remote(OXFORD + "flowers/102/setid.mat", "setid.mat", "md5:a5357ecc9cb78c4bef273ce3793fc85c"),
    Remote(SPLITS + "cat_to_name.json", "cat_to_name.json"),
)
FOOD101 = _dataset(
    Place(
        "food101",
        ("food-101",),
        ("images", "food-101/images"),
        "split_zhou_Food101.json",
        official.food,
    ),
    "a photo of {}, a type of food.",
    (50500, 20200, 30300),
    101,
    "",
    Remote(
        "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
        "food-101.tar.gz",
        "md5:85eeb15f3717b99a5da872d97d918f87",
        4997,
        True,
    ),
)
SUN397 = _dataset(
    Place("sun397", ("sun397",), ("SUN397", "."), "split_zhou_SUN397.json", official.sun),
    "a photo of a {}.",
    (15880, 3970, 19850),
    397,
    "",
    Remote(
        "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
        "SUN397.tar.gz",
        "md5:8ca2778205c41d23104230ba66911c7a",
        37000,
        True,
    ),
)
DTD = _dataset(
    Place(
        "dtd",
        ("dtd", "describable_textures"),
        ("images", "dtd/images"),
        "split_zhou_DescribableTextures.json",
        official.dtd,
    ),
    "{} texture.",
    (2820, 1128, 1692),
    47,
    "f26ebeccd2b58e68d70f07a0dc39fe49bf7b69024bac34396b954dfd87969c38",
    Remote(
        OXFORD + "dtd/download/dtd-r1.0.1.tar.gz",
        "dtd-r1.0.1.tar.gz",
        "md5:fff73e5086ae6bdbea199a49dfb8a4c1",
        625,
        True,
    ),
)
EUROSAT = _dataset(
    Place("eurosat", ("eurosat",), ("2750", "EuroSAT/2750", "EuroSAT"), "split_zhou_EuroSAT.json"),
    "a centered satellite photo of {}.",
    (13500, 5400, 8100),
    10,
    "541503a77d0b26b735d85ec7a3e672804fe0aa466c2e5f07da772cc6c0af8ad2",
    Remote(
        "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
        "EuroSAT.zip",
        "md5:c8fa014336c82ac7804f0398fcb19387",
        94,
        True,
    ),
)
UCF101 = _dataset(
    Place(
        "ucf101",
        ("ucf101", "ucf-101"),
        ("UCF-101-midframes",),
        "split_zhou_UCF101.json",
        official.ucf,
    ),
    "a photo of a person doing {}.",
    (7639, 1898, 3783),
    101,
    "d78cb834f7c5792ceaff2c5ee2d7c76a9e4086e48a3a6b01232989d29cbefdd8",
    by_hand="UCF-101-midframes/ (the middle frame of every video; CoOp's DATASETS.md links UCF-101-midframes.zip)",
)
FGVC_AIRCRAFT = Dataset(
    "fgvc_aircraft",
    _read_aircraft,
    ("a photo of a {}, a type of aircraft.",),
    "100 classes",
    {"train": 3334, "val": 3333, "test": 3333},
    100,
    "fgvc_aircraft",
    AIRCRAFT_FOLDERS[1:],
    (
        Remote(
            OXFORD + "fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            "fgvc-aircraft-2013b.tar.gz",
            "",
            2754,
            True,
        ),
    ),
)

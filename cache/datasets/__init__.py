"""The data sets: one explicit table, and lookup by name."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from cliad.cache.datasets import cifar, imagenet, zhou
from cliad.cache.datasets.base import Dataset, DatasetError
from cliad.cache.datasets.digits import DIGITS
from cliad.cache.datasets.own import own_dataset
from cliad.cache.datasets.shards import shard_dataset
from cliad.errors import closest

DATASETS: dict[str, Dataset] = {
    "digits": DIGITS,
    "imagenet": imagenet.IMAGENET,
    "caltech101": zhou.CALTECH101,
    "oxford_pets": zhou.OXFORD_PETS,
    "stanford_cars": zhou.STANFORD_CARS,
    "oxford_flowers": zhou.OXFORD_FLOWERS,
    "food101": zhou.FOOD101,
    "fgvc_aircraft": zhou.FGVC_AIRCRAFT,
    "sun397": zhou.SUN397,
    "dtd": zhou.DTD,
    "eurosat": zhou.EUROSAT,
    "ucf101": zhou.UCF101,
    "imagenetv2": imagenet.IMAGENETV2,
    "imagenet_sketch": imagenet.IMAGENET_SKETCH,
    "imagenet_a": imagenet.IMAGENET_A,
    "imagenet_r": imagenet.IMAGENET_R,
    "cifar10": cifar.CIFAR10,
    "cifar100": cifar.CIFAR100,
}
OTHER_NAMES = {
    "fgvc": "fgvc_aircraft",
    "aircraft": "fgvc_aircraft",
    "pets": "oxford_pets",
    "cars": "stanford_cars",
    "flowers": "oxford_flowers",
}
OTHER_NAMES |= {
    "flowers102": "oxford_flowers",
    "oxford_flowers102": "oxford_flowers",
    "food": "food101",
    "imagenet_v2": "imagenetv2",
}


def find_dataset(name: str) -> Dataset:
    """The data set of that name, a known one or a user's own (`folder:PATH`, `csv:FILE`, `wds:PATTERN`).

    Raises:
        DatasetError: there is none; the message lists all and suggests the nearest.
    """
    if found := own_dataset(name) or shard_dataset(name):
        return found
    asked = name.lower().replace("-", "_")
    asked = OTHER_NAMES.get(asked, asked)
    if asked in DATASETS:
        return DATASETS[asked]
    near = closest(asked, [*DATASETS, *OTHER_NAMES])
    hint = f"did you mean '{near}'? " if near else ""
    raise DatasetError(
        f"there is no data set '{name}'; {hint}known: {', '.join(DATASETS)}; your own images: folder:PATH, csv:FILE or wds:PATTERN"
    )


def data_dir(given: Path | None = None) -> Path | None:
    """The folder that holds the data sets: `given` (--data), else $CLIAD_DATA, else the user's data folder if it is there."""
    if folder := given or os.environ.get("CLIAD_DATA"):
        return Path(folder).expanduser()
    return default_data_dir() if default_data_dir().is_dir() else None


def default_data_dir() -> Path:
    """Where fetched data sets go when neither --data nor $CLIAD_DATA says."""
    return Path(platformdirs.user_data_dir("cliad", appauthor=False)) / "datasets"

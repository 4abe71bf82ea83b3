"""The data sets: one explicit table, and lookup by name."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from cliad.cache.datasets import cifar, imagenet, zhou_table
from cliad.cache.datasets.aircraft import FGVC_AIRCRAFT
from cliad.cache.datasets.base import Dataset, DatasetError
from cliad.cache.datasets.digits import DIGITS
from cliad.cache.datasets.own import NOTHING, Allowed, own_dataset
from cliad.cache.datasets.shards import shard_dataset
from cliad.errors import closest, is_utf8, printable

# In the order in which `cliad datasets` shows them.
DATASETS: dict[str, Dataset] = {
    "digits": DIGITS,
    "imagenet": imagenet.IMAGENET,
    "caltech101": zhou_table.CALTECH101,
    "oxford_pets": zhou_table.OXFORD_PETS,
    "stanford_cars": zhou_table.STANFORD_CARS,
    "oxford_flowers": zhou_table.OXFORD_FLOWERS,
    "food101": zhou_table.FOOD101,
    "fgvc_aircraft": FGVC_AIRCRAFT,
    "sun397": zhou_table.SUN397,
    "dtd": zhou_table.DTD,
    "eurosat": zhou_table.EUROSAT,
    "ucf101": zhou_table.UCF101,
    "imagenetv2": imagenet.IMAGENETV2,
    "imagenet_sketch": imagenet.IMAGENET_SKETCH,
    "imagenet_a": imagenet.IMAGENET_A,
    "imagenet_r": imagenet.IMAGENET_R,
    "cifar10": cifar.CIFAR10,
    "cifar100": cifar.CIFAR100,
}
# Short names, and names that other libraries use.
OTHER_NAMES = {
    "fgvc": "fgvc_aircraft",
    "aircraft": "fgvc_aircraft",
    "pets": "oxford_pets",
    "cars": "stanford_cars",
    "flowers": "oxford_flowers",
    "flowers102": "oxford_flowers",
    "oxford_flowers102": "oxford_flowers",
    "food": "food101",
    "imagenet_v2": "imagenetv2",
}


def find_dataset(name: str, allowed: Allowed = NOTHING) -> Dataset:
    """The data set of that name.

    Args:
        name: a name of DATASETS or OTHER_NAMES (case and dashes do not matter), or a user's own
            images as `folder:PATH`, `csv:FILE` or `wds:PATTERN`.
        allowed: what such a folder or list may do beyond the rule.

    Raises:
        DatasetError: there is none; the message lists all and suggests the nearest. Or the name is
            not UTF-8, or something is allowed to a data set that has no use for it.
    """
    # It becomes the name of a folder and a text in the cache.
    if not is_utf8(name):
        raise DatasetError(f"the data set's name {printable(name)} is not UTF-8")
    # A user's own data come first: their names hold a colon, which no known name has.
    own = own_dataset(name, allowed)
    if own is not None:
        return own
    if allowed != NOTHING:
        raise DatasetError(
            f"--root and --allow-overlap are for folder:PATH and csv:FILE, not {name}"
        )
    own = shard_dataset(name)
    if own is not None:
        return own
    plain_name = name.lower().replace("-", "_")
    plain_name = OTHER_NAMES.get(plain_name, plain_name)
    if plain_name in DATASETS:
        return DATASETS[plain_name]
    near = closest(plain_name, [*DATASETS, *OTHER_NAMES])
    hint = f"did you mean '{near}'? " if near else ""
    raise DatasetError(
        f"there is no data set '{name[:80]}'; {hint}known: {', '.join(DATASETS)};"
        " your own images: folder:PATH, csv:FILE or wds:PATTERN"
    )


def data_dir(given: Path | None = None) -> Path | None:
    """The folder that holds the data sets.

    It is `given` (--data), else $CLIAD_DATA, else the user's data folder; None where none of the
    three is there.
    """
    folder = given or os.environ.get("CLIAD_DATA")
    if folder:
        return Path(folder).expanduser()
    default = default_data_dir()
    return default if default.is_dir() else None


def default_data_dir() -> Path:
    """Where data sets are downloaded to without --data and $CLIAD_DATA."""
    return Path(platformdirs.user_data_dir("cliad", appauthor=False)) / "datasets"

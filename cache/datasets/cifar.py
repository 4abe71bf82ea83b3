"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), which have no validation split.

They are read as class folders (`cifar10/train/cat/*.png`) or as the published Python batches.
The batches are pickles; they are read by an unpickler that knows arrays and nothing else.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliad.cache.datasets.base import (
    Dataset,
    DatasetError,
    Listing,
    Remote,
    Rows,
    find_folder,
    opener,
    rows_of_class_folders,
)
from cliad.cache.datasets.folders import class_folders
from cliad.cache.documents import read_bytes
from cliad.cache.prompts import clean
from cliad.errors import printable

TORONTO = "https://www.cs.toronto.edu/~kriz/"
# Images per split, the same in both data sets.
COUNTS = {"train": 50000, "test": 10000}
# What NumPy's own pickles of arrays call; nothing of it runs code of the file.
ALLOWED = {
    ("numpy", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads plain containers and NumPy arrays; anything else in the file is refused."""

    def find_class(self, module: str, name: str) -> Any:
        package = module.split(".")[0]
        if (package, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which no CIFAR file does")
        return super().find_class(module, name)


def _unpickled(path: Path) -> dict[str, Any]:
    raw = read_bytes(path, DatasetError, "fetch it again")
    try:
        # Python 2 wrote the batches: its strings are bytes, which latin1 reads one by one.
        content = _ArrayUnpickler(io.BytesIO(raw), encoding="latin1").load()
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return content
    # A damaged pickle may make its own machine fail in any way.
    except Exception as error:
        reason = printable(str(error))[:80]
        raise DatasetError(f"{path} is not a CIFAR batch ({reason}); fetch it again") from None


@dataclass(frozen=True)
class Batches:
    """The published files of one of the two data sets.

    files: file names by split; labels: the key of the labels in them; names: the key of the class
    names in the file `meta`.
    """

    name: str
    folder: str
    files: Mapping[str, tuple[str, ...]]
    labels: str
    meta: str
    names: str

    def read(self, data: Path | None, split: str) -> Listing:
        """List the images of class folders if there are such, else of the batches."""
        places = ("train", self.folder, ".")
        folder, images = find_folder(data, (self.name, self.folder), places)
        # Among CIFAR-100's batches `train` is a file, which find_folder passes over.
        if images.name == "train":
            return _from_folders(folder)
        if not (images / self.meta).is_file():
            raise DatasetError(
                f"{folder} has neither train/ and test/ with class folders nor {self.folder}/"
            )
        rows: dict[str, Rows] = {}
        for part, files in self.files.items():
            labels: list[int] = []
            for file in files:
                labels += _unpickled(images / file)[self.labels]
            # There are no image files: a path is a row number, counted over the split's batches.
            rows[part] = [(f"{part}/{row:05d}", int(label)) for row, label in enumerate(labels)]
        names = _unpickled(images / self.meta)[self.names]
        return Listing(
            rows,
            [clean(name) for name in names],
            lambda path: self._read_image(images, path),
        )

    def _read_image(self, images: Path, path: str) -> Image.Image:
        part, _, row = path.partition("/")
        # (3072,) uint8: the red, green and blue planes of 32 x 32, one after the other
        pixels = _pixels(images, self.files[part])[int(row)]
        # (channel, y, x) -> (y, x, channel), as Pillow wants it
        return Image.fromarray(pixels.reshape(3, 32, 32).transpose(1, 2, 0))


# Two: images of train and test are read in turn.
@lru_cache(maxsize=2)
def _pixels(images: Path, files: tuple[str, ...]) -> np.ndarray:
    """The images of some batches, (n, 3072) uint8."""
    return np.concatenate([_unpickled(images / file)["data"] for file in files])


def _from_folders(folder: Path) -> Listing:
    if not (folder / "test").is_dir():
        raise DatasetError(f"{folder} has train/ but no test/ with one folder per class")
    names = class_folders(folder / "train")
    rows = {}
    for part in ("train", "test"):
        rows[part] = rows_of_class_folders(folder / part, names, f"{part}/")
    return Listing(rows, [clean(name) for name in names], opener(folder), folder)


_CIFAR10_BATCHES = Batches(
    name="cifar10",
    folder="cifar-10-batches-py",
    files={
        "train": ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
        "test": ("test_batch",),
    },
    labels="labels",
    meta="batches.meta",
    names="label_names",
)
_CIFAR100_BATCHES = Batches(
    name="cifar100",
    folder="cifar-100-python",
    files={"train": ("train",), "test": ("test",)},
    labels="fine_labels",
    meta="meta",
    names="fine_label_names",
)
CIFAR10 = Dataset(
    name="cifar10",
    read=_CIFAR10_BATCHES.read,
    about="10 classes, no val split",
    counts=COUNTS,
    n_class=10,
    folder="cifar10",
    folder_aliases=("cifar-10-batches-py",),
    remotes=(
        Remote(
            url=TORONTO + "cifar-10-python.tar.gz",
            file="cifar-10-python.tar.gz",
            checksum="md5:c58f30108f718f92721af3b95e74349a",
            megabytes=171,
            unpack=True,
        ),
    ),
)
CIFAR100 = Dataset(
    name="cifar100",
    read=_CIFAR100_BATCHES.read,
    about="100 classes, no val split",
    counts=COUNTS,
    n_class=100,
    folder="cifar100",
    folder_aliases=("cifar-100-python",),
    remotes=(
        Remote(
            url=TORONTO + "cifar-100-python.tar.gz",
            file="cifar-100-python.tar.gz",
            checksum="md5:eb9058c3a382ffc7106e4002c42a8d85",
            megabytes=169,
            unpack=True,
        ),
    ),
)

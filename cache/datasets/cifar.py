"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), which have no validation split.

They are read as class folders (`cifar10/train/cat/*.png`) or as the published Python batches.
The batches are pickles; they are read by an unpickler that knows arrays of whole numbers and
nothing else. NumPy's own functions are not called: a pickle can make them take bytes for addresses.
"""

from __future__ import annotations

import io
import pickle
import pickletools
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
# Types of the numbers in the batches: pixels, and labels where another program wrote them.
NUMBERS = {"u1", "uint8", "i1", "i2", "i4", "i8", "int32", "int64"}


class _Type:
    """Stands for numpy.dtype in a pickle: the name of a type, and the order of its bytes."""

    def __init__(self, name: str, *_: object):
        if name not in NUMBERS:
            raise pickle.UnpicklingError(f"it holds an array of {name}, not of whole numbers")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Takes the order of the bytes; the rest of the state is for types that are not allowed."""
        order = state[1]
        if order not in ("|", "<", ">", "="):
            raise pickle.UnpicklingError(f"it holds numbers in the order {order!r}")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for numpy.ndarray in a pickle; `values` is the array."""

    values = np.zeros(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Takes shape, type and bytes, which must be as many as the shape says."""
        _, shape, of_type, in_columns, raw = state
        # Python 2 wrote bytes as text.
        content = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(of_type, _Type) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it holds an array that is not of plain bytes")
        flat = np.frombuffer(content, of_type.dtype)
        self.values = flat.reshape(shape, order="F" if in_columns else "C")


def _new_array(*_: object) -> _Array:
    return _Array()


def _encoded(text: str, encoding: str) -> bytes:
    """Stands for codecs.encode, with which Python 3 writes bytes for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds text in {encoding}")
    return text.encode("latin1")


# What NumPy's own pickles of arrays call, by package and name, and what is called instead.
STANDINS = {
    ("numpy", "_reconstruct"): _new_array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encoded,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads plain containers and arrays of numbers; anything else in the file is refused."""

    def find_class(self, module: str, name: str) -> Any:
        package = module.split(".")[0]
        if (package, name) not in STANDINS:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which no CIFAR file does")
        return STANDINS[package, name]


def _check_memo(raw: bytes) -> None:
    """Refuse a pickle that keeps something under a number far above that of its steps.

    Python makes room for all numbers up to it: 40 bytes could ask for 30 GB.

    Raises:
        ValueError: it does, or is cut.
    """
    for step, (operation, argument, _) in enumerate(pickletools.genops(raw)):
        keeps = operation.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if keeps and argument is not None and argument > step:
            raise ValueError("it asks for more memory than it can use")


def _unpickled(path: Path) -> dict[str, Any]:
    raw = read_bytes(path, DatasetError, "fetch it again")
    try:
        _check_memo(raw)
        # Python 2 wrote the batches: its strings are bytes, which latin1 reads one by one.
        content = _ArrayUnpickler(io.BytesIO(raw), encoding="latin1").load()
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return content
    # A damaged pickle may make its own machine fail in any way.
    except Exception as error:
        raise _no_batch(path, printable(str(error))[:80]) from None


def _no_batch(file: Path, reason: str) -> DatasetError:
    return DatasetError(f"{file} is not a CIFAR batch ({reason}); fetch it again")


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
        names = self._names(images / self.meta)
        rows: dict[str, Rows] = {}
        for part, files in self.files.items():
            labels: list[int] = []
            for file in files:
                labels += self._labels(images / file, len(names))
            # There are no image files: a path is a row number, counted over the split's batches.
            rows[part] = [(f"{part}/{row:05d}", label) for row, label in enumerate(labels)]
        return Listing(
            rows,
            names,
            lambda path: self._read_image(images, path),
        )

    def _names(self, file: Path) -> list[str]:
        names = _unpickled(file).get(self.names)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _no_batch(file, f"it has no list of names '{self.names}'")
        return [clean(name) for name in names]

    def _labels(self, file: Path, n_class: int) -> list[int]:
        """The labels of a batch, as many as it has images."""
        batch = _unpickled(file)
        labels = batch.get(self.labels)
        if isinstance(labels, _Array):
            labels = labels.values.tolist()
        # bool is a kind of int, and no label.
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise _no_batch(file, f"it has no list of numbers '{self.labels}'")
        if not all(0 <= label < n_class for label in labels):
            raise _no_batch(file, f"it has labels other than 0 to {n_class - 1}")
        if _pixels_of(file, batch).shape != (len(labels), 3072):
            raise _no_batch(file, f"it has not 3,072 bytes for each of its {len(labels):,} labels")
        return labels

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
    return np.concatenate([_pixels_of(images / file, _unpickled(images / file)) for file in files])


def _pixels_of(file: Path, batch: Mapping[str, Any]) -> np.ndarray:
    pixels = batch.get("data")
    if not isinstance(pixels, _Array) or pixels.values.dtype != np.uint8:
        raise _no_batch(file, "it has no bytes of pixels 'data'")
    return pixels.values


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

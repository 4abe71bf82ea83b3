"""CIFAR-10 and CIFAR-100: as class folders (`cifar10/train/cat/*.png`), or as the published Python batches.

There is no validation split. The batches are pickles; they are read by an unpickler that knows arrays and nothing else.
"""

from __future__ import annotations

import io
import pickle
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from cliad.cache.datasets.base import (
    Dataset,
    DatasetError,
    Listing,
    Remote,
    Rows,
    find_folder,
    image_files,
    opener,
)
from cliad.cache.prompts import clean

TORONTO = "https://www.cs.toronto.edu/~kriz/"


class _Arrays(pickle.Unpickler):
    """Reads plain containers and NumPy arrays; anything else in the file is refused."""

    def find_class(self, module: str, name: str):
        if (module.split(".")[0], name) in {
            ("numpy", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which no CIFAR file does")


def _unpickled(path: Path) -> dict:
    try:
        return _Arrays(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        raise DatasetError(
            f"{path} is no CIFAR batch ({str(error)[:80]}); fetch it again"
        ) from None


def _read(
    name: str,
    batches: str,
    files: dict[str, tuple[str, ...]],
    labels: str,
    meta: tuple[str, str],
    data: Path | None,
) -> Listing:
    folder, images = find_folder(data, (name, batches), ("train", batches, "."))
    if images.name == "train" and images.is_dir():
        return _from_folders(folder)
    if not (images / meta[0]).is_file():
        raise DatasetError(
            f"{folder} has neither train/ and test/ with class folders nor {batches}/"
        )
    rows: dict[str, Rows] = {}
    for part, parts in files.items():
        y = [label for file in parts for label in _unpickled(images / file)[labels]]
        rows[part] = [(f"{part}/{row:05d}", int(label)) for row, label in enumerate(y)]
    names = [clean(entry) for entry in _unpickled(images / meta[0])[meta[1]]]
    return Listing(rows, names, lambda path: _picture(images, files, path))


def _picture(images: Path, files: dict[str, tuple[str, ...]], path: str) -> Image.Image:
    part, _, row = path.partition("/")
    pixels = _pixels(images, files[part])[
        int(row)
    ]  # (3072,) uint8: red, green, blue planes of 32 x 32
    return Image.fromarray(pixels.reshape(3, 32, 32).transpose(1, 2, 0))


@lru_cache(maxsize=2)
def _pixels(images: Path, files: tuple[str, ...]) -> np.ndarray:
    return np.concatenate([_unpickled(images / file)["data"] for file in files])


def _from_folders(folder: Path) -> Listing:
    names = sorted(entry.name for entry in (folder / "train").iterdir() if entry.is_dir())
    rows = {
        part: [
            (f"{part}/{name}/{path}", label)
            for label, name in enumerate(names)
            for path in image_files(folder / part / name)
        ]
        for part in ("train", "test")
    }
    return Listing(rows, [clean(name) for name in names], opener(folder), folder)


def _read_cifar10(data: Path | None, split: str) -> Listing:
    files = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
    return _read(
        "cifar10", "cifar-10-batches-py", files, "labels", ("batches.meta", "label_names"), data
    )


def _read_cifar100(data: Path | None, split: str) -> Listing:
    files = {"train": ("train",), "test": ("test",)}
    return _read(
        "cifar100", "cifar-100-python", files, "fine_labels", ("meta", "fine_label_names"), data
    )


_COUNTS = {"train": 50000, "test": 10000}
CIFAR10 = Dataset(
    "cifar10",
    _read_cifar10,
    about="10 classes, no val split",
    counts=_COUNTS,
    n_class=10,
    folder="cifar10",
    folder_aliases=("cifar-10-batches-py",),
    remotes=(
        Remote(
            TORONTO + "cifar-10-python.tar.gz",
            "cifar-10-python.tar.gz",
            "md5:c58f30108f718f92721af3b95e74349a",
            171,
            True,
        ),
    ),
)
CIFAR100 = Dataset(
    "cifar100",
    _read_cifar100,
    about="100 classes, no val split",
    counts=_COUNTS,
    n_class=100,
    folder="cifar100",
    folder_aliases=("cifar-100-python",),
    remotes=(
        Remote(
            TORONTO + "cifar-100-python.tar.gz",
            "cifar-100-python.tar.gz",
            "md5:eb9058c3a382ffc7106e4002c42a8d85",
            169,
            True,
        ),
    ),
)

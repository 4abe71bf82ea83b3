"""digits: 1,797 handwritten digits of 8 x 8 pixels by 43 people, which scikit-learn ships.

Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998. The images of a class
stand in the order of their writers. So that few writers are in more than one split, each class is
cut in that order: its first 50 % train, the next 20 % val, the last 30 % test.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cliad.cache.datasets.base import Dataset, Listing, Rows

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BRIGHTEST = 16  # of scikit-learn's pixels

# Those that the bundled encoder's training used for validation: they were chosen before these
# images were seen.
TEMPLATES = (
    'a photo of the number: "{}".',
    "a photo of the digit {}.",
    "a handwritten digit {}.",
    "a picture of the number {}.",
    "a blurry photo of the digit {}.",
)


class Digits(NamedTuple):
    """Images (1797, 8, 8) with values 0 to 16, and labels (1797,)."""

    images: np.ndarray
    labels: np.ndarray


@cache
def _load() -> Digits:
    # Imported here, as it is slow and no other data set needs it.
    from sklearn.datasets import load_digits

    data = load_digits()
    return Digits(data.images, data.target)


def _read(data: Path | None, split: str) -> Listing:
    labels = _load().labels
    numbers: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for label in range(10):
        # Rows of the class in the file's order, which is that of their writers.
        in_order = np.flatnonzero(labels == label).tolist()
        # Rounded for each class alone, which gives 898, 360 and 539 images.
        train_end = round(0.5 * len(in_order))
        val_end = round(0.7 * len(in_order))
        numbers["train"] += in_order[:train_end]
        numbers["val"] += in_order[train_end:val_end]
        numbers["test"] += in_order[val_end:]
    rows: dict[str, Rows] = {}
    for part, of_part in numbers.items():
        rows[part] = [(f"{row:04d}", int(labels[row])) for row in sorted(of_part)]
    return Listing(rows, NAMES, _open)


def _open(path: str) -> Image.Image:
    """The image of row `path` of scikit-learn's file, white strokes on black."""
    # (8, 8), 0 to 16 -> 0 to 255
    values = _load().images[int(path)] * (255 / BRIGHTEST)
    return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")


DIGITS = Dataset(
    name="digits",
    read=_read,
    templates=TEMPLATES,
    about="scikit-learn's handwritten digits, bundled",
    counts={"train": 898, "val": 360, "test": 539},
    n_class=10,
    bundled=True,
)

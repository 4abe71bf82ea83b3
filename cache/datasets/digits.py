"""digits: 1,797 handwritten digits of 8 x 8 pixels by 43 people, which scikit-learn ships; needs no download.

Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998. The images of a class stand in the order of
their writers. So that few writers are in more than one split, each class is cut in that order: its first 50 % train,
the next 20 % val, the last 30 % test.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from cliad.cache.datasets.base import Dataset, Listing

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

TEMPLATES = (  # those that the bundled encoder's training used for validation: chosen before these images were seen
    'a photo of the number: "{}".',
    "a photo of the digit {}.",
    "a handwritten digit {}.",
    "a picture of the number {}.",
    "a blurry photo of the digit {}.",
)


def _read(data: Path | None, split: str) -> Listing:
    labels = _digits()[1]
    rows: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for label in range(10):
        of_class = np.flatnonzero(labels == label)
        cuts = [round(0.5 * len(of_class)), round(0.7 * len(of_class))]
        for part, numbers in zip(rows.values(), np.split(of_class, cuts), strict=True):
            part += numbers.tolist()
    splits = {
        part: [(f"{row:04d}", int(labels[row])) for row in sorted(numbers)]
        for part, numbers in rows.items()
    }
    return Listing(splits, NAMES, _open)


def _open(path: str) -> Image.Image:
    """The image of row `path` of scikit-learn's file, white strokes on black."""
    values = _digits()[0][int(path)] * (255 / 16)
    return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 8, 8) with values 0 to 16, and labels (1797,)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images, data.target


DIGITS = Dataset(
    "digits",
    _read,
    TEMPLATES,
    about="scikit-learn's handwritten digits, bundled",
    counts={"train": 898, "val": 360, "test": 539},
    n_class=10,
)

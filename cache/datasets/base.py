"""What a data set is to stage one, and how an image file is read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps

PHOTO = ("a photo of a {}.",)


class DatasetError(ValueError):
    """A data set that is unknown, missing or not as it should be; the message says what to do."""


@dataclass(frozen=True)
class Listing:
    """A data set as found: rows (path, label) per split in the split's own order, class names by label, and the images.

    `open` gives the RGB image of a path and raises any exception where it cannot be read. `root` is the folder that the
    paths are relative to, None where images are no files.
    """

    splits: Mapping[str, Sequence[tuple[str, int]]]
    classnames: Sequence[str]
    open: Callable[[str], Image.Image]
    root: Path | None = None
    templates: Sequence[str] = ()  # own ones of a user's data; else those of the Dataset


@dataclass(frozen=True)
class Dataset:
    """A data set by name. `read(data, split)` finds it under the folder `data` and lists it, by the field's split or the "official" one."""

    name: str
    read: Callable[[Path | None, str], Listing]
    templates: tuple[str, ...] = PHOTO
    about: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)  # rows per split as they should be
    n_class: int = 0
    official: bool = False  # has a split of its own beside the field's


def open_image(source: Path | IO[bytes]) -> Image.Image:
    """An image file as upright RGB: EXIF rotation applied, 16 bits scaled to 8, CMYK and palettes converted, alpha dropped.

    Raises:
        Exception: whatever Pillow raises on a file that is missing, truncated, or no image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata and very large pictures are no reason to stop
        with Image.open(source) as image:
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # Pillow would clip, not scale
                image = image.point(lambda value: value / 256).convert("L")
            return image.convert("RGB")

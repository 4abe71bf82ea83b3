"""How an image file is read: which decoders may see it, and what becomes of its pixels."""

from __future__ import annotations

import os
import threading
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cliad.cache.documents import open_regular
from cliad.errors import CliadError

# The only decoders that an image is shown to, here, in `predict`, `data check` and `serve`. None
# of them starts a program, as Pillow's EPS does, or follows a path in the file. A file of several
# JPEGs (MPO) is read by JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# A small file can claim to be a huge picture. More pixels are refused by the header alone; the
# largest cameras have 102 million.
LARGEST_PIXELS = 120_000_000
# Above this, one picture at a time: each takes four bytes a pixel, and threads read side by side.
LARGE_PIXELS = 50_000_000
_one_large = threading.Lock()
# Encoders make the short side as long as theirs, so a line of pixels would become a huge picture.
LONGEST_TO_SHORTEST = 400
# Ranges of numbers that mean black to white, the narrowest first.
RANGES = (1, 255, 65535)


class UnreadableImage(CliadError):
    """A file that is no ordinary file, has too many pixels, or pixels without a meaning."""


@cache
def allowed_formats() -> tuple[str, ...]:
    """Those of FORMATS that this build of Pillow has a decoder for."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_image(source: Path | IO[bytes]) -> Image.Image:
    """The first picture of an image file as upright RGB.

    EXIF rotation is applied, 16 bits are scaled to 8, other numbers by their range, CMYK and
    palettes converted, alpha dropped.

    Args:
        source: a file's path, or its bytes as a stream.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableImage: a pipe, a device or a folder; too many pixels; float pixels that are not
            finite.
        Exception: whatever Pillow raises on a file that is truncated or not an image.
    """
    if not isinstance(source, Path):
        return _read_stream(source)
    os.stat(source)  # a missing file is an error of its own kind
    # Not opened by Pillow, which would wait for ever for a pipe.
    with open_regular(source, UnreadableImage) as stream:
        return _read_stream(stream)


def is_image(path: Path) -> bool:
    """Whether a file begins as an image does; only its header is read."""
    try:
        with open_regular(path, UnreadableImage) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(stream, formats=allowed_formats()):
                return True
    except Image.DecompressionBombError:
        return True  # an image of too many pixels; it is refused where it is read
    except Exception:  # a decoder may raise anything on what is not an image
        return False


def _read_stream(stream: IO[bytes]) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and of very large pictures, which are read all the same.
        warnings.simplefilter("ignore")
        with _opened(stream) as image:
            _check_size(*image.size)
            with _turn(image.width * image.height):
                # Pillow reads lazily; what is wrong with the file must show here.
                image.load()
                return _rgb(_upright(image), image.format)


def _opened(stream: IO[bytes]) -> Image.Image:
    try:
        return Image.open(stream, formats=allowed_formats())
    except UnidentifiedImageError:
        # Pillow's own message names an object of Python's.
        raise UnidentifiedImageError(f"it is none of {', '.join(allowed_formats())}") from None


def _check_size(width: int, height: int) -> None:
    if width * height > LARGEST_PIXELS:
        raise UnreadableImage(
            f"it has {width * height:,} pixels; at most {LARGEST_PIXELS:,} are read"
        )
    if max(width, height) > LONGEST_TO_SHORTEST * min(width, height):
        raise UnreadableImage(
            f"it is {width:,} x {height:,} pixels; one side may be at most {LONGEST_TO_SHORTEST}"
            " times the other"
        )


def _turn(n_pixel: int) -> AbstractContextManager[object]:
    return _one_large if n_pixel > LARGE_PIXELS else nullcontext()


def _upright(image: Image.Image) -> Image.Image:
    # Cameras store a picture as the sensor lay, and in EXIF how to turn it. Most are upright, and
    # exif_transpose would copy these.
    if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _rgb(image: Image.Image, format: str | None) -> Image.Image:
    """8 bits for each of red, green and blue."""
    if image.mode == "RGB":
        return image
    # 32-bit numbers may be anything; elsewhere mode I means the 16 bits of PNG or PGM.
    if image.mode == "F" or (image.mode == "I" and format == "TIFF"):
        image = _by_range(np.asarray(image))
    elif image.mode in ("I", "I;16"):
        # 16 bits to 8: Pillow's own conversion would clip instead of scale.
        image = image.point(lambda value: value / 256).convert("L")
    elif image.mode.startswith("I"):
        # The same for other orders of bytes, for which Pillow has no operations.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _by_range(values: np.ndarray) -> Image.Image:
    """Grey from numbers (height, width) of no fixed range.

    White is the smallest of 1, 255 and 65535 that no number exceeds; where some are below zero or
    above all of these, the smallest number is black and the largest is white.
    """
    low, high = float(values.min()), float(values.max())
    # A maximum that is finite does not exclude NaN, which min and max both pass on.
    if not np.isfinite([low, high]).all():
        raise UnreadableImage("some of its float pixels are not finite")
    whites = [white for white in RANGES if high <= white]
    if low >= 0 and whites:
        # Whole numbers have no range 0 to 1 of their own, except in masks, which use it.
        low, high = 0.0, float(whites[0])
    scaled = (values.astype(np.float32) - low) * (255 / max(high - low, 1e-30))
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))

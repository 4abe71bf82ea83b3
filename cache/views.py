"""Augmented views: which part of an image a view shows, the same on every machine."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cliad.errors import CliadError

# Width over height of a random box, and how many boxes are tried: torchvision's
# RandomResizedCrop has the same.
RATIO = (3 / 4, 4 / 3)
TRIES = 10
MOST_VIEWS = 10_000  # of an image; the field uses 1 to 300
MOST_DRAWS = 10_000  # whose images get views


class ViewError(CliadError):
    """Views that cannot be made; the message says what to do."""


class Box(NamedTuple):
    """A part of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


class View(NamedTuple):
    """What a view shows: a part of the image, or all of it where `box` is None; mirrored or not."""

    box: Box | None
    mirrored: bool


@dataclass(frozen=True)
class ViewSet:
    """`n_view` random views of each image.

    A view is a crop whose share of the image's area lies within `scale`, and is mirrored with
    probability `flip`. Without `scale` it is the plain view, mirrored or not. View v of an image
    depends on the seed, v and the image's path alone.

    Raises:
        ViewError: no view, or a scale that is not a part of the image.
    """

    n_view: int
    scale: tuple[float, float] | None = None
    flip: float = 0.5
    seed: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.n_view <= MOST_VIEWS:
            raise ViewError(f"--views is a number from 1 to {MOST_VIEWS:,}; got {self.n_view}")
        if not 0 <= self.seed < 2**63:
            raise ViewError(f"--views-seed is a number from 0 to 2^63 - 1; got {self.seed}")
        if self.scale is None:
            return
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ViewError(
                "the scale of views is LOW:HIGH, shares of the image's area such as 0.5:1; "
                f"got {low:g}:{high:g}"
            )

    @property
    def name(self) -> str:
        """The name in the file: `crop-0.5-1` or `flip`."""
        if self.scale is None:
            return "flip"
        low, high = self.scale
        return f"crop-{low:g}-{high:g}"

    @property
    def how(self) -> dict[str, float | int]:
        """How the views were made: stored with them in the file, and part of the image id."""
        facts: dict[str, float | int] = {
            "n_view": self.n_view,
            "flip": self.flip,
            "seed": self.seed,
        }
        if self.scale is not None:
            facts["scale_low"], facts["scale_high"] = self.scale
        return facts

    def show(self, size: tuple[int, int], path: str, view: int) -> View:
        """What view number `view` shows of the image `path` of `size` (width, height)."""
        # A generator of its own per image and view: the order of images does not matter. Python
        # hashes a text seed with sha512, so the numbers are the same on every machine.
        generator = random.Random(f"{self.seed}:{view}:{path}")
        # The box comes first: another order of draws would be other views.
        box = None if self.scale is None else _random_box(size, self.scale, generator)
        return View(box, mirrored=generator.random() < self.flip)


# The mirrored image, without a crop.
FLIPPED = ViewSet(1, flip=1.0)


def _random_box(size: tuple[int, int], scale: tuple[float, float], generator: random.Random) -> Box:
    """A random box by area and ratio, as torchvision's RandomResizedCrop draws it.

    Where no box fits within the image, the largest one in its middle.
    """
    image_width, image_height = size
    log_low, log_high = math.log(RATIO[0]), math.log(RATIO[1])
    for _ in range(TRIES):
        area = image_width * image_height * generator.uniform(*scale)
        # Uniform in the logarithm, so that 3:4 is as likely as 4:3.
        ratio = math.exp(generator.uniform(log_low, log_high))
        # width * height = area and width / height = ratio
        width = round(math.sqrt(area * ratio))
        height = round(math.sqrt(area / ratio))
        if 0 < width <= image_width and 0 < height <= image_height:
            left = generator.randint(0, image_width - width)
            top = generator.randint(0, image_height - height)
            return Box(left, top, width, height)
    # The image is too long for the ratios, or by chance no box fitted.
    width = min(image_width, round(image_height * RATIO[1]))
    height = min(image_height, round(image_width / RATIO[0]))
    return Box((image_width - width) // 2, (image_height - height) // 2, width, height)


# ---------------------------------------------------------------------------- options of a command


class Draws(NamedTuple):
    """The draws whose images get views: each number of shots with each seed."""

    protocol: str
    shots: list[int]
    seeds: list[int]


def parse_scale(text: str) -> tuple[float, float]:
    """`0.5:1` as two numbers.

    Raises:
        ViewError: it is not of that form.
    """
    try:
        low, high = text.split(":")
        return float(low), float(high)
    except ValueError:
        raise ViewError(f"the scale of views is LOW:HIGH such as 0.5:1; got '{text}'") from None


def parse_draws(text: str) -> Draws:
    """`coop:16:1,2,3` as protocol, shots and seeds; several shots as in `coop:1,2,4:1,2,3`.

    Raises:
        ViewError: it is not of that form.
    """
    try:
        protocol, shots, seeds = text.split(":")
        draws = Draws(protocol, _numbers(shots), _numbers(seeds))
    except ValueError:
        raise ViewError(
            f"--views-for is PROTOCOL:SHOTS:SEEDS such as coop:16:1,2,3; got '{text[:80]}'"
        ) from None
    number = len(draws.shots) * len(draws.seeds)
    if number > MOST_DRAWS:
        raise ViewError(f"--views-for stands for {number:,} draws, at most {MOST_DRAWS:,} allowed")
    return draws


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


# ------------------------------------------------------------------------------------- the image id


def recipe(sets: Mapping[str, ViewSet], rows_hash: str) -> dict:
    """The part of the image recipe that views decide; `rows_hash` says which rows have views."""
    parts = {}
    for name, views in sorted(sets.items()):
        parts[name] = {**views.how, "rows": rows_hash}
    return parts

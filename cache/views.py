"""Augmented views: which part of an image a view shows. Reproducible per image and view, on every machine."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from cliad.errors import CliadError

Box = tuple[int, int, int, int]  # left, top, width, height
RATIO = (3 / 4, 4 / 3)
TRIES = 10


class ViewError(CliadError):
    """Views that cannot be made as asked; the message says what to do."""


@dataclass(frozen=True)
class ViewSet:
    """`n_view` views of an image: crops of a share of its area within `scale`, mirrored with probability `flip`.

    Without `scale` a view is the plain one, mirrored or not. View v of image `path` depends on the seed, v and the path alone.
    """

    n_view: int
    scale: tuple[float, float] | None = None
    flip: float = 0.5
    seed: int = 1

    def __post_init__(self):
        if self.n_view < 1:
            raise ViewError(f"--views is a number of views, at least 1; got {self.n_view}")
        if self.scale and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ViewError(
                f"the scale of views is LOW:HIGH, shares of the image's area such as 0.5:1; got {self.scale[0]:g}:{self.scale[1]:g}"
            )

    @property
    def name(self) -> str:
        """`crop-0.5-1` or `flip`: the name in the file."""
        return f"crop-{self.scale[0]:g}-{self.scale[1]:g}" if self.scale else "flip"

    @property
    def how(self) -> dict[str, float | int]:
        """What is stored beside the views, and enters the image id."""
        crop = {"scale_low": self.scale[0], "scale_high": self.scale[1]} if self.scale else {}
        return {"n_view": self.n_view, "flip": self.flip, "seed": self.seed, **crop}

    def show(self, size: tuple[int, int], path: str, view: int) -> tuple[Box | None, bool]:
        """What view `view` shows of an image of `size` (width, height): a box, None for the plain view, and whether it is mirrored."""
        generator = random.Random(f"{self.seed}:{view}:{path}")
        box = _random_box(size, self.scale, generator) if self.scale else None
        return box, generator.random() < self.flip


FLIPPED = ViewSet(1, flip=1.0)


def _random_box(size: tuple[int, int], scale: tuple[float, float], generator: random.Random) -> Box:
    """A random box by area and ratio, as torchvision's RandomResizedCrop draws it; where none fits, the middle of the image."""
    width, height = size
    for _ in range(TRIES):
        area = width * height * generator.uniform(*scale)
        ratio = math.exp(generator.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return generator.randint(0, width - w), generator.randint(0, height - h), w, h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def parse_scale(text: str) -> tuple[float, float]:
    """`0.5:1` as two numbers.

    Raises:
        ViewError: it is not of that form.
    """
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise ViewError(f"the scale of views is LOW:HIGH such as 0.5:1; got '{text}'") from None
    return low, high


def parse_draws(text: str) -> tuple[str, list[int], list[int]]:
    """`coop:16:1,2,3` as protocol, shots and seeds; several shots as in `coop:1,2,4,8,16:1,2,3`.

    Raises:
        ViewError: it is not of that form.
    """
    try:
        protocol, shots, seeds = text.split(":")
        return protocol, [int(n) for n in shots.split(",")], [int(n) for n in seeds.split(",")]
    except ValueError:
        raise ViewError(
            f"--views-for is PROTOCOL:SHOTS:SEEDS such as coop:16:1,2,3; got '{text}'"
        ) from None


def recipe(sets: Mapping[str, ViewSet], rows_hash: str) -> dict:
    """What the image id must know of the views."""
    return {name: {**views.how, "rows": rows_hash} for name, views in sorted(sets.items())}

"""The training images of a run that are most like an image."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from cliad.adapters.core.ops import unit
from cliad.cache.datasets import find_dataset
from cliad.cache.datasets.base import DatasetError, Listing
from cliad.cache.file.read import FeatureCache
from cliad.pipelines.experiments.episode import draw_of
from cliad.pipelines.fewshot.draw import DrawError, DrawRequest
from cliad.pipelines.runs.predict import SavedRun

NEAREST = 4  # images shown
THUMBNAIL = 96  # pixels of the longer side


@dataclass(frozen=True, eq=False)
class NearestSupport:
    """The training shots of a run: unit features x (n, dim), class names and paths (n,).

    `listing` opens their images; None where the data set is not on this machine.
    """

    x: Tensor
    classes: list[str]
    paths: list[str]
    listing: Listing | None

    def nearest(self, x: Tensor) -> list[dict[str, object]]:
        """The shots most like x (1, dim), nearest first, as the page's JSON has them."""
        similarity = self.x @ unit(x)[0]  # (n,), cosines
        values, rows = similarity.topk(min(NEAREST, len(self.x)))
        return [
            self._shown(row, value)
            for value, row in zip(values.tolist(), rows.tolist(), strict=True)
        ]

    def _shown(self, row: int, similarity: float) -> dict[str, object]:
        return {
            "path": self.paths[row],
            "class": self.classes[row],
            "similarity": similarity,
            "thumbnail": self._thumbnail(self.paths[row]),
        }

    def _thumbnail(self, path: str) -> str | None:
        """The shot as a small picture in a data URI, where its image is on this machine."""
        if self.listing is None:
            return None
        try:
            image = self.listing.open(path)
        except Exception:  # a picture that has gone since is no reason to fail
            return None
        return thumbnail(image)


def thumbnail(image: Image.Image) -> str:
    """A small picture, as the data URI of a PNG."""
    scale = THUMBNAIL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Enlarged pixels stay sharp: a digit of 8 pixels shall look like its pixels.
    resampling = Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST
    out = io.BytesIO()
    image.resize(size, resampling).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def support_of(
    run: SavedRun, cache: FeatureCache | None, data: Path | None
) -> NearestSupport | None:
    """The training shots of a run, drawn again as they were then; None where they cannot be.

    Args:
        run: the run.
        cache: the cache that it was trained on, where it is on this machine.
        data: the folder that holds the data sets.
    """
    if cache is None:
        return None
    try:
        spec = run.about["spec"]
        request = DrawRequest(spec["shots"], spec["seed"], spec["protocol"])
        drawn, _ = draw_of(cache, request)
    except (DrawError, KeyError, TypeError):  # a spec of which only the kind has been checked
        return None
    split = cache.split("train")
    return NearestSupport(
        x=torch.from_numpy(split.rows(drawn.train, unit=True)),
        classes=[cache.classnames[label] for label in split.y[drawn.train].tolist()],
        paths=split.paths(drawn.train),
        listing=_listing(cache.dataset, data),
    )


def _listing(dataset: str, data: Path | None) -> Listing | None:
    try:
        return find_dataset(dataset).read(data, "field")
    except (DatasetError, OSError):
        return None

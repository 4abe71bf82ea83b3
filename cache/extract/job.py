"""From images to rows: what one extraction stores, and the loop that reads, encodes and writes it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import Tensor

from cliad.cache import views
from cliad.cache.datasets.base import Listing
from cliad.cache.encoders.base import Encoder
from cliad.cache.extract.reading import PLAIN, Crop, Job
from cliad.cache.file.layout import Header, SplitLayout, Views, file_list_hash, recipe_id
from cliad.cache.views import ViewSet

AT_ONCE = 4096  # images that a job may hold; views that do not fit are made of further readings of their images


@dataclass(frozen=True)
class Extraction:
    """One data set and one encoder, and what is stored of them: parts of every row, and view sets of some training rows."""

    dataset: str
    listing: Listing
    encoder: Encoder
    dtype: str = "float16"
    parts: tuple[str, ...] = ("features",)
    view_sets: Mapping[str, ViewSet] = field(default_factory=dict)
    view_rows: Sequence[int] | None = None  # training rows that views cover, ascending; None: all

    def header(self, batch: int) -> Header:
        return Header(
            self.dataset,
            self.encoder.name,
            self.encoder.encoder_id,
            self.recipe,
            batch,
            dtype=self.dtype,
            versions=_versions(self.encoder),
        )

    @cached_property
    def recipe(self) -> dict:
        """All that decides the rows: the image id is its hash."""
        listed = {
            name: ([path for path, _ in rows], [y for _, y in rows])
            for name, rows in self.listing.splits.items()
        }
        recipe = {
            "files": file_list_hash(listed),
            "encoder": dict(self.encoder.image_recipe),
            "dtype": self.dtype,
            "parts": list(self.parts),
        }
        if self.listing.content_hash:
            recipe["mark"] = self.listing.content_hash
        if self.view_sets:
            covered = "all" if self.view_rows is None else recipe_id({"rows": list(self.view_rows)})
            recipe["views"] = views.recipe(self.view_sets, covered)
        return recipe

    @cached_property
    def splits(self) -> dict[str, SplitLayout]:
        columns = {part: self.encoder.parts[part] for part in self.parts}
        return {
            name: SplitLayout(
                [path for path, _ in rows],
                np.array([y for _, y in rows], np.int32),
                columns,
                self._views(name),
            )
            for name, rows in self.listing.splits.items()
        }

    def _views(self, split: str) -> dict[str, Views]:
        if split != "train":
            return {}
        rows = (
            np.arange(len(self.listing.splits[split]))
            if self.view_rows is None
            else np.array(self.view_rows, np.int64)
        )
        return {
            name: Views(views.n_view, rows, views.how) for name, views in self.view_sets.items()
        }

    @property
    def nbytes(self) -> int:
        """Size of the rows on the disk."""
        numbers = 0
        for split in self.splits.values():
            numbers += len(split.labels) * sum(
                int(np.prod(shape)) for shape in split.columns.values()
            )
            numbers += sum(
                view.n_view * len(view.rows) * self.encoder.dim for view in split.views.values()
            )
        return numbers * np.dtype(self.dtype).itemsize

    def jobs(self, todo: Sequence[tuple[str, int, int]]) -> Iterator[Job]:
        """The batches `todo`, the plain view and the views of their rows, in jobs of at most AT_ONCE images; the plain view comes first."""
        for split, start, stop in todo:
            crops: dict[Crop, Sequence[int]] = {PLAIN: range(start, stop)}
            for name, view in self.splits[split].views.items():
                first, last = np.searchsorted(view.rows, [start, stop])
                if last > first:
                    crops |= {(name, v): view.rows[first:last].tolist() for v in range(view.n_view)}
            names, at_once = list(crops), max(1, AT_ONCE // (stop - start))
            for i in range(0, len(names), at_once):
                yield Job(
                    split,
                    start,
                    stop,
                    {name: crops[name] for name in names[i : i + at_once]},
                    i + at_once >= len(names),
                )

    def read(self, split: str, row: int, crops: Sequence[Crop]) -> list[Tensor]:
        """The crops of one image, each uint8 (3, height, width)."""
        path = self.listing.splits[split][row][0]
        image = self.listing.open(path)
        shown = [
            (None, False)
            if crop == PLAIN
            else self.view_sets[crop[0]].show(image.size, path, crop[1])
            for crop in crops
        ]
        return [self.encoder.preprocess(image, box=box, mirror=mirror) for box, mirror in shown]


def _versions(encoder: Encoder) -> dict[str, str]:
    """What made the file: recorded in it, no part of its id."""
    packages = ("torch", "torchvision", "open_clip_torch", "pillow", "numpy", "h5py")
    return {name: importlib.metadata.version(name) for name in packages} | {
        "device": encoder.device.type,
        "precision": encoder.precision,
    }

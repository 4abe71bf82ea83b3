"""What one extraction stores, and the jobs that its images are read in."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import Tensor

from cliad.cache import views
from cliad.cache.datasets.base import DatasetError, Listing
from cliad.cache.encoders.base import Encoder, EncoderError
from cliad.cache.extract.reading import PLAIN, Crop, Job
from cliad.cache.file.layout import (
    Header,
    SplitLayout,
    Views,
    file_list_hash,
    recipe_id,
    view_positions,
)
from cliad.cache.views import ViewSet

# Images that a job may hold. Where a batch has more, they are shared out among several jobs, each
# of which reads the files of its rows again.
AT_ONCE = 4096


@dataclass(frozen=True)
class Extraction:
    """One data set and one encoder, and what is stored: parts of every row, views of some."""

    dataset: str
    listing: Listing
    encoder: Encoder
    dtype: str = "float16"
    parts: tuple[str, ...] = ("features",)
    view_sets: Mapping[str, ViewSet] = field(default_factory=dict)
    view_rows: Sequence[int] | None = None  # training rows that views cover, ascending; None: all

    def check(self) -> None:
        """Refuse what cannot be stored.

        Raises:
            EncoderError: the encoder lacks a part.
            DatasetError: there are no training images to make views of.
        """
        for part in self.parts:
            if part not in self.encoder.parts:
                word = part.replace("_", "-")
                raise EncoderError(f"{self.encoder.name} has no {word} output; leave out --{word}")
        if self.view_sets and "train" not in self.listing.splits:
            raise DatasetError(
                f"{self.dataset} has no training images to make views of; leave out --views"
            )

    def header(self, batch: int) -> Header:
        """The facts of the file, for batches of `batch` images."""
        return Header(
            dataset=self.dataset,
            encoder=self.encoder.name,
            encoder_id=self.encoder.encoder_id,
            recipe=self.recipe,
            batch=batch,
            dtype=self.dtype,
            versions=_versions(self.encoder),
        )

    @cached_property
    def recipe(self) -> dict:
        """All that decides the rows: the image id is its hash."""
        layouts = self.splits.items()
        files = {name: (layout.paths, layout.labels) for name, layout in layouts}
        recipe = {
            "files": file_list_hash(files),
            "encoder": dict(self.encoder.image_recipe),
            "dtype": self.dtype,
            "parts": list(self.parts),
        }
        if self.listing.content_hash:
            recipe["mark"] = self.listing.content_hash
        if self.view_sets:
            covered = "all"
            if self.view_rows is not None:
                covered = recipe_id({"rows": list(self.view_rows)})
            recipe["views"] = views.recipe(self.view_sets, covered)
        return recipe

    @cached_property
    def splits(self) -> dict[str, SplitLayout]:
        """What each split of the file holds."""
        columns = {part: self.encoder.parts[part] for part in self.parts}
        layouts = {}
        for name, rows in self.listing.splits.items():
            layouts[name] = SplitLayout(
                paths=[path for path, _ in rows],
                labels=np.array([label for _, label in rows], np.int32),
                columns=columns,
                views=self._view_layouts(len(rows)) if name == "train" else {},
            )
        return layouts

    def _view_layouts(self, n_train: int) -> dict[str, Views]:
        rows = np.arange(n_train)
        if self.view_rows is not None:
            rows = np.array(self.view_rows, np.int64)
        return {
            name: Views(views.n_view, rows, views.how) for name, views in self.view_sets.items()
        }

    @property
    def nbytes(self) -> int:
        """Size of the rows on the disk."""
        numbers = 0
        for layout in self.splits.values():
            for shape in layout.columns.values():
                numbers += len(layout.labels) * int(np.prod(shape))
            for views_of_set in layout.views.values():
                numbers += views_of_set.n_view * len(views_of_set.rows) * self.encoder.dim
        return numbers * np.dtype(self.dtype).itemsize

    def jobs(self, todo: Sequence[tuple[str, int, int]]) -> Iterator[Job]:
        """The batches `todo`, given as (split, start, stop), in jobs of at most AT_ONCE images.

        The plain view of a batch comes first, then the views of its rows.
        """
        for split, start, stop in todo:
            rows_by_crop = self._rows_by_crop(split, start, stop)
            crops = list(rows_by_crop)
            at_once = max(1, AT_ONCE // (stop - start))
            for first in range(0, len(crops), at_once):
                chosen = crops[first : first + at_once]
                yield Job(
                    split=split,
                    start=start,
                    stop=stop,
                    crops={crop: rows_by_crop[crop] for crop in chosen},
                    last=first + at_once >= len(crops),
                )

    def _rows_by_crop(self, split: str, start: int, stop: int) -> dict[Crop, Sequence[int]]:
        """Every crop of a batch, with the rows that it is made of."""
        rows_by_crop: dict[Crop, Sequence[int]] = {PLAIN: range(start, stop)}
        for name, layout in self.splits[split].views.items():
            covered = rows_within(layout.rows, start, stop).tolist()
            if covered:
                for number in range(layout.n_view):
                    rows_by_crop[Crop(name, number)] = covered
        return rows_by_crop

    def read(self, split: str, row: int, crops: Sequence[Crop]) -> list[Tensor]:
        """The crops of one image, each uint8 (3, height, width); the file is opened once."""
        path, _ = self.listing.splits[split][row]
        image = self.listing.open(path)
        tensors = []
        for crop in crops:
            if crop == PLAIN:
                tensors.append(self.encoder.preprocess(image))
                continue
            box, mirror = self.view_sets[crop.view_set].show(image.size, path, crop.number)
            tensors.append(self.encoder.preprocess(image, box=box, mirror=mirror))
        return tensors


def rows_within(rows: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Those of the ascending `rows` that lie in start..stop."""
    return rows[view_positions(rows, start, stop)]


def _versions(encoder: Encoder) -> dict[str, str]:
    """What made the file: recorded in it, but not part of its id."""
    packages = ("torch", "torchvision", "open_clip_torch", "pillow", "numpy", "h5py")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions["device"] = encoder.device.type
    versions["precision"] = encoder.precision
    return versions

"""From images to rows: what one extraction stores, and the loop that reads, encodes and writes it."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cliad.cache import store, views
from cliad.cache.datasets.base import Listing
from cliad.cache.encoder import Encoder, EncoderError
from cliad.cache.loader import PLAIN, Crop, Job, Loader, Read
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

    def header(self, batch: int) -> store.Header:
        return store.Header(
            self.dataset, self.encoder.name, self.encoder.encoder_id, self.recipe, batch, dtype=self.dtype, versions=_versions(self.encoder)
        )

    @cached_property
    def recipe(self) -> dict:
        """All that decides the rows: the image id is its hash."""
        listed = {name: ([path for path, _ in rows], [y for _, y in rows]) for name, rows in self.listing.splits.items()}
        recipe = {
            "files": store.file_list_hash(listed),
            "encoder": dict(self.encoder.image_recipe),
            "dtype": self.dtype,
            "parts": list(self.parts),
        }
        if self.listing.mark:
            recipe["mark"] = self.listing.mark
        if self.view_sets:
            covered = "all" if self.view_rows is None else store.recipe_id({"rows": list(self.view_rows)})
            recipe["views"] = views.recipe(self.view_sets, covered)
        return recipe

    @cached_property
    def splits(self) -> dict[str, store.SplitLayout]:
        columns = {part: self.encoder.parts[part] for part in self.parts}
        return {
            name: store.SplitLayout([path for path, _ in rows], np.array([y for _, y in rows], np.int32), columns, self._views(name))
            for name, rows in self.listing.splits.items()
        }

    def _views(self, split: str) -> dict[str, store.Views]:
        if split != "train":
            return {}
        rows = np.arange(len(self.listing.splits[split])) if self.view_rows is None else np.array(self.view_rows, np.int64)
        return {name: store.Views(views.n_view, rows, views.how) for name, views in self.view_sets.items()}

    @property
    def nbytes(self) -> int:
        """Size of the rows on the disk."""
        numbers = 0
        for split in self.splits.values():
            numbers += len(split.labels) * sum(int(np.prod(shape)) for shape in split.columns.values())
            numbers += sum(view.n_view * len(view.rows) * self.encoder.dim for view in split.views.values())
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
                yield Job(split, start, stop, {name: crops[name] for name in names[i : i + at_once]}, i + at_once >= len(names))

    def read(self, split: str, row: int, crops: Sequence[Crop]) -> list[Tensor]:
        """The crops of one image, each uint8 (3, height, width)."""
        path = self.listing.splits[split][row][0]
        image = self.listing.open(path)
        shown = [(None, False) if crop == PLAIN else self.view_sets[crop[0]].show(image.size, path, crop[1]) for crop in crops]
        return [self.encoder.preprocess(image, box=box, mirror=mirror) for box, mirror in shown]


def _versions(encoder: Encoder) -> dict[str, str]:
    """What made the file: recorded in it, no part of its id."""
    packages = ("torch", "torchvision", "open_clip_torch", "pillow", "numpy", "h5py")
    return {name: importlib.metadata.version(name) for name in packages} | {"device": encoder.device.type, "precision": encoder.precision}


@dataclass(frozen=True)
class Progress:
    """How far an extraction is: images done and in all, images a second, share of the time spent waiting for images."""

    done: int
    total: int
    rate: float
    waiting: float


@dataclass(frozen=True)
class Filled:
    """What filling did: images, seconds, seconds spent waiting for images, and the unreadable images with the reason."""

    images: int
    seconds: float
    waited: float
    unreadable: list[tuple[str, str]]


def fill(path: Path, job: Extraction, *, workers: int, progress: Callable[[Progress], None]) -> Filled:
    """Fill the rows of `path`.part that are still to do, and give the file its name.

    Raises:
        CacheError: the disk is full or cannot be written.
        EncoderError: features that are not finite.
        torch.OutOfMemoryError: the encoder's memory does not hold a batch.
    """
    encoder, rows, unreadable = job.encoder, job.listing.splits, []
    with store.Writer(path) as writer:
        todo, total = writer.todo(), sum(map(len, rows.values()))
        left = sum(stop - start for _, start, stop in todo)
        shape = tuple(encoder.preprocess(_blank()).shape)
        loader = Loader(job.jobs(todo), job.read, shape=shape, workers=workers, pin=encoder.device.type == "cuda")
        begin, done = time.perf_counter(), 0
        for batch, arrays, problems in _encoded(job, loader, writer.cache.batch):
            status = np.full(batch.stop - batch.start, store.DONE, np.uint8)
            status[[row - batch.start for row in problems]] = store.UNREADABLE
            writer.write(batch.split, batch.start, _blanked(job, batch, arrays, problems), status)
            unreadable += [(f"{batch.split} {rows[batch.split][row][0]}", why) for row, why in problems.items()]
            done += len(status)
            seconds = time.perf_counter() - begin
            progress(Progress(total - left + done, total, done / seconds, loader.waited / seconds))
        writer.finish()
    return Filled(left, time.perf_counter() - begin, loader.waited, unreadable)


def _blank():
    from PIL import Image

    return Image.new("RGB", (64, 64))


def _encoded(job: Extraction, loader: Loader, size: int) -> Iterator[tuple[Job, dict[str, np.ndarray], dict[int, str]]]:
    """Per batch of the cache: its last job, the arrays to write, and the unreadable rows.

    A job's features are fetched from the device when the next job is under way there.
    """
    arrays: dict[str, list[np.ndarray]] = {}
    problems: dict[int, str] = {}
    for read, features in _one_behind((read, _encode(job, read, size)) for read in loader):
        problems |= dict(read.problems)
        for name, x in features:
            arrays.setdefault(name, []).append(x.cpu().numpy())
        if read.job.last:
            dim = (job.encoder.dim,)
            empty = {f"views/{name}": np.zeros((v.n_view, 0, *dim)) for name, v in job.splits[read.job.split].views.items()}
            stacked = {name: np.stack(x) if name.startswith("views/") else x[0] for name, x in arrays.items()}
            yield read.job, empty | stacked, problems
            arrays, problems = {}, {}


def _one_behind(items):
    before = None
    for item in items:
        if before is not None:
            yield before
        before = item
    if before is not None:
        yield before


def _encode(job: Extraction, read: Read, size: int) -> list[tuple[str, Tensor]]:
    """(name of the array, rows on the device) of all crops of a job. The plain view is padded to the batch size of the file."""
    found = []
    for crop, images in read.images.items():
        if crop == PLAIN:
            n = len(images)
            padding = torch.zeros((size - n, *images.shape[1:]), dtype=images.dtype)
            parts = job.encoder.encode_parts(torch.cat([images, padding]) if n < size else images, job.parts)
            found += [(name, x[:n]) for name, x in parts.items()]
        else:
            found.append((f"views/{crop[0]}", job.encoder.encode_images(images)))
    return found


def _blanked(job: Extraction, batch: Job, arrays: Mapping[str, np.ndarray], problems: Mapping[int, str]) -> dict[str, np.ndarray]:
    """The arrays as they are stored: rows of unreadable images zero, all else finite."""
    bad, stored = np.array(sorted(problems), np.int64), {}
    for name, x in arrays.items():
        x = np.array(x, np.float32)
        if name.startswith("views/"):
            covered = job.splits[batch.split].views[name.removeprefix("views/")].rows
            first, last = np.searchsorted(covered, [batch.start, batch.stop])
            x[:, np.isin(covered[first:last], bad)] = 0
        else:
            x[bad - batch.start] = 0
        with np.errstate(over="ignore"):
            stored[name] = x.astype(job.dtype)
        if not np.isfinite(stored[name]).all():
            where = f"{batch.split} rows {batch.start} to {batch.stop - 1}"
            raise EncoderError(f"{name} of {where} are not finite in {job.dtype}; try --dtype float32, and check the weights")
    return stored

"""The loop of an extraction: read, encode, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cliad.cache.encoders.base import EncoderError
from cliad.cache.extract.job import Extraction
from cliad.cache.extract.reading import PLAIN, Job, Loader, Read
from cliad.cache.file.layout import DONE, UNREADABLE
from cliad.cache.file.write import Writer


@dataclass(frozen=True)
class Progress:
    """How far an extraction is: images done and in all, images a second, share of the time spent waiting for images."""

    done: int
    total: int
    rate: float
    waiting: float


@dataclass(frozen=True)
class ExtractionStats:
    """What filling did: images, seconds, seconds spent waiting for images, and the unreadable images with the reason."""

    images: int
    seconds: float
    waited: float
    unreadable: list[tuple[str, str]]


def run_extraction(
    path: Path, job: Extraction, *, workers: int, progress: Callable[[Progress], None]
) -> ExtractionStats:
    """Fill the rows of `path`.part that are still to do, and give the file its name.

    Raises:
        CacheError: the disk is full or cannot be written.
        EncoderError: features that are not finite.
        torch.OutOfMemoryError: the encoder's memory does not hold a batch.
    """
    encoder, rows, unreadable = job.encoder, job.listing.splits, []
    with Writer(path) as writer, _threads(encoder.threads):
        todo, total = writer.todo(), sum(map(len, rows.values()))
        left = sum(stop - start for _, start, stop in todo)
        shape = tuple(encoder.preprocess(_blank()).shape)
        loader = Loader(
            job.jobs(todo),
            job.read,
            shape=shape,
            workers=workers,
            pin=encoder.device.type == "cuda",
        )
        begin, done = time.perf_counter(), 0
        for batch, arrays, problems in _encoded(job, loader, writer.cache.batch):
            status = np.full(batch.stop - batch.start, DONE, np.uint8)
            status[[row - batch.start for row in problems]] = UNREADABLE
            writer.write(batch.split, batch.start, _blanked(job, batch, arrays, problems), status)
            unreadable += [
                (f"{batch.split} {rows[batch.split][row][0]}", why) for row, why in problems.items()
            ]
            done += len(status)
            seconds = time.perf_counter() - begin
            progress(Progress(total - left + done, total, done / seconds, loader.waited / seconds))
        writer.finish()
    return ExtractionStats(left, time.perf_counter() - begin, loader.waited, unreadable)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many CPU threads for torch while the block runs. The number is the encoder's own, since it decides last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _blank():
    from PIL import Image

    return Image.new("RGB", (64, 64))


def _encoded(
    job: Extraction, loader: Loader, size: int
) -> Iterator[tuple[Job, dict[str, np.ndarray], dict[int, str]]]:
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
            empty = {
                f"views/{name}": np.zeros((v.n_view, 0, *dim))
                for name, v in job.splits[read.job.split].views.items()
            }
            stacked = {
                name: np.stack(x) if name.startswith("views/") else x[0]
                for name, x in arrays.items()
            }
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
            parts = job.encoder.encode_parts(
                torch.cat([images, padding]) if n < size else images, job.parts
            )
            found += [(name, x[:n]) for name, x in parts.items()]
        else:
            found.append((f"views/{crop[0]}", job.encoder.encode_images(images)))
    return found


def _blanked(
    job: Extraction, batch: Job, arrays: Mapping[str, np.ndarray], problems: Mapping[int, str]
) -> dict[str, np.ndarray]:
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
            raise EncoderError(
                f"{name} of {where} are not finite in {job.dtype}; try --dtype float32, and check the weights"
            )
    return stored

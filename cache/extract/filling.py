"""The loop of an extraction: read, encode, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cliad.cache.datasets.base import DatasetError
from cliad.cache.extract.batch import Batch, EncodedJob
from cliad.cache.extract.extraction import Extraction
from cliad.cache.extract.reading import PLAIN, Loader, Read
from cliad.cache.file.write import Writer
from cliad.errors import printable


@dataclass(frozen=True)
class Progress:
    """How far an extraction is."""

    done: int  # images
    total: int
    rate: float  # images a second
    waiting: float  # share of the time spent waiting for images


@dataclass(frozen=True)
class ExtractionStats:
    """What an extraction did."""

    images: int
    seconds: float
    waited: float  # seconds spent waiting for images
    unreadable: list[tuple[str, str]]  # images that could not be read, and why


def run_extraction(
    path: Path, extraction: Extraction, *, workers: int, progress: Callable[[Progress], None]
) -> ExtractionStats:
    """Fill the rows of `path`.part that are still to do, and give the file its name.

    Raises:
        CacheError: the disk is full or cannot be written.
        DatasetError: no image can be read.
        EncoderError: features that are not finite.
        RuntimeError: the device's memory does not hold a batch; see `is_out_of_memory`.
    """
    encoder = extraction.encoder
    unreadable = []
    with Writer(path) as writer, _threads(encoder.threads):
        todo = writer.todo()
        total = sum(len(rows) for rows in extraction.listing.splits.values())
        n_todo = sum(stop - start for _, start, stop in todo)
        loader = Loader(
            extraction.jobs(todo),
            extraction.read,
            shape=(3, *encoder.preprocess_size),
            workers=workers,
            pin=encoder.device.type == "cuda",
        )
        begin = time.perf_counter()
        done = 0
        for batch in _batches(extraction, loader, writer.cache.batch):
            writer.write(
                batch.split, batch.start, batch.as_stored(extraction.dtype), batch.status()
            )
            unreadable += _named_problems(extraction, batch)
            done += batch.stop - batch.start
            seconds = time.perf_counter() - begin
            waiting = loader.waited / seconds
            progress(Progress(total - n_todo + done, total, done / seconds, waiting))
        if len(unreadable) == total:
            name, reason = unreadable[0]
            raise DatasetError(
                f"none of the {total:,} images of {extraction.dataset} can be read, such as"
                f" {printable(name)} ({printable(reason)}); `cliad data check` says more"
            )
        writer.finish()
    return ExtractionStats(n_todo, time.perf_counter() - begin, loader.waited, unreadable)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` CPU threads while the block runs; None: as many as before.

    The number is the encoder's own, since it decides the last bits of what is computed.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _named_problems(extraction: Extraction, batch: Batch) -> list[tuple[str, str]]:
    """The unreadable images of a batch as a user knows them, and why."""
    named = []
    for row, reason in batch.problems.items():
        path, _ = extraction.listing.splits[batch.split][row]
        named.append((f"{batch.split} {path}", reason))
    return named


def _batches(extraction: Extraction, loader: Loader, size: int) -> Iterator[Batch]:
    """The batches of the cache, each as soon as its last job is encoded."""
    batch: Batch | None = None
    for encoded in _encoded_jobs(extraction, loader, size):
        if batch is None:
            batch = Batch.of(encoded.job, extraction)
        batch.add(encoded)
        if encoded.job.last:
            yield batch
            batch = None


def _encoded_jobs(extraction: Extraction, loader: Loader, size: int) -> Iterator[EncodedJob]:
    """The jobs in order, each handed on only when the next one has been started.

    A GPU works in the background once a job has been started there. While it computes the next
    job, the rows of this one are fetched and written.
    """
    previous: EncodedJob | None = None
    for read in loader:
        current = _encode(extraction, read, size)
        if previous is not None:
            yield previous
        previous = current
    if previous is not None:
        yield previous


def _encode(extraction: Extraction, read: Read, size: int) -> EncodedJob:
    """Start the encoder on the images of a job."""
    parts: dict[str, Tensor] = {}
    views: dict[str, list[Tensor]] = {}
    for crop, images in read.images.items():
        if crop == PLAIN:
            n = len(images)
            padded = extraction.encoder.encode_parts(_padded(images, size), extraction.parts)
            parts = {part: rows[:n] for part, rows in padded.items()}
        else:
            rows = extraction.encoder.encode_images(images)
            views.setdefault(crop.view_set, []).append(rows)
    return EncodedJob(read.job, read.problems, parts, views)


def _padded(images: Tensor, size: int) -> Tensor:
    """The images (n, ...) and black ones, `size` in all.

    A batch of another size may be computed in another order, so that last bits would depend on
    where a split ends.
    """
    n = len(images)
    if n == size:
        return images
    padding = torch.zeros((size - n, *images.shape[1:]), dtype=images.dtype)
    return torch.cat([images, padding])

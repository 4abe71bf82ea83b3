"""Images read ahead by threads while the encoder works.

Threads are enough, as Pillow releases Python's lock while it decodes and resizes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

AHEAD = 2  # jobs that are read while the encoder works on another


@dataclass(frozen=True)
class Crop:
    """What is shown of an image: view `number` of the view set `view_set`, or PLAIN."""

    view_set: str
    number: int


PLAIN = Crop("", 0)  # the plain view


@dataclass(frozen=True)
class Job:
    """Images for one pass of the encoder: rows start..stop of a split, or some views of them.

    The rows are one batch of the cache. `crops` has the rows that each crop is made of.
    """

    split: str
    start: int
    stop: int
    crops: Mapping[Crop, Sequence[int]]
    last: bool  # no other job of the batch follows

    @property
    def rows(self) -> list[int]:
        """All rows of which some crop is made, ascending."""
        return sorted(self.by_row())

    def by_row(self) -> dict[int, list[Crop]]:
        """The crops of every row, in the order of `crops`."""
        crops_of: dict[int, list[Crop]] = {}
        for crop, rows in self.crops.items():
            for row in rows:
                crops_of.setdefault(row, []).append(crop)
        return crops_of


@dataclass(frozen=True)
class Read:
    """A job with its images.

    `images` has uint8 (n_row, 3, height, width) for each crop, black where a row could not be
    read; `problems` has the reason for each such row.
    """

    job: Job
    images: Mapping[Crop, Tensor]
    problems: Mapping[int, str]


@dataclass(frozen=True)
class _Pending:
    """A job whose images are being read: by row, what will be its crops in the job's order."""

    job: Job
    futures: Mapping[int, Future[Sequence[Tensor]]]


class Loader:
    """Iterates over jobs with their images; `waited` counts the seconds in which none was ready."""

    def __init__(
        self,
        jobs: Iterable[Job],
        read: Callable[[str, int, Sequence[Crop]], Sequence[Tensor]],
        *,
        shape: tuple[int, ...],
        workers: int,
        pin: bool = False,
    ):
        """Nothing is read before the iteration begins.

        Args:
            jobs: taken one by one, a few ahead of the encoder.
            read: gives the crops of one image by (split, row, crops), or raises.
            shape: (3, height, width) of each crop, which is uint8.
            workers: how many threads read.
            pin: whether images lie in pinned memory, from which a GPU copies by itself.
        """
        self.waited = 0.0
        self._jobs = jobs
        self._read = read
        self._shape = shape
        self._workers = workers
        self._pin = pin

    def __iter__(self) -> Iterator[Read]:
        with ThreadPoolExecutor(self._workers, "cliad-read") as pool:
            try:
                yield from self._read_ahead(pool)
            finally:
                # Without this, an error in the loop would wait for everything that is queued.
                pool.shutdown(wait=False, cancel_futures=True)

    def _read_ahead(self, pool: ThreadPoolExecutor) -> Iterator[Read]:
        queue: deque[_Pending] = deque()
        for job in self._jobs:
            queue.append(self._submit(pool, job))
            if len(queue) > AHEAD:
                yield self._collect(queue.popleft())
        while queue:
            yield self._collect(queue.popleft())

    def _submit(self, pool: ThreadPoolExecutor, job: Job) -> _Pending:
        futures = {}
        for row, crops in job.by_row().items():
            futures[row] = pool.submit(self._read, job.split, row, crops)
        return _Pending(job, futures)

    def _collect(self, pending: _Pending) -> Read:
        started = time.perf_counter()
        results = {row: _images_or_reason(future) for row, future in pending.futures.items()}
        self.waited += time.perf_counter() - started
        problems = {}
        unused = {}  # row -> its crops that have not found their place yet
        for row, result in results.items():
            if isinstance(result, str):
                problems[row] = result
            else:
                unused[row] = iter(result)
        images = {}
        # A row's crops come in the job's order, so the next unused one is always the right one.
        for crop, rows in pending.job.crops.items():
            of_crop = self._empty(len(rows))
            for slot, row in enumerate(rows):
                of_crop[slot] = next(unused[row]) if row in unused else 0
            images[crop] = of_crop
        return Read(pending.job, images, problems)

    def _empty(self, n: int) -> Tensor:
        """Space for n images.

        It is laid out as Pillow gives them (channels last), so that filling it is a plain copy.
        """
        return torch.empty(
            (n, *self._shape),
            dtype=torch.uint8,
            memory_format=torch.channels_last,
            pin_memory=self._pin,
        )


def _images_or_reason(future: Future[Sequence[Tensor]]) -> Sequence[Tensor] | str:
    """The crops of an image, or in a few words why there are none."""
    try:
        return future.result()
    except MemoryError:
        raise
    except FileNotFoundError:
        return "there is no such file"
    except Exception as error:  # a decoder may raise anything on a bad file
        return " ".join(f"{type(error).__name__}: {error}".split())[:120]

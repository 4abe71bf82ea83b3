"""Images read ahead by threads while the encoder works. Pillow lets go of Python's lock while it decodes and resizes."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

AHEAD = 2  # jobs that are read before they are asked for

Crop = tuple[str, int]  # a view of an image: (view set, number); PLAIN is the plain view
PLAIN: Crop = ("", 0)


@dataclass(frozen=True)
class Job:
    """Rows start..stop of a split (a batch of the cache), or some views of them; `crops` names the rows that each crop is made of."""

    split: str
    start: int
    stop: int
    crops: Mapping[Crop, Sequence[int]]
    last: bool  # of its batch

    @property
    def rows(self) -> list[int]:
        """All rows of which some crop is made, ascending."""
        return sorted(self.by_row())

    def by_row(self) -> dict[int, list[Crop]]:
        """The crops of every row, in the order of `crops`."""
        found: dict[int, list[Crop]] = {}
        for crop, rows in self.crops.items():
            for row in rows:
                found.setdefault(row, []).append(crop)
        return found


@dataclass(frozen=True)
class Read:
    """A job's images: uint8 (n_row, 3, height, width) per crop, blank where a row could not be read, and why: (row, reason)."""

    job: Job
    images: Mapping[Crop, Tensor]
    problems: list[tuple[int, str]]


class Loader:
    """Iterates over jobs with their images; `waited` counts the seconds in which none was ready.

    `read(split, row, crops)` gives the crops of one image, each uint8 of `shape` (3, height, width), or raises.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        read: Callable[[str, int, Sequence[Crop]], Sequence[Tensor]],
        *,
        shape: tuple[int, ...],
        workers: int,
        pin: bool = False,
    ):
        self._jobs, self._read, self._shape, self._pin = jobs, read, shape, pin
        self._workers, self.waited = workers, 0.0

    def __iter__(self) -> Iterator[Read]:
        with ThreadPoolExecutor(self._workers, "cliad-read") as pool:
            try:
                yield from self._ahead(pool)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _ahead(self, pool: ThreadPoolExecutor) -> Iterator[Read]:
        coming: deque[tuple[Job, dict[int, Future]]] = deque()
        rest = iter(self._jobs)
        while True:
            while len(coming) <= AHEAD and (job := next(rest, None)):
                coming.append(
                    (
                        job,
                        {
                            row: pool.submit(self._read, job.split, row, crops)
                            for row, crops in job.by_row().items()
                        },
                    )
                )
            if not coming:
                return
            yield self._collect(*coming.popleft())

    def _collect(self, job: Job, futures: Mapping[int, Future]) -> Read:
        start = time.perf_counter()
        found = {row: _result(future) for row, future in futures.items()}
        self.waited += time.perf_counter() - start
        images, unread = {}, {row: iter(x) for row, x in found.items() if not isinstance(x, str)}
        for crop, rows in job.crops.items():  # in the order in which every row's own crops stand
            images[crop] = self._empty(len(rows))
            for slot, row in enumerate(rows):
                images[crop][slot] = next(unread[row]) if row in unread else 0
        return Read(job, images, [(row, why) for row, why in found.items() if isinstance(why, str)])

    def _empty(self, n: int) -> Tensor:
        """Space for n images, laid out as Pillow gives them (channels last), so that filling it is a plain copy."""
        return torch.empty(
            (n, *self._shape),
            dtype=torch.uint8,
            memory_format=torch.channels_last,
            pin_memory=self._pin,
        )


def _result(future: Future) -> Sequence[Tensor] | str:
    """The crops, or in a few words why there are none. A decoder may raise anything on a bad file."""
    try:
        return future.result()
    except MemoryError:
        raise
    except FileNotFoundError:
        return "there is no such file"
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:120]


def default_workers() -> int:
    """As many threads as cores that this process may use, at least 2."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    )
    return max(2, cores)

"""Images read ahead by threads while the encoder works. Pillow lets go of Python's lock while it decodes and resizes."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cliad.cache.store import DONE, UNREADABLE

AHEAD = 3  # batches that are read before they are asked for


@dataclass(frozen=True)
class Batch:
    """Rows start..stop of a split: images uint8 (batch, 3, height, width), those of unreadable rows blank; status (n,)."""

    split: str
    start: int
    stop: int
    images: Tensor
    status: np.ndarray
    problems: list[tuple[int, str]]  # (row, why it could not be read)


class Loader:
    """Iterates over batches of images, `todo` as (split, start, stop); `waited` is the seconds in which none was ready.

    `read(split, row)` gives the preprocessed image, uint8 (3, height, width), or raises. Every batch has `size` images,
    the last one of a split padded with blank ones.
    """

    def __init__(
        self, todo: Iterable[tuple[str, int, int]], read: Callable[[str, int], Tensor], *, size: int, workers: int, pin: bool = False
    ):
        self._todo, self._read, self._size, self._pin = list(todo), read, size, pin
        self._workers, self.waited = workers, 0.0

    def __iter__(self) -> Iterator[Batch]:
        with ThreadPoolExecutor(self._workers, "cliad-read") as pool:
            try:
                yield from self._batches(pool)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _batches(self, pool: ThreadPoolExecutor) -> Iterator[Batch]:
        coming: deque[tuple[tuple[str, int, int], list[Future]]] = deque()
        rest = iter(self._todo)
        while True:
            while len(coming) <= AHEAD and (job := next(rest, None)):
                coming.append((job, [pool.submit(self._read, job[0], row) for row in range(job[1], job[2])]))
            if not coming:
                return
            yield self._collect(*coming.popleft())

    def _collect(self, job: tuple[str, int, int], futures: list[Future]) -> Batch:
        start = time.perf_counter()
        results = [_result(future) for future in futures]
        self.waited += time.perf_counter() - start
        shape = next((x.shape for x in results if isinstance(x, Tensor)), (3, 1, 1))
        images = torch.zeros((self._size, *shape), dtype=torch.uint8, pin_memory=self._pin)
        for slot, x in enumerate(results):
            if isinstance(x, Tensor):
                images[slot] = x
        status = np.array([DONE if isinstance(x, Tensor) else UNREADABLE for x in results], np.uint8)
        problems = [(job[1] + slot, x) for slot, x in enumerate(results) if isinstance(x, str)]
        return Batch(*job, images, status, problems)


def _result(future: Future) -> Tensor | str:
    """The image, or in a few words why there is none. A decoder may raise anything on a bad file."""
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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return max(2, cores)

"""How many runs train at once: by free memory, and by less where memory runs out all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from cliad.adapters.core.head import Head
from cliad.cache.file.read import FeatureCache

Done = TypeVar("Done")
CPU_GROUP = 16  # wider groups leave the processor's own memory and are slower
CUDA_GROUP = 256


def free_memory(device: torch.device) -> int | None:
    """Bytes that a group may use: half of what is free; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 // 2 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def group_size(head: Head, cache: FeatureCache, shots: int, device: torch.device) -> int:
    """How many runs of a head are trained at once on a device; results do not depend on it."""
    most, free = (CUDA_GROUP if device.type == "cuda" else CPU_GROUP), free_memory(device)
    return most if free is None else max(1, min(most, free // _bytes_per_run(head, cache, shots)))


def _bytes_per_run(head: Head, cache: FeatureCache, shots: int) -> int:
    """A generous guess: parameters with gradient and optimiser state, the support, one minibatch forth and back, test logits."""
    n_class, dim = len(cache.classnames), cache.dim
    n = shots * n_class
    plan = head.plan(n, n_class)
    parameters = (n_class + dim) * dim + (n * dim if head.per_class else 0)
    step = (plan.batch or n) * (8 * dim + 4 * n_class) if plan.steps else 10 * n_class * dim
    return 4 * (6 * parameters + n * (3 * dim + 2 * n_class) + step + 2 * len(cache.split("test")) * n_class)


def in_parts(work: Callable[[list[int]], Done], members: Sequence[int], size: int) -> Iterator[tuple[list[int], Done]]:
    """(part, work(part)) for parts of at most `size` members; where memory runs out a part is done again in halves."""
    todo = list(members)
    while todo:
        part, done = todo[:size], None
        try:
            done = work(part)
        except (RuntimeError, MemoryError) as error:
            if len(part) == 1 or not is_out_of_memory(error):
                raise
        if done is None:  # outside the handler: its traceback held the tensors
            size = len(part) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        else:
            todo = todo[size:]
            yield part, done


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on a device or on the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)

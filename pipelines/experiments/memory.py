"""How many runs train at once: by free memory, and by less where memory runs out all the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from cliad.adapters import name_of
from cliad.adapters.clip_adapter import ClipAdapter, width
from cliad.adapters.core.head import Head
from cliad.adapters.core.lbfgs import FLOATS_PER_LOGIT
from cliad.cache.encoders.base import is_out_of_memory
from cliad.cache.file.read import FeatureCache
from cliad.pipelines.experiments.spec import SpecError
from cliad.pipelines.tower import load_tower

Done = TypeVar("Done")
CPU_GROUP = 16  # wider groups leave the processor's own memory and are slower
CUDA_GROUP = 256
# Of one run: the longest published recipe takes some ten thousand.
MOST_STEPS = 10_000_000


def free_memory(device: torch.device) -> int | None:
    """Bytes that a group may use: half of what is free; None where the system does not say."""
    if device.type == "cuda":
        # (free, total) in bytes; half is left to fragmentation and to other processes.
        return torch.cuda.mem_get_info(device)[0] // 2
    # Linux only; elsewhere a fixed number of runs is trained at once.
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = {line.split()[0]: int(line.split()[1]) for line in lines}
        return kilobytes["MemAvailable:"] * 1024 // 2
    except (OSError, KeyError, ValueError, IndexError):
        return None


def group_size(head: Head, cache: FeatureCache, shots: int, device: torch.device) -> int:
    """How many runs of a head are trained at once on a device; results do not depend on it."""
    most = CUDA_GROUP if device.type == "cuda" else CPU_GROUP
    free = free_memory(device)
    if free is None:
        return most
    return max(1, min(most, free // _bytes_per_run(head, cache, shots)))


def check_size(head: Head, cache: FeatureCache, shots: int) -> None:
    """Check that a run of a head has an end and fits into memory, before either is tried.

    Raises:
        HeadError: its width is none, see `cliad.adapters.clip_adapter.width`; or the prompt of a
            class is too long for the text tower.
        SpecError: more steps, or more memory, than a run can have here; or there is no text tower
            for a head that needs one.
    """
    steps = head.plan(shots * len(cache.classnames), shots).steps
    if steps > MOST_STEPS:
        raise SpecError(
            f"{name_of(head)} would take {_number(steps)} steps, at most {MOST_STEPS:,} are"
            " allowed; give fewer epochs or steps"
        )
    # A head is trained on a GPU only where its data fit into the machine's memory first.
    free = free_memory(torch.device("cpu"))
    _tower_floats(head, cache, batch=1)  # finds prompts that are too long
    needed = 4 * 6 * _hidden_parameters(head, cache)  # as below: six copies of float32
    if free is not None and needed > 2 * free:
        raise SpecError(
            f"{name_of(head)} with hidden {str(getattr(head, 'hidden', ''))[:40]} has"
            f" {_number(_hidden_parameters(head, cache))} parameters, for which"
            f" {_number(needed // 10**9)} GB are needed and {2 * free / 1e9:.1f} GB are free;"
            " give a smaller --hidden"
        )


def _tower_floats(head: Head, cache: FeatureCache, batch: int) -> int:
    """What a text tower keeps for the gradient of one run at a step on a batch.

    Raises:
        HeadError, SpecError, EncoderError: see `check_size`.
    """
    # Without texts, `require` asks for these first.
    if "tower" not in head.needs or cache.text is None:
        return 0
    tower = load_tower(cache)
    return head.prompt_tokens(tower, cache.classnames, batch) * tower.floats


def _number(value: int) -> str:
    """12,345; numbers that no line has room for are 1e+40."""
    return f"{value:,}" if value < 10**15 else f"about 10^{len(str(value)) - 1}"


def _hidden_parameters(head: Head, cache: FeatureCache) -> int:
    """The parameters of a head whose size the user chooses; 0 for one that has its size by itself.

    A bottleneck leads from dim to `hidden` and back, once for images and once for texts.
    """
    hidden = getattr(head, "hidden", None)
    if hidden is None:
        return 0
    n_branch = len(head.branches) if isinstance(head, ClipAdapter) else 1
    return 2 * n_branch * cache.dim * width(hidden, cache.dim)


def _bytes_per_run(head: Head, cache: FeatureCache, shots: int) -> int:
    """A generous guess of the memory that one more run of a group takes."""
    n_class = len(cache.classnames)
    dim = cache.dim
    n = shots * n_class
    plan = head.plan(n, shots)
    # Parameters, with their gradient and what the optimiser keeps: at most six copies.
    parameters = (n_class + dim) * dim
    if head.new_classes != "text":
        parameters += n * dim
    parameters += _hidden_parameters(head, cache)
    # One minibatch, forward and backward; a closed form works on classes instead.
    width = dim + _columns_width(head, cache)
    step = 10 * n_class * dim
    if plan.steps or plan.batch:
        of_logits = FLOATS_PER_LOGIT * n_class
        per_item = 8 * width + of_logits + head.floats_per_item(n_class, dim, width)
        step = (plan.batch or n) * per_item
    support = n * (3 * width + 2 * n_class)
    step += _tower_floats(head, cache, plan.batch or n)
    # Test logits, and their softmax while they are scored.
    test_logits = 2 * len(cache.split("test")) * n_class
    floats = 6 * parameters + support + step + test_logits
    return 4 * floats  # bytes of float32


def _columns_width(head: Head, cache: FeatureCache) -> int:
    """The numbers of a row that stand behind its feature; of a column that is missing, none."""
    width = 0
    for name in head.columns():
        column = cache.column("train", name)
        if column is not None:
            width += math.prod(column.shape[1:])
    return width


def in_parts(
    work: Callable[[list[int]], Done], members: Sequence[int], size: int
) -> Iterator[Done]:
    """work(part) for parts of at most `size` members, in their order.

    Where memory runs out, the part is done again in halves, and so are those behind it.
    """
    left = list(members)
    while left:
        part = left[:size]
        done = _unless_out_of_memory(work, part)
        if done is None:
            size = len(part) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        else:
            left = left[size:]
            yield done


def _unless_out_of_memory(work: Callable[[list[int]], Done], part: list[int]) -> Done | None:
    """work(part), or None where memory ran out."""
    # A function of its own: a traceback holds the tensors of the failed work until this returns.
    try:
        return work(part)
    except (RuntimeError, MemoryError) as error:
        if len(part) == 1 or not is_out_of_memory(error):
            raise
        return None

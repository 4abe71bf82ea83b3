"""What is wrong inside a cache file: rows still to do, damaged rows, impossible numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cliad.cache.file.index import damage_as_cache_error
from cliad.cache.file.layout import (
    DONE,
    TO_DO,
    UNREADABLE,
    CacheError,
    batch_checksum,
    covered_rows_array,
    file_list_hash,
    is_view_array,
    view_positions,
)
from cliad.cache.file.read import FeatureCache, open_cache

# Wider than what an import accepts as rows of length one, so that no import fails here.
UNIT_TOLERANCE = 1e-2


def verify(path: Path) -> list[str]:
    """Everything that is wrong with a cache file, one line each; empty when it is in order.

    Reads every row once. A file that cannot be opened gives such a line too: nothing is raised,
    whatever the file holds.
    """
    try:
        # Damaged bytes may also give arrays of types and axes that no check below expects.
        with damage_as_cache_error(path):
            return _all_problems(open_cache(path))
    except CacheError as error:
        return [str(error)]


def _all_problems(cache: FeatureCache) -> list[str]:
    prompt_sets = [cache.with_prompts(name) for name in cache.prompt_sets]
    # First all that can be seen without rows: where a shape is wrong, rows cannot be read by it.
    lines: list[str] = []
    for split in cache.split_names:
        lines += _shape_problems(cache, split)
    for prompts in prompt_sets:
        lines += _text_problems(prompts)
    if lines:
        return lines

    lines = problems(cache)
    for prompts in prompt_sets:
        lines += _label_problems(prompts)
    if cache.unit_rows:
        lines += _unit_problems(cache)
    return lines


def problems(cache: FeatureCache) -> list[str]:
    """Everything that is wrong with the rows of a cache, one line each.

    Rows that are to do, damaged or not finite, and lists of images that do not match their id.
    """
    lines = []
    file_lists = {}  # the paths and labels that the image id was made from
    for name in cache.split_names:
        split = cache.split(name)
        file_lists[name] = (split.paths(), split.y)
        n_to_do = int((split.status == TO_DO).sum())
        if n_to_do > 0:
            lines.append(f"{name}: {n_to_do} rows are still to do; run the same extract again")
        for start in range(0, len(split), cache.batch):
            stop = min(start + cache.batch, len(split))
            lines += _batch_problems(cache, name, start, stop)
    if cache.recipe.get("files") != file_list_hash(file_lists):
        lines.append("the list of paths and labels does not match the image id")
    text = cache.text
    if text is not None and not np.isfinite(text).all():
        lines.append(_text_not_finite(cache))
    return lines


# ----------------------------------------------------------------------------------------- shapes


def _shape_problems(cache: FeatureCache, split: str) -> Iterator[str]:
    root = f"splits/{split}/"
    shapes = {}
    for full_name, array in cache.arrays.items():
        if full_name.startswith(root):
            shapes[full_name.removeprefix(root)] = array.shape
    n = shapes["labels"][0]
    if shapes["features"] != (n, cache.dim):
        yield f"{split}: features are {shapes['features']}, expected {(n, cache.dim)}"
    for name, shape in shapes.items():
        if is_view_array(name):
            continue
        expected = math.ceil(n / cache.batch) if name == "checksums" else n
        if shape[0] != expected:
            yield f"{split}: {name} has {shape[0]} rows, expected {expected}"
    for name in cache.row_arrays(split):
        if is_view_array(name):
            yield from _view_problems(cache, split, name, n)


def _view_problems(cache: FeatureCache, split: str, name: str, n: int) -> Iterator[str]:
    """Views (n_view, n_row, dim) need their row numbers (n_row,), ascending and below n."""
    shape = cache.arrays[f"splits/{split}/{name}"].shape
    rows_name = covered_rows_array(name)
    rows = cache.column(split, rows_name)
    n_row = 0 if rows is None else len(rows)
    if rows is None or shape[1:] != (n_row, cache.dim):
        yield f"{split}: {name} is {shape}, expected (n_view, {n_row}, {cache.dim})"
    elif n_row > 0 and (rows[0] < 0 or rows[-1] >= n or (np.diff(rows) <= 0).any()):
        yield f"{split}: {rows_name} are not ascending row numbers below {n}"


def _text_problems(cache: FeatureCache) -> Iterator[str]:
    """What is wrong with the prompt set of `cache`; one line is enough."""
    where = f"prompts '{cache.prompts}'"
    expected = (len(cache.templates), len(cache.classnames), cache.dim)
    stored = cache.arrays.get(f"text/{cache.prompts}/features")
    if stored is not None and stored.shape != expected:
        yield (
            f"{where}: text is {stored.shape}, expected {expected} "
            "(templates, class names, image feature width)"
        )
        return
    text = cache.text
    if text is not None and not np.isfinite(text).all():
        yield _text_not_finite(cache)
    elif not cache.logit_scale > 0:  # nan is not above 0 either
        yield f"{where}: logit scale {cache.logit_scale} is not above 0"


def _text_not_finite(cache: FeatureCache) -> str:
    return f"prompts '{cache.prompts}': not all text features are finite"


# ------------------------------------------------------------------------------------------- rows


def _batch_problems(cache: FeatureCache, split: str, start: int, stop: int) -> Iterator[str]:
    batch = _stored_batch(cache, split, start, stop)
    if not all(np.isfinite(rows).all() for rows in batch.values()):
        yield f"{split}: rows {start} to {stop - 1} hold values that are not finite"
    checksums = cache.read(f"splits/{split}/checksums")
    if batch_checksum(batch) != checksums[start // cache.batch]:
        yield f"{split}: rows {start} to {stop - 1} are damaged (their checksum differs)"


def _stored_batch(cache: FeatureCache, split: str, start: int, stop: int) -> dict[str, np.ndarray]:
    """Rows `start` to `stop` of all arrays that extraction filled, as `Writer.write` got them."""
    batch = {}
    for name in cache.row_arrays(split):
        full_name = f"splits/{split}/{name}"
        rows = cache.read(full_name)
        if is_view_array(name):
            view_rows = cache.read(covered_rows_array(full_name))
            batch[name] = rows[:, view_positions(view_rows, start, stop)]
        else:
            batch[name] = rows[start:stop]
    return batch


def _label_problems(cache: FeatureCache) -> Iterator[str]:
    n_class = len(cache.classnames)
    for name in cache.split_names:
        split = cache.split(name)
        nameless = split.y[(split.y < 0) | (split.y >= n_class)]
        if len(nameless) > 0:
            yield (
                f"{name}: label {nameless[0]} has no class name ({n_class} names in prompts "
                f"'{cache.prompts}'; {len(nameless)} such rows)"
            )
        if (split.status > UNREADABLE).any():
            yield f"{name}: status {split.status.max()} is none of 0 to do, 1 done, 2 unreadable"


def _unit_problems(cache: FeatureCache) -> Iterator[str]:
    for name in cache.split_names:
        split = cache.split(name)
        # Batch by batch, as a float32 copy of a whole split may not fit in memory.
        for start in range(0, len(split), cache.batch):
            stop = start + cache.batch
            done = split.status[start:stop] == DONE
            rows = np.asarray(split.x[start:stop], np.float32)[done]
            if (abs(np.linalg.norm(rows, axis=1) - 1) > UNIT_TOLERANCE).any():
                yield (
                    f"{name}: rows {start} to {stop - 1} are not of length one, "
                    "which the file says they are"
                )

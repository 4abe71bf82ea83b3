"""What is wrong inside a cache file: rows to do, damaged rows, numbers that cannot be."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from cliad.cache.file.layout import DONE, TO_DO, UNREADABLE, CacheError, file_list_hash
from cliad.cache.file.read import FeatureCache, open_cache

UNIT_TOLERANCE = 1e-2  # wider than what an import calls unit rows, so that no import is found wrong


def verify(path: Path) -> list[str]:
    """All that is wrong with a cache file, one line each; empty when it is sound. Reads every row once.

    A file that cannot be opened at all is one such line: nothing is raised for what a file may hold.
    """
    try:
        caches = [open_cache(path)]
        caches += [
            open_cache(path, name) for name in caches[0].prompt_sets if name != caches[0].prompts
        ]
    except CacheError as error:
        return [str(error)]
    found = [line for split in caches[0].split_names for line in _shape_problems(caches[0], split)]
    found += [line for cache in caches for line in _text_problems(cache)]
    if found:
        return found  # the rows cannot be read by a shape that is wrong
    found = problems(caches[0]) + [line for cache in caches for line in _label_problems(cache)]
    return found + (_unit_problems(caches[0]) if caches[0].unit_rows else [])


def _shape_problems(cache: FeatureCache, split: str) -> list[str]:
    root, found = f"splits/{split}/", []
    shapes = {
        name.removeprefix(root): entry.shape
        for name, entry in cache.arrays.items()
        if name.startswith(root)
    }
    n = shapes["labels"][0]
    if shapes["features"] != (n, cache.dim):
        found.append(f"{split}: features are {shapes['features']}, expected {(n, cache.dim)}")
    for name, shape in shapes.items():
        expected = -(-n // cache.batch) if name == "checksums" else n
        if not name.startswith("views/") and shape[0] != expected:
            found.append(f"{split}: {name} has {shape[0]} rows, expected {expected}")
    for name in (
        name for name in shapes if name.startswith("views/") and not name.endswith("_rows")
    ):
        rows = cache.column(split, name + "_rows")
        if rows is None or shapes[name][1:] != (len(rows), cache.dim):
            found.append(
                f"{split}: {name} is {shapes[name]}, {0 if rows is None else len(rows)} rows are named for it"
            )
        elif len(rows) and (rows[0] < 0 or rows[-1] >= n or (np.diff(rows) <= 0).any()):
            found.append(f"{split}: {name}_rows are not ascending row numbers below {n}")
    return found


def _text_problems(cache: FeatureCache) -> list[str]:
    shape = (len(cache.templates), len(cache.classnames), cache.dim)
    entry = cache.arrays.get(f"text/{cache.prompts}/features")
    if entry is not None and entry.shape != shape:
        return [
            f"prompts '{cache.prompts}': text is {entry.shape}, expected {shape} (templates, class names, image feature width)"
        ]
    if entry is not None and not np.isfinite(cache.text).all():
        return [f"prompts '{cache.prompts}': not all text features are finite"]
    return (
        []
        if cache.logit_scale > 0
        else [f"prompts '{cache.prompts}': logit scale {cache.logit_scale} is not above 0"]
    )


def _label_problems(cache: FeatureCache) -> list[str]:
    n_class, found = len(cache.classnames), []
    for name in cache.split_names:
        split = cache.split(name)
        if len(wrong := split.y[(split.y < 0) | (split.y >= n_class)]):
            found.append(
                f"{name}: label {wrong[0]} has no class name ({n_class} names in prompts '{cache.prompts}'; {len(wrong)} such rows)"
            )
        if (split.status > UNREADABLE).any():
            found.append(
                f"{name}: status {split.status.max()} is none of 0 to do, 1 done, 2 unreadable"
            )
    return found


def _unit_problems(cache: FeatureCache) -> list[str]:
    found = []
    for name in cache.split_names:
        split = cache.split(name)
        for start in range(0, len(split), cache.batch):
            rows = np.asarray(split.x[start : start + cache.batch], np.float32)[
                split.status[start : start + cache.batch] == DONE
            ]
            if (abs(np.linalg.norm(rows, axis=1) - 1) > UNIT_TOLERANCE).any():
                found.append(
                    f"{name}: rows {start} to {start + cache.batch - 1} are not of length one, which the file says they are"
                )
    return found


def problems(cache: FeatureCache) -> list[str]:
    """All that is wrong inside a cache, a line each: rows to do, damaged or not finite, lists that do not match their id."""
    found, lists = [], {}
    for name in cache.split_names:
        split, size = cache.split(name), cache.batch
        lists[name] = split.paths(), split.y
        if (left := int((split.status == TO_DO).sum())) > 0:
            found.append(f"{name}: {left} rows are still to do; run the same extract again")
        for start in range(0, len(split), size):
            found += _batch_problems(cache, name, start, min(start + size, len(split)))
    if cache.recipe.get("files") != file_list_hash(lists):
        found.append("the list of paths and labels does not match the image id")
    if (text := cache.text) is not None and not np.isfinite(text).all():
        found.append(f"prompts '{cache.prompts}': not all text features are finite")
    return found


def _batch_problems(cache: FeatureCache, name: str, start: int, stop: int) -> list[str]:
    crc, finite = 0, True
    for array in cache.row_arrays(name):
        rows = cache.column(name, array)
        if array.startswith("views/"):
            first, last = np.searchsorted(cache.column(name, array + "_rows"), [start, stop])
            rows = rows[:, first:last]
        else:
            rows = rows[start:stop]
        rows = np.ascontiguousarray(rows)
        crc, finite = (
            zlib.crc32(memoryview(rows).cast("B") if rows.size else b"", crc),
            finite and bool(np.isfinite(rows).all()),
        )
    found = (
        [] if finite else [f"{name}: rows {start} to {stop - 1} hold values that are not finite"]
    )
    if crc != cache.column(name, "checksums")[start // cache.batch]:
        found.append(f"{name}: rows {start} to {stop - 1} are damaged (their checksum differs)")
    return found

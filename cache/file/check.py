"""What is wrong inside a cache file: rows still to do, damaged rows, impossible numbers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from cliad.cache.file.contents import (
    array_line,
    as_text,
    attribute_lines,
    differences,
    root_of,
)
from cliad.cache.file.index import damage_as_cache_error
from cliad.cache.file.layout import (
    DONE,
    TO_DO,
    CacheError,
    covered_rows_array,
    file_list_hash,
    is_view_array,
    view_positions,
)
from cliad.cache.file.read import FeatureCache, open_cache
from cliad.cache.file.table import DOCUMENTS, TEXT_DOCUMENTS

# Wider than what an import accepts as rows of length one, so that no import fails here.
UNIT_TOLERANCE = 1e-2

# After so many lines `verify` stops: a file that was copied badly may be wrong in every batch.
MOST_LINES = 50

# Bytes that are compared at a time.
PIECE = 2**24


def verify(path: Path) -> list[str]:
    """Everything that is wrong with a cache file, one line each; empty when it is in order.

    Reads every row once. A file that cannot be opened gives such a line too: nothing is raised,
    whatever the file holds.
    """
    try:
        # Damaged bytes may also give arrays of types and axes that no check below expects.
        with damage_as_cache_error(path):
            return problems(open_cache(path, any_prompts=True))
    except CacheError as error:
        return [str(error)]


def problems(cache: FeatureCache) -> list[str]:
    """Everything that is wrong with an open cache, one line each; see `verify`."""
    lines = list(islice(_problems(cache), MOST_LINES + 1))
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"stopped after {MOST_LINES} lines; the rest was not looked at"]
    return lines


def _problems(cache: FeatureCache) -> Iterator[str]:
    yield from _row_problems(cache)
    yield from _text_problems(cache)
    for name in cache.prompt_sets:
        try:
            prompts = cache.with_prompts(name)
        except CacheError as error:
            yield str(error)
            continue
        if name != cache.prompts:
            yield from _text_problems(prompts)
    if cache.schema > 1:
        yield from _content_problems(cache)
    if cache.unit_rows:
        yield from _unit_problems(cache)


def _row_problems(cache: FeatureCache) -> Iterator[str]:
    """Rows that are to do, damaged or not finite; lists of images that do not match their id."""
    for name in cache.split_names:
        split = cache.split(name)
        n_to_do = int((split.status == TO_DO).sum())
        if n_to_do > 0:
            yield f"{name}: {n_to_do} rows are still to do; run the same extract again"
        for start in range(0, len(split), cache.batch):
            stop = min(start + cache.batch, len(split))
            yield from _batch_problems(cache, name, start, stop)
    file_lists = {}  # the paths and labels that the image id was made from
    for name in cache.split_names:
        split = cache.split(name)
        file_lists[name] = (split.paths(), split.y)
    if cache.recipe.get("files") != file_list_hash(file_lists):
        yield "the list of paths and labels does not match the image id"


def unchecked(cache: FeatureCache) -> str | None:
    """What `verify` cannot see in a file of an older schema, in words; None where it sees all."""
    if cache.schema > 1:
        return None
    return "schema 1: texts, marks of rows and attributes have no checksum"


# --------------------------------------------------------------------------------------- contents


def _text_problems(cache: FeatureCache) -> Iterator[str]:
    """What is wrong with the values of the prompt set of `cache`."""
    for name in ("features", "pre_projection"):
        full_name = f"text/{cache.prompts}/{name}"
        if full_name in cache.arrays and not _all_finite(cache.read(full_name)):
            yield f"prompts '{cache.prompts}': not all text {name} are finite"


def _content_problems(cache: FeatureCache) -> Iterator[str]:
    """What differs between the lists of contents and what the file holds."""
    lines: dict[str, list[str]] = {}
    for name, array in cache.arrays.items():
        # A list does not list itself.
        if name.rpartition("/")[2] != "contents":
            line = array_line(name, array.shape, array.dtype, cache.read(name))
            lines.setdefault(root_of(name), []).append(line)
    nodes = {"": cache.attrs, **cache.view_attrs}
    for prompts, attrs in cache.text_attrs.items():
        nodes[f"text/{prompts}"] = attrs
    documents = (*DOCUMENTS, *TEXT_DOCUMENTS)
    for node, attrs in nodes.items():
        # The documents among them are arrays in the file.
        stored = {key: value for key, value in attrs.items() if key not in documents}
        lines.setdefault(root_of(node), []).extend(attribute_lines(node, stored))
    for root, found in sorted(lines.items()):
        stored_list = cache.read(f"{root}contents").tobytes()
        yield from differences(stored_list, as_text(found))


# ------------------------------------------------------------------------------------------- rows


def _batch_problems(cache: FeatureCache, split: str, start: int, stop: int) -> Iterator[str]:
    batch = _stored_batch(cache, split, start, stop)
    if not all(_all_finite(rows) for rows in batch.values()):
        yield f"{split}: rows {start} to {stop - 1} hold values that are not finite"
    checksums = cache.read(f"splits/{split}/checksums")
    status = cache.read(f"splits/{split}/status")[start:stop]
    if cache.checksum_of(batch, status) != checksums[start // cache.batch]:
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


def _all_finite(x: np.ndarray) -> bool:
    """Whether all values are finite; looked at in pieces, as each takes memory of its own."""
    step = max(1, PIECE // max(1, x[:1].nbytes))
    pieces = range(0, len(x), step)
    return all(np.isfinite(x[start : start + step]).all() for start in pieces)


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

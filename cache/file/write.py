"""Writing a cache file: the skeleton first, then its rows, each marked once it is on the disk."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cliad.cache.file.disk import disk_errors, open_for_writing, write_at
from cliad.cache.file.layout import (
    TO_DO,
    CacheError,
    Header,
    SplitLayout,
    TextSet,
    covered_rows_array,
    is_view_array,
    part_of,
    view_positions,
)
from cliad.cache.file.read import FeatureCache, open_cache
from cliad.cache.file.skeleton import (
    add_to_file,
    check_new,
    contents_arrays,
    header_arrays,
    header_attributes,
    split_arrays,
    text_arrays,
    text_attributes,
)
from cliad.cache.files import file_lock, replacing, sync_folder

# Finished rows wait at most so long for their mark. They are extracted again after a power cut.
SYNC_SECONDS = 1.0


def create(
    path: Path, header: Header, splits: Mapping[str, SplitLayout], texts: Sequence[TextSet]
) -> None:
    """Write the skeleton of the cache `path` as `path`.part, with texts but without rows.

    Raises:
        CacheError: it does not fit on the disk, or cannot be written.
    """
    attributes = header_attributes(header)
    arrays = header_arrays(header)
    for name, split in splits.items():
        arrays |= split_arrays(name, split, header)
    for text in texts:
        arrays |= text_arrays(text, header.dtype)
        attributes |= text_attributes(text)
    check_new(arrays, header.batch, path)
    arrays |= contents_arrays(arrays, attributes)
    with disk_errors(path), replacing(part_of(path)) as new:
        add_to_file(new, "w", arrays, attributes, cache=path)


def add_text(path: Path, text: TextSet) -> None:
    """Add a prompt set to a complete cache.

    It is added to a copy, which then takes the place of the file: a reader never sees half of it.

    Raises:
        CacheError: the text is of another encoder, the file has a prompt set of this name, or the
            copy does not fit on the disk or cannot be written.
    """
    cache = open_cache(path)
    # Cosines mean something only between features of one encoder.
    if text.encoder_id != cache.encoder_id:
        raise CacheError(
            f"{path.name} holds image features of encoder {cache.encoder_id}, the new prompts "
            f"were encoded by {text.encoder_id}; images and prompts need the same encoder"
        )
    if text.name in cache.prompt_sets:
        raise CacheError(
            f"{path.name} has prompts '{text.name}' already, with other templates or class names; "
            "give --prompts NAME for a new set"
        )
    _check_names_enough(cache, text)
    arrays = text_arrays(text, cache.dtype, cache.schema)
    attributes = text_attributes(text, cache.schema)
    check_new({**cache.arrays, **arrays}, cache.batch, path)
    if cache.schema > 1:
        arrays |= contents_arrays(arrays, attributes)
    with disk_errors(path), replacing(path) as new:
        needed = path.stat().st_size
        if needed > shutil.disk_usage(path.parent).free:
            raise CacheError(
                f"{path.parent} has no room for a copy of {path.name} ({needed / 1e6:.0f} MB), "
                "which adding prompts needs; free some space"
            )
        shutil.copyfile(path, new)
        add_to_file(new, "r+", arrays, attributes, cache=path)


def _check_names_enough(cache: FeatureCache, text: TextSet) -> None:
    for name in cache.split_names:
        labels = cache.split(name).y
        if len(labels) > 0 and labels.max() >= len(text.classnames):
            raise CacheError(
                f"{cache.path.name} has label {labels.max()} in {name}, the new prompts have "
                f"{len(text.classnames)} class names; give one for each label"
            )


@contextmanager
def lock_cache(path: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Hold the right to write the cache `path`; while another process has it, say who and wait.

    Raises:
        CacheError: the lock beside `path` cannot be made.
    """
    with ExitStack() as stack:
        # Only the errors of locking are translated, not those of the caller's block.
        with disk_errors(path):
            stack.enter_context(file_lock(path, log))
        yield


class BatchRange(NamedTuple):
    """Rows `start` to `stop` of a split: one batch, or what is left of a split at its end."""

    split: str
    start: int
    stop: int


class _Mark(NamedTuple):
    """The status of rows from `start` on that are written, but perhaps not on the disk yet."""

    split: str
    start: int
    status: np.ndarray


class Writer:
    """Fills the rows of `path`.part. `finish` gives the file its name.

    Rows are marked in `status` after a sync has put them on the disk. Whenever the process or the
    machine stops, each marked row is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cache = open_cache(part_of(path))
        self._descriptor = open_for_writing(self.cache.path)
        self._marks: list[_Mark] = []
        self._last_sync = time.monotonic()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            with disk_errors(self.path):
                self._sync()
        finally:
            os.close(self._descriptor)

    def todo(self) -> list[BatchRange]:
        """The batches in which a row is still to do, in order."""
        size = self.cache.batch
        batches = []
        for name in self.cache.split_names:
            status = self.cache.split(name).status
            for start in range(0, len(status), size):
                stop = min(start + size, len(status))
                # A batch is marked in one go, but a power cut may leave a part of the marks.
                if (status[start:stop] == TO_DO).any():
                    batches.append(BatchRange(name, start, stop))
        return batches

    def write(
        self, split: str, start: int, arrays: Mapping[str, np.ndarray], status: np.ndarray
    ) -> None:
        """Write one batch of n rows, from row `start` of `split` on.

        Args:
            split: the split.
            start: a multiple of the batch size.
            arrays: "features", "tokens", ... (n, ...), and "views/<name>" (n_view, k, dim), the
                views of those k of the n rows that have views.
            status: (n,) DONE or UNREADABLE.

        Raises:
            ValueError: not at the start of a batch, or arrays are missing or unknown.
            CacheError: the disk is full, or the file cannot be written.
        """
        expected = self.cache.row_arrays(split)
        if start % self.cache.batch != 0 or set(arrays) != set(expected):
            raise ValueError(
                f"expected batches of {self.cache.batch} rows with {expected}, "
                f"got {start=}, {list(arrays)=}"
            )
        # In the type of the file, as the checksum is that of the bytes on the disk.
        stored = {}
        for name in sorted(arrays):
            stored[name] = np.ascontiguousarray(arrays[name], self.cache.dtype)
        marks = np.asarray(status, np.uint8)
        checksum = self.cache.checksum_of(stored, marks)
        batch = BatchRange(split, start, start + len(status))
        with disk_errors(self.path):
            for name, rows in stored.items():
                self._write_array(batch, name, rows)
            checksums = np.array([checksum], np.uint32)
            self._put(f"splits/{split}/checksums", start // self.cache.batch, checksums)
            self._marks.append(_Mark(split, start, marks))
            if time.monotonic() - self._last_sync > SYNC_SECONDS:
                self._sync()

    def _write_array(self, batch: BatchRange, name: str, rows: np.ndarray) -> None:
        full_name = f"splits/{batch.split}/{name}"
        if not is_view_array(name):
            self._put(full_name, batch.start, rows)
            return
        # On the disk (n_view, n_row, dim) is n_view blocks of n_row rows, one after another.
        view_rows = self.cache.read(covered_rows_array(full_name))
        first = view_positions(view_rows, batch.start, batch.stop).start
        for view, rows_of_view in enumerate(rows):
            self._put(full_name, view * len(view_rows) + first, rows_of_view)

    def _put(self, name: str, first: int, rows: np.ndarray) -> None:
        """Write rows (k, ...) of a data set, where row `first` is counted over all its blocks."""
        if len(rows) == 0:
            return
        offset = self.cache.arrays[name].offset
        if offset is None:
            raise CacheError(f"{self.cache.path} has no place for {name}; extract it with --force")
        write_at(self._descriptor, rows, offset + first * rows[0].nbytes)

    def _sync(self) -> None:
        """Put all rows on the disk, then mark them. The marks follow with the next sync."""
        os.fsync(self._descriptor)
        for mark in self._marks:
            self._put(f"splits/{mark.split}/status", mark.start, mark.status)
        self._marks = []
        self._last_sync = time.monotonic()

    def finish(self) -> Path:
        """Give the file its final name, once everything is on the disk.

        Raises:
            ValueError: rows are still to do.
            CacheError: the disk is full, or the file cannot be written.
        """
        with disk_errors(self.path):
            self._sync()
            os.fsync(self._descriptor)  # the last marks
            batches = self.todo()
            if batches:
                raise ValueError(
                    f"{len(batches)} batches are still to do, the first is {batches[0]}"
                )
            # From here on the file counts as complete.
            os.replace(self.cache.path, self.path)
            sync_folder(self.path.parent)
        return self.path

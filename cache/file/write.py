"""Writing a cache file: the skeleton first, then its rows, each marked once it is synced."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from cliad.cache.file.layout import SCHEMA, TO_DO, CacheError, Header, SplitLayout, TextSet, part_of
from cliad.cache.file.read import open_cache
from cliad.cache.files import file_lock, replacing, sync_folder

SYNC_SECONDS = 1.0  # at most so much finished work is unmarked, and lost, when the power goes


@dataclass(frozen=True)
class _Array:
    """One data set of the skeleton: its shape and type, and its content where that is known at once."""

    shape: tuple[int, ...]
    dtype: np.dtype
    data: np.ndarray | None = None
    attrs: Mapping = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


def _filled(data, attrs: Mapping = {}) -> _Array:
    data = np.ascontiguousarray(data)
    return _Array(data.shape, data.dtype, data, attrs)


def _strings(values: Sequence[str]) -> _Array:
    raw = [value.encode() for value in values]
    return _filled(np.array(raw, dtype=f"S{max(map(len, raw), default=0) or 1}"))


def _split_arrays(name: str, split: SplitLayout, header: Header) -> dict[str, _Array]:
    n, dtype, root = len(split.labels), np.dtype(header.dtype), f"splits/{name}"
    arrays = {
        f"{root}/{column}": _Array((n, *shape), dtype) for column, shape in split.columns.items()
    }
    arrays |= {
        f"{root}/labels": _filled(np.asarray(split.labels, np.int32)),
        f"{root}/paths": _strings(split.paths),
        f"{root}/status": _filled(np.zeros(n, np.uint8)),
        f"{root}/checksums": _filled(np.zeros(-(-n // header.batch), np.uint32)),
    }
    for view, spec in split.views.items():
        shape = (spec.n_view, len(spec.rows), *split.columns["features"])
        arrays[f"{root}/views/{view}"] = _Array(shape, dtype, attrs=spec.how)
        arrays[f"{root}/views/{view}_rows"] = _filled(np.asarray(spec.rows, np.int64))
    return arrays


def _text_arrays(text: TextSet, dtype: str) -> dict[str, _Array]:
    root = f"text/{text.name}"
    arrays = {
        f"{root}/templates": _strings(text.templates),
        f"{root}/classnames": _strings(text.classnames),
    }
    for name in ("features", "pre_projection"):
        if (rows := getattr(text, name)) is not None:
            arrays[f"{root}/{name}"] = _filled(np.asarray(rows, dtype))
    return arrays


def _text_attrs(text: TextSet) -> dict[str, dict]:
    attrs = {"text_id": text.text_id, "text_recipe": _json(text.recipe)}
    return {
        f"text/{text.name}": attrs
        | {"encoder_id": text.encoder_id, "logit_scale": float(text.logit_scale)}
    }


def _json(value) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _put_attrs(node, attrs: Mapping) -> None:
    for key, value in attrs.items():
        node.attrs[key] = np.bytes_(value.encode()) if isinstance(value, str) else value


def _add_to_file(
    path: Path, mode: str, arrays: Mapping[str, _Array], attrs: Mapping[str, Mapping]
) -> None:
    """Add data sets and attributes to an HDF5 file, reserve its space on the disk, then write the contents known at once."""
    needed, free = (
        sum(array.nbytes for array in arrays.values()),
        shutil.disk_usage(path.parent).free,
    )
    if needed + 2**20 > free:  # h5py on a full disk may end in a crash, so it never gets there
        raise CacheError(
            f"{path.parent} has {free / 1e6:.0f} MB free, {path.name} needs {needed / 1e6:.0f} MB; free some or give --cache DIR"
        )
    with h5py.File(path, mode, locking=False) as file:
        for name, array in arrays.items():
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_layout(h5py.h5d.CONTIGUOUS)
            plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            plan.set_obj_track_times(False)
            _put_attrs(file.create_dataset(name, array.shape, array.dtype, dcpl=plan), array.attrs)
        for name, values in attrs.items():
            _put_attrs(file[name], values)
        offsets = {name: file[name].id.get_offset() for name in arrays}
    with _open_rw(path) as fd:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, os.fstat(fd).st_size)
        for name, array in arrays.items():
            if array.data is not None and array.nbytes:
                _write_at(fd, array.data, offsets[name])
        os.fsync(fd)


def create(
    path: Path, header: Header, splits: Mapping[str, SplitLayout], texts: Sequence[TextSet]
) -> None:
    """Write the skeleton of the cache `path` under `path`.part: all of it but the rows, which are still to do."""
    arrays, attrs = (
        {},
        {
            "/": {
                "schema": SCHEMA,
                "dataset": header.dataset,
                "encoder": header.encoder,
                "encoder_id": header.encoder_id,
            }
        },
    )
    attrs["/"] |= {
        "image_id": header.image_id,
        "image_recipe": _json(header.recipe),
        "batch": header.batch,
    }
    attrs["/"] |= {"unit_rows": int(header.unit_rows), "versions": _json(header.versions)}
    for name, split in splits.items():
        arrays |= _split_arrays(name, split, header)
    for text in texts:
        arrays |= _text_arrays(text, header.dtype)
        attrs |= _text_attrs(text)
    with _replacing_cache(part_of(path)) as new:
        _add_to_file(new, "w", arrays, attrs)


def add_text(path: Path, text: TextSet) -> None:
    """Add a prompt set to a finished cache: on a copy that then takes its place, so that readers never see half of it."""
    cache = open_cache(path)
    if text.encoder_id != cache.attrs["encoder_id"]:
        raise CacheError(
            f"{path.name} holds features of encoder {cache.attrs['encoder_id']}, the text is of {text.encoder_id}; they share no space"
        )
    if text.name in cache.prompt_sets:
        raise CacheError(
            f"{path.name} has prompts '{text.name}' already, with other templates or class names; give --prompts NAME for a new set"
        )
    with _replacing_cache(path) as new:
        if (needed := path.stat().st_size) > shutil.disk_usage(path.parent).free:
            raise CacheError(
                f"{path.parent} has no room for a copy of {path.name} ({needed / 1e6:.0f} MB), which adding prompts needs"
            )
        shutil.copyfile(path, new)
        _add_to_file(new, "r+", _text_arrays(text, cache.dtype), _text_attrs(text))


@contextmanager
def _open_rw(path: Path) -> Iterator[int]:
    fd = _open_binary(path)
    try:
        yield fd
    finally:
        os.close(fd)


def _open_binary(path: Path) -> int:
    return os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))


def _write_at(fd: int, data: np.ndarray, offset: int) -> None:
    rest = memoryview(np.ascontiguousarray(data)).cast("B")
    os.lseek(
        fd, offset, os.SEEK_SET
    )  # os.pwrite is not to be had on every platform, and there is one writer
    while rest:
        rest = rest[os.write(fd, rest) :]


def disk_error(error: OSError, path: Path) -> CacheError:
    """What a user can do about an error of the operating system while `path` is written."""
    if error.errno == errno.ENOSPC:
        return CacheError(
            f"the disk of {path.parent} is full; free some space and run the same command again, or give --cache DIR"
        )
    reason = error.strerror or error
    return CacheError(f"cannot write {path}: {reason}; give another folder with --cache DIR")


@contextmanager
def _replacing_cache(path: Path) -> Iterator[Path]:
    """`replacing` with the errors of a cache."""
    try:
        with replacing(path) as new:
            yield new
    except OSError as error:
        raise disk_error(error, path) from None


@contextmanager
def lock_cache(path: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Hold the right to write the cache `path`; while another process has it, say who and wait.

    Raises:
        CacheError: the lock beside `path` cannot be made.
    """
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(path, log))
        except OSError as error:
            raise disk_error(error, path) from None
        yield


class Writer:
    """Fills the rows of `path`.part. Rows are marked once they are synced; `finish` gives the file its name.

    write(split, start, arrays, status): arrays maps "features", "tokens", ... to (n, ...) rows from `start` on, and
    "views/<name>" to (n_view, k, dim): the views of those k of the n rows that the view covers.
    """

    def __init__(self, path: Path):
        self.path, self.cache = path, open_cache(part_of(path))
        self._fd = _open_binary(self.cache.path)
        self._marks: list[tuple[np.ndarray, int]] = []
        self._synced = time.monotonic()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error) -> None:
        try:
            self._sync()
        except OSError as failure:
            raise disk_error(failure, self.path) from None
        finally:
            os.close(self._fd)

    def todo(self) -> list[tuple[str, int, int]]:
        """The batches (split, start, stop) that still want rows, in order; a batch half marked is one of them."""
        size, left = self.cache.batch, []
        for name in self.cache.split_names:
            status = self.cache.split(name).status
            left += [
                (name, i, min(i + size, len(status)))
                for i in range(0, len(status), size)
                if (status[i : i + size] == TO_DO).any()
            ]
        return left

    def write(
        self, split: str, start: int, arrays: Mapping[str, np.ndarray], status: np.ndarray
    ) -> None:
        if start % self.cache.batch or set(arrays) != set(self.cache.row_arrays(split)):
            raise ValueError(
                f"batches of {self.cache.batch} with {self.cache.row_arrays(split)} are asked; however: {start=}, {list(arrays)=}"
            )
        crc = 0
        try:
            for name in sorted(arrays):
                rows = np.ascontiguousarray(arrays[name], self.cache.dtype)
                crc = zlib.crc32(memoryview(rows).cast("B") if rows.size else b"", crc)
                self._write_rows(split, name, start, rows, len(status))
            self._put(
                f"splits/{split}/checksums", start // self.cache.batch, np.array([crc], np.uint32)
            )
            offset = self.cache.arrays[f"splits/{split}/status"].offset + start
            self._marks.append((np.asarray(status, np.uint8), offset))
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self._sync()
        except OSError as error:
            raise disk_error(error, self.path) from None

    def _write_rows(self, split: str, name: str, start: int, rows: np.ndarray, n: int) -> None:
        where = f"splits/{split}/{name}"
        if not name.startswith("views/"):
            return self._put(where, start, rows)
        first, n_row = (
            np.searchsorted(self.cache.read(where + "_rows"), start),
            self.cache.arrays[where].shape[1],
        )
        for view, of_view in enumerate(rows):
            self._put(where, view * n_row + first, of_view)

    def _put(self, name: str, row: int, rows: np.ndarray) -> None:
        """Write rows at a flat row number, where the last axes of `rows` make up one row."""
        entry = self.cache.arrays[name]
        if len(rows):
            _write_at(self._fd, rows, entry.offset + int(row) * rows[0].nbytes)

    def _sync(self) -> None:
        os.fsync(self._fd)
        for status, offset in self._marks:
            _write_at(self._fd, status, offset)
        self._marks, self._synced = [], time.monotonic()

    def finish(self) -> Path:
        """Sync all, check that no row is left to do, and give the file its final name."""
        try:
            self._sync()
            os.fsync(self._fd)
            if left := self.todo():
                raise ValueError(f"{len(left)} batches are still to do, the first is {left[0]}")
            os.replace(self.cache.path, self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise disk_error(error, self.path) from None
        return self.path

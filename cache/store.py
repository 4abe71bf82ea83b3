"""The feature cache: one HDF5 file per image identity. The only module that imports h5py.

Layout (schema 1). Every data set is contiguous, every string UTF-8 of fixed length:

    /                                  attributes: schema dataset encoder encoder_id image_id image_recipe batch unit_rows versions
    /splits/<split>/features           (n, dim)                    raw image features of the plain view
    /splits/<split>/labels             (n,) int32
    /splits/<split>/paths              (n,)                        in the split file's order; "" where an import knows none
    /splits/<split>/status             (n,) uint8                  0 to do, 1 done, 2 unreadable
    /splits/<split>/checksums          (n_batch,) uint32           CRC-32 of the rows of a batch, all arrays in name order
    /splits/<split>/pre_projection     (n, dim_pre)                optional
    /splits/<split>/tokens             (n, n_token, dim)           optional
    /splits/<split>/views/<name>       (n_view, n_row, dim)        optional; attributes say how they were made
    /splits/<split>/views/<name>_rows  (n_row,) int64              the split's rows that the views cover, ascending
    /text/<prompts>/features           (n_template, n_class, dim)  raw; a zero row: the class has no such sentence
    /text/<prompts>/pre_projection     (n_template, n_class, dim_text)  optional
    /text/<prompts>/templates          (n_template,)
    /text/<prompts>/classnames         (n_class,)                  attributes: text_id text_recipe encoder_id logit_scale

An id is the first 8 hex digits of the sha256 of its recipe, a JSON object that holds all that decides the numbers.

Crash safety: the skeleton is made by h5py, complete and at full size, and closed. From then on rows go to their data set's
offset past HDF5, are synced, and only then marked in `status`; HDF5's own metadata is never touched again. The file has
its final name only when it is whole (`name.h5.part` until then).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import socket
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import filelock
import h5py
import numpy as np

SCHEMA = 1
TO_DO, DONE, UNREADABLE = 0, 1, 2
SYNC_SECONDS = 1.0  # at most so much finished work is unmarked, and lost, when the power goes


class CacheError(ValueError):
    """A cache file that cannot be made, read or trusted; the message says what to do."""


def recipe_id(recipe: Mapping) -> str:
    """The 8-character id of a recipe: a JSON object, the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:8]


def file_list_hash(splits: Mapping[str, tuple[Sequence[str], np.ndarray]]) -> str:
    """sha256 over `split<TAB>label<TAB>path` in order, for splits as name -> (paths, labels)."""
    digest = hashlib.sha256()
    for name in sorted(splits):
        paths, labels = splits[name]
        digest.update("".join(f"{name}\t{y}\t{path}\n" for path, y in zip(paths, labels, strict=True)).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Views:
    """Augmented views of some rows of a split: `n_view` of each of `rows` (n_row,); `how` is stored beside them."""

    n_view: int
    rows: np.ndarray
    how: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitLayout:
    """What a split is to hold: paths (n,), labels (n,), row shapes such as {"features": (512,)}, and views by name."""

    paths: Sequence[str]
    labels: np.ndarray
    columns: Mapping[str, tuple[int, ...]]
    views: Mapping[str, Views] = field(default_factory=dict)


@dataclass(frozen=True)
class TextSet:
    """A prompt set: features (n_template, n_class, dim) raw or None, and what they were made from."""

    name: str
    features: np.ndarray | None
    templates: Sequence[str]
    classnames: Sequence[str]
    recipe: Mapping
    encoder_id: str
    logit_scale: float
    pre_projection: np.ndarray | None = None

    @property
    def text_id(self) -> str:
        return recipe_id(self.recipe)


@dataclass(frozen=True)
class Header:
    """The file's own facts. `recipe` decides the image id; `versions` is recorded only."""

    dataset: str
    encoder: str
    encoder_id: str
    recipe: Mapping
    batch: int
    dtype: str = "float16"
    unit_rows: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def image_id(self) -> str:
        return recipe_id(self.recipe)


# ---------------------------------------------------------------------------------------------------------- writing


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
    arrays = {f"{root}/{column}": _Array((n, *shape), dtype) for column, shape in split.columns.items()}
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
    arrays = {f"{root}/templates": _strings(text.templates), f"{root}/classnames": _strings(text.classnames)}
    for name in ("features", "pre_projection"):
        if (rows := getattr(text, name)) is not None:
            arrays[f"{root}/{name}"] = _filled(np.asarray(rows, dtype))
    return arrays


def _text_attrs(text: TextSet) -> dict[str, dict]:
    attrs = {"text_id": text.text_id, "text_recipe": _json(text.recipe)}
    return {f"text/{text.name}": attrs | {"encoder_id": text.encoder_id, "logit_scale": float(text.logit_scale)}}


def _json(value) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _put_attrs(node, attrs: Mapping) -> None:
    for key, value in attrs.items():
        node.attrs[key] = np.bytes_(value.encode()) if isinstance(value, str) else value


def _add_to_file(path: Path, mode: str, arrays: Mapping[str, _Array], attrs: Mapping[str, Mapping]) -> None:
    """Add data sets and attributes to an HDF5 file, reserve its space on the disk, then write the contents known at once."""
    needed, free = sum(array.nbytes for array in arrays.values()), shutil.disk_usage(path.parent).free
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


def create(path: Path, header: Header, splits: Mapping[str, SplitLayout], texts: Sequence[TextSet]) -> None:
    """Write the skeleton of the cache `path` under `path`.part: all of it but the rows, which are still to do."""
    arrays, attrs = {}, {"/": {"schema": SCHEMA, "dataset": header.dataset, "encoder": header.encoder, "encoder_id": header.encoder_id}}
    attrs["/"] |= {"image_id": header.image_id, "image_recipe": _json(header.recipe), "batch": header.batch}
    attrs["/"] |= {"unit_rows": int(header.unit_rows), "versions": _json(header.versions)}
    for name, split in splits.items():
        arrays |= _split_arrays(name, split, header)
    for text in texts:
        arrays |= _text_arrays(text, header.dtype)
        attrs |= _text_attrs(text)
    with _replacing(part_of(path)) as new:
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
    with _replacing(path) as new:
        if (needed := path.stat().st_size) > shutil.disk_usage(path.parent).free:
            raise CacheError(f"{path.parent} has no room for a copy of {path.name} ({needed / 1e6:.0f} MB), which adding prompts needs")
        shutil.copyfile(path, new)
        _add_to_file(new, "r+", _text_arrays(text, cache.dtype), _text_attrs(text))


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A new file that takes the place of `path` when it is whole, and leaves no trace when it is not."""
    new = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield new
        os.replace(new, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _disk_error(error, path) from None
    finally:
        with suppress(OSError):
            new.unlink()


def _disk_error(error: OSError, path: Path) -> CacheError:
    if error.errno == errno.ENOSPC:
        return CacheError(f"the disk of {path.parent} is full; free some space and run the same command again, or give --cache DIR")
    return CacheError(f"cannot write {path}: {error.strerror or error}; give another folder with --cache DIR")


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
    os.lseek(fd, offset, os.SEEK_SET)  # os.pwrite is not to be had on every platform, and there is one writer
    while rest:
        rest = rest[os.write(fd, rest) :]


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        fd = os.open(folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def part_of(path: Path) -> Path:
    """The name that a cache bears until it is whole."""
    return path.with_name(path.name + ".part")


@contextmanager
def hold(path: Path, tell=lambda message: None) -> Iterator[None]:
    """Hold the right to write the cache `path`; while another process has it, say who (through `tell`) and wait."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock, owner = filelock.FileLock(path.with_name(path.name + ".lock")), path.with_name(path.name + ".owner")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            who = owner.read_text() if owner.exists() else "another process"
            tell(f"{path.name} is being written by {who}; waiting for it")
            lock.acquire()
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    except OSError as error:
        raise _disk_error(error, path) from None
    try:
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


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
            raise _disk_error(failure, self.path) from None
        finally:
            os.close(self._fd)

    def todo(self) -> list[tuple[str, int, int]]:
        """The batches (split, start, stop) that still want rows, in order; a batch half marked is one of them."""
        size, left = self.cache.batch, []
        for name in self.cache.split_names:
            status = self.cache.split(name).status
            left += [(name, i, min(i + size, len(status))) for i in range(0, len(status), size) if (status[i : i + size] == TO_DO).any()]
        return left

    def write(self, split: str, start: int, arrays: Mapping[str, np.ndarray], status: np.ndarray) -> None:
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
            self._put(f"splits/{split}/checksums", start // self.cache.batch, np.array([crc], np.uint32))
            offset = self.cache.arrays[f"splits/{split}/status"].offset + start
            self._marks.append((np.asarray(status, np.uint8), offset))
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self._sync()
        except OSError as error:
            raise _disk_error(error, self.path) from None

    def _write_rows(self, split: str, name: str, start: int, rows: np.ndarray, n: int) -> None:
        where = f"splits/{split}/{name}"
        if not name.startswith("views/"):
            return self._put(where, start, rows)
        first, n_row = np.searchsorted(self.cache.read(where + "_rows"), start), self.cache.arrays[where].shape[1]
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
            _sync_folder(self.path.parent)
        except OSError as error:
            raise _disk_error(error, self.path) from None
        return self.path


# ---------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Entry:
    """Where a data set lies in the file; `offset` is None when it has no bytes."""

    offset: int | None
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Split:
    """One split on disk: x (n, dim) raw rows, memory-mapped; y (n,) labels; status (n,); paths read when asked for."""

    x: np.ndarray
    y: np.ndarray
    status: np.ndarray
    _paths: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    @property
    def readable(self) -> np.ndarray:
        """(n,) bool: rows that hold features."""
        return self.status == DONE

    def paths(self, rows=slice(None)) -> list[str]:
        return [path.decode(errors="replace") for path in np.atleast_1d(self._paths[rows])]

    def rows(self, index=slice(None), *, unit: bool = False) -> np.ndarray:
        """float32 features (n_index, dim): raw, or with rows of length one."""
        x = np.array(self.x[index], np.float32)
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) if unit else x


@dataclass(frozen=True)
class FeatureCache:
    """An open cache file. Everything is memory-mapped, so opening is quick and memory holds only the rows in use."""

    path: Path
    attrs: Mapping
    arrays: Mapping[str, _Entry]
    text_attrs: Mapping[str, Mapping]
    prompts: str

    dataset = property(lambda self: self.attrs["dataset"])
    encoder = property(lambda self: self.attrs["encoder"])
    image_id = property(lambda self: self.attrs["image_id"])
    text_id = property(lambda self: self.text_attrs[self.prompts]["text_id"])
    logit_scale = property(lambda self: float(self.text_attrs[self.prompts]["logit_scale"]))
    unit_rows = property(lambda self: bool(self.attrs["unit_rows"]))
    batch = property(lambda self: int(self.attrs["batch"]))
    recipe = property(lambda self: json.loads(self.attrs["image_recipe"]))
    versions = property(lambda self: json.loads(self.attrs["versions"]))
    text_recipe = property(lambda self: json.loads(self.text_attrs[self.prompts]["text_recipe"]))
    prompt_sets = property(lambda self: sorted(self.text_attrs))

    @property
    def fingerprint(self) -> str:
        """image_id-text_id: what a result row and a saved head bear."""
        return f"{self.image_id}-{self.text_id}"

    @property
    def dtype(self) -> str:
        return next(str(entry.dtype) for name, entry in self.arrays.items() if name.endswith("/features") and name.startswith("splits/"))

    @property
    def dim(self) -> int:
        return self.arrays[f"splits/{self.split_names[0]}/features"].shape[1]

    @property
    def split_names(self) -> list[str]:
        names = {name.split("/")[1] for name in self.arrays if name.startswith("splits/")}
        return sorted(names, key=lambda name: ({"train": 0, "val": 1, "test": 2}.get(name, 3), name))

    def row_arrays(self, split: str) -> list[str]:
        """Names of the arrays that extraction fills row by row: features, tokens, views/<name>, ..."""
        root, fixed = f"splits/{split}/", {"labels", "paths", "status", "checksums"}
        names = (name.removeprefix(root) for name in self.arrays if name.startswith(root))
        return sorted(name for name in names if name not in fixed and not name.endswith("_rows"))

    def read(self, name: str) -> np.ndarray:
        """A data set by its HDF5 name, memory-mapped read-only."""
        entry = self.arrays[name]
        if entry.offset is None:
            return np.empty(entry.shape, entry.dtype)
        return np.memmap(self.path, entry.dtype, "r", entry.offset, entry.shape)

    def split(self, name: str) -> Split:
        """Split `name`; CacheError where the file has no such split."""
        if name not in self.split_names:
            raise CacheError(f"{self.path.name} has no split '{name}'; it has {self.split_names}")
        return Split(*(self.read(f"splits/{name}/{part}") for part in ("features", "labels", "status", "paths")))

    def column(self, split: str, name: str) -> np.ndarray | None:
        """An optional array of a split, such as "pre_projection", "tokens" or "views/<name>"; None where there is none."""
        full = f"splits/{split}/{name}"
        return self.read(full) if full in self.arrays else None

    def strings(self, name: str) -> list[str]:
        return [value.decode() for value in self.read(f"text/{self.prompts}/{name}")]

    @property
    def classnames(self) -> list[str]:
        return self.strings("classnames")

    @property
    def templates(self) -> list[str]:
        return self.strings("templates")

    @property
    def text(self) -> np.ndarray | None:
        """Class text features (n_template, n_class, dim), raw, float32; None where the file has none."""
        name = f"text/{self.prompts}/features"
        return np.array(self.read(name), np.float32) if name in self.arrays else None


def _plain(value):
    return value.decode() if isinstance(value, bytes) else value


def _load_index(path: Path) -> tuple[dict, dict, dict]:
    with h5py.File(path, "r", locking=False) as file:
        attrs = {key: _plain(value) for key, value in file.attrs.items()}
        arrays: dict[str, _Entry] = {}

        def visit(name, node):
            if isinstance(node, h5py.Dataset):
                arrays[name] = _Entry(node.id.get_offset(), node.shape, node.dtype)

        file.visititems(visit)
        text_attrs = {name: {key: _plain(value) for key, value in group.attrs.items()} for name, group in file.get("text", {}).items()}
    return attrs, arrays, text_attrs


def open_cache(path: Path, prompts: str | None = None, *, any_prompts: bool = False) -> FeatureCache:
    """Open a cache file and check that its ids are those of its recipes.

    Args:
        path: the file.
        prompts: the prompt set to use; by default "default", or the only one there is.
        any_prompts: where the set meant is not there, or not named, any other does.
    Raises:
        CacheError: not there, not HDF5, truncated, of another schema, changed, or text and images of different encoders.
    """
    path = Path(path)
    if not path.is_file():
        raise CacheError(f"there is no cache file {path}; `cliad extract` makes one, `cliad datasets` lists them")
    try:
        if not h5py.is_hdf5(path):
            raise CacheError(f"{path} is not an HDF5 file ({path.stat().st_size} bytes without its signature); was it copied badly?")
        return _opened(path, prompts, any_prompts)
    except CacheError:
        raise
    except Exception as error:  # HDF5 on damaged bytes raises OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0][:90]
        raise CacheError(f"{path} cannot be read, it seems truncated or damaged ({reason}); extract it again with --force") from None


def _opened(path: Path, prompts: str | None, any_prompts: bool) -> FeatureCache:
    attrs, arrays, text_attrs = _load_index(path)
    if "schema" not in attrs or "image_recipe" not in attrs or not text_attrs:
        raise CacheError(
            f"{path} is an HDF5 file but no cliad cache; it has {sorted(arrays)[:4]}; `cliad import npz` takes arrays from elsewhere"
        )
    if attrs["schema"] != SCHEMA:
        raise CacheError(
            f"{path} has schema {attrs['schema']}, this cliad reads schema {SCHEMA}; update cliad, or extract again with --force"
        )
    if lost := _lost(attrs, arrays, text_attrs, path.stat().st_size):
        raise CacheError(f"{path} is damaged, it has lost {lost[:3]}; extract it again with --force")
    chosen = _choose_prompts(path, list(text_attrs), prompts, any_prompts)
    return _checked(FeatureCache(path, attrs, arrays, text_attrs, chosen))


def _lost(attrs: Mapping, arrays: Mapping[str, _Entry], text_attrs: Mapping[str, Mapping], size: int) -> list[str]:
    """What every cache has and this file has not: attributes, data sets, or their bytes."""
    splits = {name.split("/")[1] for name in arrays if name.startswith("splits/")}
    names = [f"splits/{split}/{part}" for split in splits or {"*"} for part in ("features", "labels", "paths", "status", "checksums")]
    names += [f"text/{name}/{part}" for name in text_attrs for part in ("templates", "classnames")]
    lost = [name for name in names if name not in arrays]
    lost += [key for key in ("dataset", "encoder", "encoder_id", "image_id", "batch", "unit_rows", "versions") if key not in attrs]
    keys = ("text_id", "text_recipe", "encoder_id", "logit_scale")
    lost += [f"{key} of text/{name}" for name, values in text_attrs.items() for key in keys if key not in values]
    return lost + [name for name, entry in arrays.items() if entry.offset is not None and entry.offset + entry.nbytes > size]


def _choose_prompts(path: Path, sets: list[str], prompts: str | None, any_prompts: bool) -> str:
    if prompts in sets:
        return prompts
    if any_prompts or (prompts is None and ("default" in sets or len(sets) == 1)):
        return "default" if "default" in sets else sets[0]
    asked = f"no prompts '{prompts}'" if prompts else "several prompt sets"
    raise CacheError(f"{path.name} has {asked}; choose one of {sorted(sets)} with --prompts NAME")


def _checked(cache: FeatureCache) -> FeatureCache:
    text = cache.text_attrs[cache.prompts]
    if not isinstance(cache.versions, dict):
        raise CacheError(f"{cache.path} is damaged, its versions are {cache.versions!r}; extract it again with --force")
    if recipe_id(cache.recipe) != cache.image_id or recipe_id(cache.text_recipe) != cache.text_id:
        raise CacheError(f"{cache.path} was changed after it was written: its ids do not match its contents; extract it again with --force")
    if cache.text_recipe.get("classnames") != cache.classnames or cache.text_recipe.get("templates") != cache.templates:
        raise CacheError(
            f"{cache.path}: class names or templates of prompts '{cache.prompts}' do not match their id; extract again with --force"
        )
    if text["encoder_id"] != cache.attrs["encoder_id"]:
        what = f"image features are of encoder {cache.attrs['encoder_id']}, the text of {text['encoder_id']}"
        raise CacheError(f"{cache.path}: {what}; the two do not share a space; extract both with one encoder")
    return cache


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
        crc, finite = zlib.crc32(memoryview(rows).cast("B") if rows.size else b"", crc), finite and bool(np.isfinite(rows).all())
    found = [] if finite else [f"{name}: rows {start} to {stop - 1} hold values that are not finite"]
    if crc != cache.column(name, "checksums")[start // cache.batch]:
        found.append(f"{name}: rows {start} to {stop - 1} are damaged (their checksum differs)")
    return found

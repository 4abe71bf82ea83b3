"""Reading a cache file: memory-mapped, checked when it is opened."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from cliad.cache.file.layout import DONE, SCHEMA, CacheError, recipe_id


@dataclass(frozen=True)
class _Entry:
    """Where a data set lies in the file; `offset` is None when it has no bytes."""

    offset: int | None
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def gather(x: np.ndarray, index) -> np.ndarray:
    """x[index] along the first axis. A few rows of a mapped file are read one by one: a map would bring in their neighbourhood too."""
    if isinstance(index, slice | int) or not isinstance(x, np.memmap):
        return x[index]
    rows = np.arange(len(x))[index]
    if rows.ndim != 1 or 8 * len(rows) > len(x):
        return x[index]
    found = np.empty((len(rows), *x.shape[1:]), x.dtype)
    to, size = (
        memoryview(found.view(np.uint8).reshape(-1)) if found.size else memoryview(b""),
        x[:1].nbytes,
    )
    with open(x.filename, "rb", buffering=0) as file:
        for slot, row in enumerate(rows.tolist()):
            file.seek(x.offset + row * size)
            if file.readinto(to[slot * size : (slot + 1) * size]) != size:
                raise CacheError(
                    f"{x.filename} ends before row {row}; extract it again with --force"
                )
    return found


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
        return [path.decode(errors="replace") for path in np.atleast_1d(gather(self._paths, rows))]

    def rows(self, index=slice(None), *, unit: bool = False) -> np.ndarray:
        """float32 features (n_index, dim): raw, or with rows of length one."""
        x = np.array(gather(self.x, index), np.float32)
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
        return next(
            str(entry.dtype)
            for name, entry in self.arrays.items()
            if name.endswith("/features") and name.startswith("splits/")
        )

    @property
    def dim(self) -> int:
        return self.arrays[f"splits/{self.split_names[0]}/features"].shape[1]

    @property
    def split_names(self) -> list[str]:
        names = {name.split("/")[1] for name in self.arrays if name.startswith("splits/")}
        return sorted(
            names, key=lambda name: ({"train": 0, "val": 1, "test": 2}.get(name, 3), name)
        )

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
        return Split(
            *(
                self.read(f"splits/{name}/{part}")
                for part in ("features", "labels", "status", "paths")
            )
        )

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
        text_attrs = {
            name: {key: _plain(value) for key, value in group.attrs.items()}
            for name, group in file.get("text", {}).items()
        }
    return attrs, arrays, text_attrs


def open_cache(
    path: Path, prompts: str | None = None, *, any_prompts: bool = False
) -> FeatureCache:
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
        raise CacheError(
            f"there is no cache file {path}; `cliad extract` makes one, `cliad datasets` lists them"
        )
    try:
        if not h5py.is_hdf5(path):
            raise CacheError(
                f"{path} is not an HDF5 file ({path.stat().st_size} bytes without its signature); was it copied badly?"
            )
        return _opened(path, prompts, any_prompts)
    except CacheError:
        raise
    except Exception as error:  # HDF5 on damaged bytes raises OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0][:90]
        raise CacheError(
            f"{path} cannot be read, it seems truncated or damaged ({reason}); extract it again with --force"
        ) from None


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
        raise CacheError(
            f"{path} is damaged, it has lost {lost[:3]}; extract it again with --force"
        )
    chosen = _choose_prompts(path, list(text_attrs), prompts, any_prompts)
    return _checked(FeatureCache(path, attrs, arrays, text_attrs, chosen))


def _lost(
    attrs: Mapping, arrays: Mapping[str, _Entry], text_attrs: Mapping[str, Mapping], size: int
) -> list[str]:
    """What every cache has and this file has not: attributes, data sets, or their bytes."""
    splits = {name.split("/")[1] for name in arrays if name.startswith("splits/")}
    names = [
        f"splits/{split}/{part}"
        for split in splits or {"*"}
        for part in ("features", "labels", "paths", "status", "checksums")
    ]
    names += [f"text/{name}/{part}" for name in text_attrs for part in ("templates", "classnames")]
    lost = [name for name in names if name not in arrays]
    lost += [
        key
        for key in (
            "dataset",
            "encoder",
            "encoder_id",
            "image_id",
            "batch",
            "unit_rows",
            "versions",
        )
        if key not in attrs
    ]
    keys = ("text_id", "text_recipe", "encoder_id", "logit_scale")
    lost += [
        f"{key} of text/{name}"
        for name, values in text_attrs.items()
        for key in keys
        if key not in values
    ]
    return lost + [
        name
        for name, entry in arrays.items()
        if entry.offset is not None and entry.offset + entry.nbytes > size
    ]


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
        raise CacheError(
            f"{cache.path} is damaged, its versions are {cache.versions!r}; extract it again with --force"
        )
    if recipe_id(cache.recipe) != cache.image_id or recipe_id(cache.text_recipe) != cache.text_id:
        raise CacheError(
            f"{cache.path} was changed after it was written: its ids do not match its contents; extract it again with --force"
        )
    if (
        cache.text_recipe.get("classnames") != cache.classnames
        or cache.text_recipe.get("templates") != cache.templates
    ):
        raise CacheError(
            f"{cache.path}: class names or templates of prompts '{cache.prompts}' do not match their id; extract again with --force"
        )
    if text["encoder_id"] != cache.attrs["encoder_id"]:
        what = f"image features are of encoder {cache.attrs['encoder_id']}, the text of {text['encoder_id']}"
        raise CacheError(
            f"{cache.path}: {what}; the two do not share a space; extract both with one encoder"
        )
    return cache

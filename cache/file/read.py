"""Opening a cache file: its index is read and checked, its arrays are memory-mapped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cliad.cache.file.hdf5 import Attributes, StoredArray
from cliad.cache.file.index import damage_as_cache_error, read_index
from cliad.cache.file.layout import CacheError, batch_checksum, recipe_id
from cliad.cache.file.rows import Split
from cliad.cache.file.table import SPLIT_ARRAYS, split_names

# Arrays of a split that describe its rows. All others hold what the encoder computed, or say which
# rows have views.
BOOKKEEPING = frozenset(SPLIT_ARRAYS) - {"features"}


@dataclass(frozen=True)
class FeatureCache:
    """An open cache file, with one of its prompt sets.

    Everything is memory-mapped: opening is quick, and memory holds only the rows in use.
    `arrays` and `view_attrs` are by HDF5 name, `text_attrs` by prompt set.
    """

    path: Path
    attrs: Attributes
    arrays: Mapping[str, StoredArray]
    text_attrs: Mapping[str, Attributes]
    view_attrs: Mapping[str, Attributes]
    prompts: str

    # ---------------------------------------------------------------- what the file is

    @property
    def schema(self) -> int:
        """The version of the file's format."""
        return self.attrs["schema"]

    @property
    def dataset(self) -> str:
        """The name of the data set whose images these are."""
        return self.attrs["dataset"]

    @property
    def encoder(self) -> str:
        """The name of the encoder, such as ViT-B-32/openai."""
        return self.attrs["encoder"]

    @property
    def encoder_id(self) -> str:
        """The id of the encoder's weights; images and texts share a space where it is equal."""
        return self.attrs["encoder_id"]

    @property
    def image_id(self) -> str:
        """The id of everything that decides the image features."""
        return self.attrs["image_id"]

    @property
    def text_id(self) -> str:
        """The id of everything that decides the text features of this prompt set."""
        return self.text_attrs[self.prompts]["text_id"]

    @property
    def fingerprint(self) -> str:
        """image_id-text_id, which result rows and run folders carry."""
        return f"{self.image_id}-{self.text_id}"

    @property
    def recipe(self) -> dict[str, Any]:
        """What the image id is the hash of."""
        return json.loads(self.attrs["image_recipe"])

    @property
    def text_recipe(self) -> dict[str, Any]:
        """What the text id is the hash of."""
        return json.loads(self.text_attrs[self.prompts]["text_recipe"])

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the packages that made the file."""
        return json.loads(self.attrs["versions"])

    @property
    def batch(self) -> int:
        """Rows that were encoded together, and that share a checksum."""
        return int(self.attrs["batch"])

    @property
    def unit_rows(self) -> bool:
        """Whether image features were imported with rows of length one; their norms are lost."""
        return bool(self.attrs["unit_rows"])

    # ---------------------------------------------------------------- images

    @property
    def split_names(self) -> list[str]:
        """The splits: train, val and test first."""
        return sorted(split_names(self.arrays), key=_split_order)

    @property
    def dtype(self) -> str:
        """The type of the features, float16 or float32."""
        return str(self._first_features.dtype)

    @property
    def dim(self) -> int:
        """The width of the features."""
        return self._first_features.shape[1]

    # The features of all splits have the same type and width; `verify` checks the widths.
    @property
    def _first_features(self) -> StoredArray:
        return self.arrays[f"splits/{self.split_names[0]}/features"]

    def split(self, name: str) -> Split:
        """One split.

        Raises:
            CacheError: the file has no such split.
        """
        if name not in self.split_names:
            raise CacheError(f"{self.path.name} has no split '{name}'; it has {self.split_names}")
        root = f"splits/{name}"
        return Split(
            x=self.read(f"{root}/features"),
            y=self.read(f"{root}/labels"),
            status=self.read(f"{root}/status"),
            _paths=self.read(f"{root}/paths"),
        )

    def column(self, split: str, name: str) -> np.ndarray | None:
        """An array of a split, such as "tokens" or "views/<name>"; None where the file lacks it."""
        full_name = f"splits/{split}/{name}"
        return self.read(full_name) if full_name in self.arrays else None

    def row_arrays(self, split: str) -> list[str]:
        """The arrays that extraction fills row by row: features, tokens, views/<name>, ..."""
        root = f"splits/{split}/"
        names = []
        for full_name in self.arrays:
            if not full_name.startswith(root):
                continue
            name = full_name.removeprefix(root)
            # The rows that views cover are known before any image is read.
            if name not in BOOKKEEPING and not name.endswith("_rows"):
                names.append(name)
        return sorted(names)

    def read(self, name: str) -> np.ndarray:
        """A data set by its HDF5 name, memory-mapped read-only."""
        return self.arrays[name].read(self.path)

    def checksum_of(self, batch: Mapping[str, np.ndarray], status: np.ndarray) -> int:
        """The checksum of a batch, of arrays and marks (n,) as the file stores them."""
        return batch_checksum(batch, status if self.schema > 1 else None)

    # ---------------------------------------------------------------- texts

    @property
    def prompt_sets(self) -> list[str]:
        """The names of all prompt sets in the file."""
        return sorted(self.text_attrs)

    def with_prompts(self, name: str) -> FeatureCache:
        """The same open file with another of its prompt sets, checked as `open_cache` checks it.

        Raises:
            CacheError: there is no such set, or it is damaged or was changed.
        """
        with damage_as_cache_error(self.path):
            chosen = _choose_prompts(self.path, self.prompt_sets, name, any_prompts=False)
            cache = dataclasses.replace(self, prompts=chosen)
            _check_ids(cache)
            _check_text(cache)
            _check_labels(cache)
        return cache

    @property
    def logit_scale(self) -> float:
        """What the encoder multiplies cosines by."""
        return float(self.text_attrs[self.prompts]["logit_scale"])

    @property
    def classnames(self) -> list[str]:
        """The class names in label order."""
        return self._strings("classnames")

    @property
    def templates(self) -> list[str]:
        """The templates, or names of what stands in their place."""
        return self._strings("templates")

    @property
    def text(self) -> np.ndarray | None:
        """Raw text features (n_template, n_class, dim) in float32; None where the file has none.

        Raises:
            CacheError: not all of them are finite.
        """
        name = f"text/{self.prompts}/features"
        if name not in self.arrays:
            return None
        # A copy, in float32 whatever the file has: text features are few, and sums need precision.
        text = np.array(self.read(name), np.float32)
        if not np.isfinite(text).all():
            raise CacheError(
                f"{self.path}: prompts '{self.prompts}': not all text features are finite; "
                "extract it again with --force"
            )
        return text

    def _strings(self, name: str) -> list[str]:
        """An array of strings of the prompt set, "classnames" or "templates"."""
        return [value.decode() for value in self.read(f"text/{self.prompts}/{name}")]


def _split_order(name: str) -> tuple[int, str]:
    """A sort key: train, val, test, then all others by name."""
    order = ("train", "val", "test")  # as the field lists them
    return (order.index(name) if name in order else len(order), name)


# ---------------------------------------------------------------------------------------- opening


def open_cache(
    path: Path, prompts: str | None = None, *, any_prompts: bool = False
) -> FeatureCache:
    """Open a cache file, and check that it is all there and that its ids are those of its recipes.

    Rows are not read; `cliad.cache.file.check` does that.

    Args:
        path: the file.
        prompts: the prompt set to use; by default "default", or the only one there is.
        any_prompts: use another prompt set where that one is missing.

    Raises:
        CacheError: the file is missing, not HDF5, truncated, of another schema or changed, it has
            no such prompts, or text and images are of different encoders.
    """
    path = Path(path)
    if not path.is_file():
        raise CacheError(
            f"there is no cache file {path}; `cliad extract` makes one, `cliad datasets` lists them"
        )
    with damage_as_cache_error(path):
        index = read_index(path)
        chosen = _choose_prompts(path, list(index.text_attrs), prompts, any_prompts)
        cache = FeatureCache(
            path, index.attrs, index.arrays, index.text_attrs, index.view_attrs, chosen
        )
        _check_ids(cache)
        _check_text(cache)
        _check_labels(cache)
    return cache


def _choose_prompts(path: Path, known: Sequence[str], wanted: str | None, any_prompts: bool) -> str:
    """The prompt set to use out of those in the file."""
    if wanted is not None and wanted in known:
        return wanted
    if any_prompts or (wanted is None and ("default" in known or len(known) == 1)):
        return "default" if "default" in known else known[0]
    found = f"no prompts '{wanted}'" if wanted else "several prompt sets"
    raise CacheError(f"{path.name} has {found}; choose one of {sorted(known)} with --prompts NAME")


def _check_ids(cache: FeatureCache) -> None:
    """An id is the hash of its recipe, so a file in which the two differ was changed."""
    images_match = recipe_id(cache.recipe) == cache.image_id
    text_matches = recipe_id(cache.text_recipe) == cache.text_id
    if not (images_match and text_matches):
        raise CacheError(
            f"{cache.path} was changed after it was written: its ids do not match its contents; "
            "extract it again with --force"
        )


def _check_text(cache: FeatureCache) -> None:
    """Class names and templates are those of the recipe, and texts share the images' encoder."""
    recipe = cache.text_recipe
    for name in ("classnames", "templates"):
        expected = recipe.get(name)
        stored = cache.arrays[f"text/{cache.prompts}/{name}"]
        # A file of a few bytes may claim millions of names. They are not read if the list is short.
        same_number = isinstance(expected, list) and (len(expected),) == stored.shape
        if not same_number or cache._strings(name) != expected:
            raise CacheError(
                f"{cache.path}: class names or templates of prompts '{cache.prompts}' do not match "
                "their id; extract again with --force"
            )
    text_encoder = cache.text_attrs[cache.prompts]["encoder_id"]
    if text_encoder != cache.encoder_id:
        raise CacheError(
            f"{cache.path}: image features are of encoder {cache.encoder_id}, text features of "
            f"{text_encoder}; extract both with one encoder"
        )


def _check_labels(cache: FeatureCache) -> None:
    """Every label has a class name."""
    (n_class,) = cache.arrays[f"text/{cache.prompts}/classnames"].shape
    for name in cache.split_names:
        labels = cache.split(name).y
        if len(labels) > 0 and labels.max() >= n_class:
            nameless = labels[labels >= n_class]
            raise CacheError(
                f"{cache.path}: {name}: label {nameless[0]} has no class name ({n_class} names in "
                f"prompts '{cache.prompts}'; {len(nameless)} such rows); extract again with --force"
            )

"""What there is: `cliad datasets` and `cliad models`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from cliad.cache.datasets import DATASETS, data_dir
from cliad.cache.datasets.base import Dataset, DatasetError, find_folder
from cliad.cache.encoders.listed import Listed, listed
from cliad.cache.file.layout import CacheError
from cliad.cache.file.read import open_cache
from cliad.cache.folder import cached, slug


@dataclass(frozen=True)
class DatasetRow:
    """A data set.

    images: how many, over all splits.
    on_disk: where it lies; "bundled" where it comes with a package, None where it was not found.
    cached: the encoders it is cached with.
    """

    name: str
    about: str
    n_class: int
    images: int
    on_disk: str | None
    cached: list[str]


def list_datasets(cache_folder: Path, data: Path | None = None) -> list[DatasetRow]:
    """All known data sets, then those that are cached under other names (a user's own, imports)."""
    data = data_dir(data)
    encoders = _cached_encoders(cache_folder)
    rows = []
    for name, dataset in DATASETS.items():
        row = DatasetRow(
            name=name,
            about=dataset.about,
            n_class=dataset.n_class,
            images=sum(dataset.counts.values()),
            on_disk=_place(dataset, data),
            cached=encoders.pop(name, []),
        )
        rows.append(row)
    # What is left are caches of data sets outside the table.
    for name, found in sorted(encoders.items()):
        rows.append(DatasetRow(name, about="", n_class=0, images=0, on_disk=None, cached=found))
    return rows


def _cached_encoders(cache_folder: Path) -> dict[str, list[str]]:
    """The encoders of all caches by data set; a damaged cache is listed as such."""
    encoders: dict[str, list[str]] = {}
    for path in cached(cache_folder):
        dataset, encoder = _source_of(path)
        encoders.setdefault(dataset, []).append(encoder)
    return encoders


def _source_of(path: Path) -> tuple[str, str]:
    """The names of a cache's data set and encoder."""
    try:
        cache = open_cache(path, any_prompts=True)
    except CacheError:
        return path.parent.name, f"damaged: {path.name}"
    return cache.dataset, cache.encoder


def _place(dataset: Dataset, data: Path | None) -> str | None:
    if dataset.bundled:
        return "bundled"
    names = (dataset.folder, *dataset.folder_aliases, dataset.name)
    try:
        return str(find_folder(data, names, (".",)).folder)
    except DatasetError:
        return None


@dataclass(frozen=True)
class ModelRow(Listed):
    """An encoder, as it is looked for."""

    def matches(self, word: str) -> bool:
        """Whether `word` is part of the name, or of name/weights; case and dashes do not matter."""
        if slug(word) in slug(self.name):
            return True
        return any(slug(word) in slug(f"{self.name}/{tag}") for tag in self.pretrained)


def list_models(word: str = "") -> list[ModelRow]:
    """The bundled encoder and all of open_clip's that have published weights.

    Args:
        word: only those with this word in a name; empty: all.
    """
    rows = [ModelRow(**asdict(encoder)) for encoder in listed()]
    if not word:
        return rows
    return [row for row in rows if row.matches(word)]

"""What there is: `cliad datasets` and `cliad models`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cliad.cache.datasets import DATASETS, data_dir
from cliad.cache.datasets.base import DatasetError, find_folder
from cliad.cache.file.layout import CacheError
from cliad.cache.file.read import open_cache
from cliad.cache.folder import cached, slug


@dataclass(frozen=True)
class DatasetRow:
    """A data set: what it is, classes and images, where it lies (None: not found, "bundled"), and the encoders it is cached with."""

    name: str
    about: str
    n_class: int
    images: int
    on_disk: str | None
    cached: list[str]


def list_datasets(cache_folder: Path, data: Path | None = None) -> list[DatasetRow]:
    """All known data sets, then those that are cached under other names (a user's own, imports)."""
    encoders = _encoders(cache_folder)
    rows = []
    for name, dataset in DATASETS.items():
        where = "bundled" if name == "digits" else _place(name, data_dir(data))
        rows.append(
            DatasetRow(
                name,
                dataset.about,
                dataset.n_class,
                sum(dataset.counts.values()),
                where,
                encoders.pop(name, []),
            )
        )
    return rows + [
        DatasetRow(name, "", 0, 0, None, found) for name, found in sorted(encoders.items())
    ]


def _encoders(cache_folder: Path) -> dict[str, list[str]]:
    """Encoders per data set of all sound caches."""
    found: dict[str, list[str]] = {}
    for path in cached(cache_folder):
        try:
            cache = open_cache(path, any_prompts=True)
            found.setdefault(cache.dataset, []).append(cache.encoder)
        except CacheError:
            found.setdefault(path.parent.name, []).append(f"damaged: {path.name}")
    return found


def _place(name: str, data: Path | None) -> str | None:
    dataset = DATASETS[name]
    try:
        return str(find_folder(data, (dataset.folder, *dataset.folder_aliases, name), (".",))[0])
    except DatasetError:
        return None


@dataclass(frozen=True)
class ModelRow:
    """An encoder: the names of its weights, the one taken by default (None: --pretrained must say)."""

    name: str
    pretrained: list[str]
    default: str | None


def list_models(word: str = "") -> list[ModelRow]:
    """The bundled encoder and all of open_clip's that have published weights, those with `word` in a name."""
    from cliad.cache.encoders import weights

    rows = [ModelRow("tiny", ["bundled"], "bundled")]
    rows += [
        ModelRow(name, tags, weights.default_tag(tags))
        for name, tags in weights.published().items()
    ]
    matches = lambda text: slug(word) in slug(text) if word else True
    return [
        row
        for row in rows
        if matches(row.name) or any(matches(f"{row.name}/{tag}") for tag in row.pretrained)
    ]

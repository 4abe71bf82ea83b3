"""The heads there are, and what each would be on the current cache.

They are read from a table beside this file, so that to list them needs no torch:
`python -m cliad.pipelines.heads_table` writes it anew where a head has changed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cliad.cache import folder as cache_folder
from cliad.cache.file.read import FeatureCache
from cliad.pipelines.experiments.find_cache import CacheChoice, check_folder, no_cache
from cliad.pipelines.experiments.spec_error import SpecError

TABLE = Path(__file__).with_name("heads.json")


@dataclass(frozen=True)
class FieldInfo:
    """A hyper-parameter: its default, what it means, and the values that it takes.

    `range` is a text to stand behind the meaning, empty where any value will do. `searched` are
    the values that `--select val` tries; None where it tries none.
    """

    name: str
    default: object
    meaning: str
    range: str
    searched: tuple | None

    def json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "default": self.default,
            "meaning": self.meaning,
            "range": self.range,
            "searched": self.searched,
        }


@dataclass(frozen=True)
class HeadInfo:
    """A head: what it is, what it needs from a cache, its hyper-parameters.

    `parameters` is how many numbers it learns on the cache that `cache` names; both are None
    without a cache, and `parameters` where the cache lacks what the head needs, or does not tell.
    """

    head: str
    what: str
    needs: tuple[str, ...]
    select: str
    hyper: tuple[FieldInfo, ...]
    parameters: int | None
    cache: str | None

    def json(self) -> dict[str, object]:
        return {
            "head": self.head,
            "what": self.what,
            "needs": self.needs,
            "select": self.select,
            "hyper": [field.json() for field in self.hyper],
            "parameters": self.parameters,
            "on": self.cache,
        }


def heads(folder: Path, dataset: str | None = None, encoder: str | None = None) -> list[HeadInfo]:
    """All heads, with the number of their parameters on the cache that is meant, if there is one.

    Args:
        folder: the cache folder.
        dataset, encoder: which cache; by default the one written last.

    Raises:
        SpecError: there is no cache of the data set and the encoder that were named.
        CacheError: several caches match, or the one found is damaged.
    """
    check_folder(folder)
    cache = cache_folder.find(folder, dataset, encoder)
    if cache is None and (dataset or encoder):
        raise SpecError(no_cache(CacheChoice(folder, dataset, encoder)))
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return [_head_info(name, row, cache) for name, row in table.items()]


def _head_info(name: str, row: Mapping[str, Any], cache: FeatureCache | None) -> HeadInfo:
    """A row of the table, as `heads_table.rows` makes it."""
    return HeadInfo(
        head=name,
        what=row["what"],
        needs=tuple(row["needs"]),
        select=row["select"],
        hyper=tuple(_field_info(field) for field in row["hyper"]),
        parameters=None if cache is None else _n_parameter(row, cache),
        cache=None if cache is None else f"{cache.dataset}, {cache.encoder}",
    )


def _field_info(field: Mapping[str, Any]) -> FieldInfo:
    searched = field["searched"]
    return FieldInfo(**{**field, "searched": None if searched is None else tuple(searched)})


def _n_parameter(row: Mapping[str, Any], cache: FeatureCache) -> int | None:
    """Learned numbers for the cache's classes at one shot.

    None where the cache lacks an input, or does not tell it: the width of a text tower's words.
    """
    if "tower" in row["needs"]:
        return None
    if "text" in row["needs"] and cache.text is None:
        return None
    sizes = {"n_class": len(cache.classnames), "dim": cache.dim}
    if "pre_projection" in row["needs"]:
        pre_projection = cache.column("train", "pre_projection")
        if pre_projection is None:
            return None
        sizes["dim_pre"] = pre_projection.shape[1]
    return sum(math.prod(lengths(axes, sizes)) for axes in row["parameters"].values())


def lengths(axes: Sequence[str | int], sizes: Mapping[str, int]) -> list[int]:
    """Lengths of axes: numbers as they are, `dim` by its size, `dim/4` a share, at least 1."""
    lengths = []
    for axis in axes:
        name, _, parts = str(axis).partition("/")
        length = int(name) if name.isdigit() else sizes[name]
        lengths.append(max(length // int(parts or 1), 1))
    return lengths

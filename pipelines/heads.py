"""The heads there are, and what each would be on the current cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path

import torch

from cliad.adapters import HEADS
from cliad.adapters.core.episode import Support
from cliad.adapters.core.head import Head, HeadError, default_of, hypers
from cliad.cache import folder as cache_folder
from cliad.cache.file.read import FeatureCache
from cliad.pipelines.experiments.find_cache import CacheChoice, check_folder, no_cache
from cliad.pipelines.experiments.spec import SpecError


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
    without a cache, and `parameters` where the cache lacks what the head needs.
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
    return [_head_info(name, head, cache) for name, head in HEADS.items()]


def _head_info(name: str, head: type[Head], cache: FeatureCache | None) -> HeadInfo:
    first_line = (head.__doc__ or "").splitlines()[0]
    return HeadInfo(
        head=name,
        what=first_line,
        needs=tuple(sorted(head.needs)),
        select=head.select,
        hyper=tuple(_field_info(spec, head) for spec in fields(head)),
        parameters=None if cache is None else _n_parameter(head(), cache),
        cache=None if cache is None else f"{cache.dataset}, {cache.encoder}",
    )


def _field_info(spec: Field, head: type[Head]) -> FieldInfo:
    return FieldInfo(
        name=spec.name,
        default=default_of(spec),
        meaning=spec.metadata["meaning"],
        range=_range_text(spec.metadata),
        searched=head.space.get(spec.name),
    )


def _range_text(rule: Mapping) -> str:
    """The values that a field takes, as ` (0 to 1)`."""
    low = rule["low"]
    high = rule["high"]
    if low is not None and high is not None:
        return f" ({low:g} to {high:g})"
    if low is not None:
        return f" (at least {low:g})"
    if rule["choices"]:
        return f" ({', '.join(map(str, rule['choices']))})"
    return ""


def _n_parameter(head: Head, cache: FeatureCache) -> int | None:
    """Learned numbers for the cache's classes at one shot; None where the cache does not suffice.

    They are counted in what `start` gives for an empty world of the same shapes.
    """
    text = cache.text
    if "text" in head.needs and text is None:
        return None
    # A head on features before the projection gets them side by side with the features.
    width = cache.dim
    if "pre_projection" in head.needs:
        pre_projection = cache.column("train", "pre_projection")
        if pre_projection is None:
            return None
        width += pre_projection.shape[1]
    n_class = len(cache.classnames)
    x = torch.zeros(1, n_class, width)  # (n_run, n, dim): one run, one item per class
    support = Support(
        x=x,
        y=torch.arange(n_class)[None],
        mask=torch.ones(1, n_class),
        text=None if text is None else torch.from_numpy(text),
        logit_scale=cache.logit_scale,
        n_class=n_class,
        counts=[n_class],
        largest_class=1,
    )
    # Shapes do not depend on what is in the tensors, so the zeros need not be realistic.
    h = hypers([head], x)
    try:
        constants = head.bind(support, h)
        parameters = head.start(constants, h, [torch.Generator().manual_seed(0)])
    except HeadError:  # the default values do not fit this cache
        return None
    return sum(value.numel() for value in parameters.values())

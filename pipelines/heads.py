"""The heads there are, and what each would be on the current cache."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from cliad.adapters import HEADS
from cliad.adapters.core.classifier import hypers
from cliad.adapters.core.episode import Support
from cliad.adapters.core.head import Head, HeadError, default_of
from cliad.cache import folder as cache_folder
from cliad.cache.file.read import FeatureCache


def heads(folder: Path, dataset: str | None = None, encoder: str | None = None) -> list[dict]:
    """What each head is, needs and takes; with its number of parameters on the cache that is meant, where there is one."""
    cache = cache_folder.find(folder, dataset, encoder)
    return [_about(name, head, cache) for name, head in HEADS.items()]


def _about(name: str, head: type[Head], cache: FeatureCache | None) -> dict:
    about = {
        "head": name,
        "what": (head.__doc__ or "").splitlines()[0],
        "needs": sorted(head.needs),
        "select": head.select,
    }
    about["hyper"] = [_field(spec, head) for spec in fields(head)]
    return about | {
        "parameters": None if cache is None else _n_parameter(head(), cache),
        "on": cache and f"{cache.dataset}, {cache.encoder}",
    }


def _field(spec, head: type[Head]) -> dict:
    low, high, choices = (spec.metadata[key] for key in ("low", "high", "choices"))
    span = f" ({', '.join(map(str, choices))})" if choices else ""
    span = (
        f" ({low:g} to {high:g})"
        if None not in (low, high)
        else f" (at least {low:g})"
        if low is not None
        else span
    )
    return {
        "name": spec.name,
        "default": default_of(spec),
        "meaning": spec.metadata["meaning"],
        "range": span,
        "searched": head.space.get(spec.name),
    }


def _n_parameter(head: Head, cache: FeatureCache) -> int | None:
    """Learned numbers for the cache's classes at one shot: those of `start` on an empty world of the same shapes."""
    n_class, text = len(cache.classnames), cache.text
    if "text" in head.needs and text is None:
        return None
    pre_projection = (
        cache.column("train", "pre_projection")
        if "pre_projection" in head.needs
        else np.zeros((0, 0))
    )
    if pre_projection is None:
        return None
    zeros = torch.zeros(1, n_class, cache.dim + pre_projection.shape[1])
    label = torch.arange(n_class)[None]
    support = Support(
        zeros,
        label,
        torch.ones(1, n_class),
        None if text is None else torch.from_numpy(text),
        cache.logit_scale,
        n_class,
    )
    h = hypers([head], zeros)
    try:
        return sum(
            value.numel()
            for value in head.start(
                head.bind(support, h), h, [torch.Generator().manual_seed(0)]
            ).values()
        )
    except HeadError:
        return None

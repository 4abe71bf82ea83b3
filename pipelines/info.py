"""`cliad info`: what a cache file holds, on one screen."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cliad.cache.file.layout import DONE, TO_DO, UNREADABLE
from cliad.cache.file.read import FeatureCache, open_cache

NAMED = 5  # so many unreadable images are named


def info(path: Path, prompts: str | None = None) -> dict:
    """Everything that a cache file says of itself, ready for JSON. Reads labels and status, no features.

    Args:
        path: a cache, or the `.part` of one.
        prompts: as in `open_cache`; all prompt sets are listed either way.
    Raises:
        CacheError: the file cannot be opened.
    """
    cache = open_cache(path, prompts)
    facts = {
        name: getattr(cache, name)
        for name in ("dataset", "encoder", "image_id", "text_id", "fingerprint")
    }
    facts |= {
        "path": str(cache.path),
        "bytes": cache.path.stat().st_size,
        "encoder_id": cache.attrs["encoder_id"],
    }
    facts |= {
        "schema": int(cache.attrs["schema"]),
        "dtype": cache.dtype,
        "dim": int(cache.dim),
        "unit_rows": cache.unit_rows,
    }
    facts |= {"batch": cache.batch, "recipe": cache.recipe, "versions": cache.versions}
    facts["splits"] = {name: _split(cache, name) for name in cache.split_names}
    facts["complete"] = not any(split["to_do"] for split in facts["splits"].values())
    facts["prompts"] = {name: _prompt_set(open_cache(path, name)) for name in cache.prompt_sets}
    return facts


def _split(cache: FeatureCache, name: str) -> dict:
    split = cache.split(name)
    unreadable = np.flatnonzero(split.status == UNREADABLE)
    counts = {
        "n": len(split),
        "n_class": len(np.unique(split.y)),
        "done": int((split.status == DONE).sum()),
    }
    counts |= {"unreadable": len(unreadable), "to_do": int((split.status == TO_DO).sum())}
    root = f"splits/{name}/"
    arrays = {
        full.removeprefix(root): _array(entry)
        for full, entry in sorted(cache.arrays.items())
        if full.startswith(root)
    }
    return counts | {"unreadable_paths": split.paths(unreadable[:NAMED]), "arrays": arrays}


def _array(entry) -> dict:
    shape = [int(side) for side in entry.shape]
    return {
        "shape": shape,
        "dtype": str(entry.dtype),
        "bytes": int(np.prod(shape, dtype=np.int64)) * entry.dtype.itemsize,
    }


def _prompt_set(cache: FeatureCache) -> dict:
    root = f"text/{cache.prompts}/"
    return {
        "text_id": cache.text_id,
        "encoder_id": cache.text_attrs[cache.prompts]["encoder_id"],
        "logit_scale": cache.logit_scale,
        "has_text": f"{root}features" in cache.arrays,
        "n_template": len(cache.templates),
        "n_class": len(cache.classnames),
        "templates": cache.templates,
        "classnames": cache.classnames,
        "arrays": {
            full.removeprefix(root): _array(entry)
            for full, entry in sorted(cache.arrays.items())
            if full.startswith(root)
        },
        "recipe": cache.text_recipe,
    }

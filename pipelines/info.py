"""`cliad info`: what a cache file holds, on one screen."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cliad.cache.file.check import unchecked
from cliad.cache.file.hdf5 import StoredArray
from cliad.cache.file.layout import DONE, TO_DO, UNREADABLE
from cliad.cache.file.read import FeatureCache, open_cache

# At most so many unreadable images are listed per split.
MAX_LISTED = 5

# Labels that are looked at together.
PIECE = 2**20


def info(path: Path, prompts: str | None = None) -> dict:
    """Everything that a cache file says of itself, ready for JSON.

    Reads labels and status, but no features.

    Args:
        path: a cache, or the `.part` of one.
        prompts: the prompt set whose ids are the file's own; all sets are listed either way.

    Raises:
        CacheError: the file, or one of its prompt sets, cannot be opened.
    """
    cache = open_cache(path, prompts)
    splits = {name: _split(cache, name) for name in cache.split_names}
    return {
        "dataset": cache.dataset,
        "encoder": cache.encoder,
        "image_id": cache.image_id,
        "text_id": cache.text_id,
        "fingerprint": cache.fingerprint,
        "path": str(cache.path),
        "bytes": cache.path.stat().st_size,
        "encoder_id": cache.encoder_id,
        "schema": cache.schema,
        "unchecked": unchecked(cache),
        "dtype": cache.dtype,
        "dim": int(cache.dim),
        "unit_rows": cache.unit_rows,
        "batch": cache.batch,
        "recipe": cache.recipe,
        "versions": cache.versions,
        # Not part of an id: a GPU and a CPU give one cache its name, and last digits of their own.
        "computed": {
            "device": cache.versions.get("device"),
            "precision": cache.versions.get("precision"),
        },
        "splits": splits,
        "complete": all(split["to_do"] == 0 for split in splits.values()),
        # The same open file with each of its prompt sets.
        "prompts": {name: _prompt_set(cache.with_prompts(name)) for name in cache.prompt_sets},
    }


def _split(cache: FeatureCache, name: str) -> dict:
    split = cache.split(name)
    unreadable = np.flatnonzero(split.status == UNREADABLE)
    return {
        "n": len(split),
        "n_class": _n_class(split.y),
        "done": int((split.status == DONE).sum()),
        "unreadable": len(unreadable),
        "to_do": int((split.status == TO_DO).sum()),
        "unreadable_paths": split.paths(unreadable[:MAX_LISTED]),
        "arrays": _arrays(cache, f"splits/{name}/"),
    }


def _n_class(labels: np.ndarray) -> int:
    """How many classes have rows; in pieces, as `unique` sorts a copy."""
    present: set[int] = set()
    for start in range(0, len(labels), PIECE):
        present.update(np.unique(labels[start : start + PIECE]).tolist())
    return len(present)


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
        "arrays": _arrays(cache, root),
        "recipe": cache.text_recipe,
    }


def _arrays(cache: FeatureCache, root: str) -> dict[str, dict]:
    """Shape, type and size of all arrays whose HDF5 names start with `root`, in name order."""
    arrays = {}
    for full_name in sorted(cache.arrays):
        if full_name.startswith(root):
            arrays[full_name.removeprefix(root)] = _array(cache.arrays[full_name])
    return arrays


def _array(stored: StoredArray) -> dict:
    return {
        "shape": [int(side) for side in stored.shape],
        "dtype": str(stored.dtype),
        "bytes": stored.nbytes,
    }

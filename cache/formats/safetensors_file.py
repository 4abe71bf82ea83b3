"""A safetensors file: arrays that any framework reads, without pickle.

It has the arrays of an npz file under the same names (see `npz`), and further arrays of a split as
`<split>_<array>`. Strings are JSON lists in the file's metadata. Written only.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cliad.cache.file.layout import CacheError, covered_rows_array, is_view_array
from cliad.cache.file.read import FeatureCache
from cliad.cache.formats.npz import Arrays, class_arrays, known_paths, split_arrays


def write_safetensors(cache: FeatureCache, new: Path) -> None:
    """Write a cache as such a file.

    Raises:
        CacheError: an array is of a type that the format does not know.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    arrays: Arrays = {}
    strings = {
        "dataset": cache.dataset,
        "encoder": cache.encoder,
        "fingerprint": cache.fingerprint,
    }
    for name, values in class_arrays(cache).items():
        # The format has numbers only.
        if values.dtype.kind == "U":
            strings[name] = json.dumps(values.tolist(), ensure_ascii=False)
        else:
            arrays[name] = values
    for split in cache.split_names:
        arrays |= split_arrays(cache, split)
        arrays |= _further_arrays(cache, split)
        paths = known_paths(cache, split)
        if paths:
            strings[f"{split}_paths"] = json.dumps(paths, ensure_ascii=False)
    # The format has no strides: it would write the bytes of a transposed array in the wrong order.
    contiguous = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    try:
        save_file(contiguous, new, metadata=strings)
    except SafetensorError as error:
        raise CacheError(
            f"{cache.path.name} cannot be a safetensors file ({error}); use --format npz"
        ) from None


def _further_arrays(cache: FeatureCache, split: str) -> Arrays:
    """Views, tokens and the like; beside views the rows of the split that they cover."""
    names = []
    for name in cache.row_arrays(split):
        # The features are <split>_x already.
        if name != "features":
            names.append(name)
        if is_view_array(name):
            names.append(covered_rows_array(name))
    arrays: Arrays = {}
    for name in names:
        values = cache.column(split, name)
        if values is not None:
            arrays[f"{split}_{name}"] = values
    return arrays

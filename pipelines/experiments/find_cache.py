"""The cache that a user means; the bundled digits are extracted where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cliad.cache import folder as cache_folder
from cliad.cache.file.read import FeatureCache
from cliad.pipelines.experiments.spec import SpecError


def find_cache(folder: Path, dataset: str | None, encoder: str | None, prompts: str | None, tell: Callable[[str], None]) -> FeatureCache:
    """The cache that is meant; `digits` with its bundled encoder is extracted where it is not there yet.

    Raises:
        SpecError: another data set has no cache; the message is the command that makes it.
    """
    cache = cache_folder.find(folder, dataset, encoder, prompts)
    if cache is not None:
        return cache
    if dataset in (None, "digits") and encoder in (None, "tiny"):
        from cliad.pipelines.extract import extract

        tell("there is no cache yet: extracting the bundled data set digits with the bundled encoder tiny")
        return cache_folder.open_cache(extract("digits", cache_folder=folder, tell=tell), prompts)
    have = sorted({f"{path.parent.name}/{path.stem}" for path in cache_folder.cached(folder)})
    what = f"--dataset {dataset}" if dataset else "--dataset NAME"
    with_encoder = f" --model {encoder}" if encoder else ""
    raise SpecError(
        f"{folder} has no cache of {dataset or encoder}; `cliad extract {what}{with_encoder}` makes it; there is: {', '.join(have) or 'none'}"
    )

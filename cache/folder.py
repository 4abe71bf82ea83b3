"""Where cache files lie, and which of them a user means."""

from __future__ import annotations

import os
import re
from pathlib import Path

import platformdirs

from cliad.cache.file.layout import CacheError
from cliad.cache.file.read import FeatureCache, open_cache


def cache_dir(given: Path | None = None) -> Path:
    """The cache folder: `given` (--cache), else $CLIAD_CACHE, else the user's cache folder."""
    return Path(
        given
        or os.environ.get("CLIAD_CACHE")
        or platformdirs.user_cache_dir("cliad", appauthor=False)
    ).expanduser()


def slug(name: str) -> str:
    """`name` in [a-z0-9._-], so that `ViT-B/32` or `hf-hub:a/b` can be a file name."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.") or "unnamed"


def cache_path(folder: Path, dataset: str, encoder: str, image_id: str) -> Path:
    return folder / slug(dataset) / f"{slug(encoder)}-{image_id}.h5"


def cached(folder: Path, dataset: str | None = None) -> list[Path]:
    """The finished caches in a cache folder, those of one data set where it is named; last written first."""
    files = folder.glob(f"{slug(dataset)}/*.h5" if dataset else "*/*.h5")
    return sorted(files, key=lambda path: (-path.stat().st_mtime_ns, path))


def find(
    folder: Path, dataset: str | None = None, encoder: str | None = None, prompts: str | None = None
) -> FeatureCache | None:
    """The cache that a user means by data set, encoder and prompts; None where there is none.

    Without a data set it is one of the data set that was written last. An encoder may be named in short (`ViT-B-32` finds
    `ViT-B-32/openai`) or in full with the image id, as the file is named (`vit-b-32-openai-0a1b2c3d`).

    Raises:
        CacheError: more than one cache matches, or the file found is not sound.
    """
    files = [
        path for path in cached(folder, dataset) if encoder is None or _is_encoder(path, encoder)
    ]
    files = [path for path in files if path.parent == files[0].parent]
    if len(files) > 1 and dataset is not None:
        raise CacheError(
            f"{len(files)} caches of {dataset} match; choose one with --encoder: {', '.join(path.stem for path in files)}"
        )
    return open_cache(files[0], prompts) if files else None


def _is_encoder(path: Path, encoder: str) -> bool:
    asked, stem = slug(encoder), path.stem
    return stem == asked or f"{stem.rpartition('-')[0]}-".startswith(f"{asked}-")

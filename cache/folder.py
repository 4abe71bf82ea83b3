"""Where cache files lie, and which of them a user means."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import platformdirs

from cliad.cache.file.layout import CacheError
from cliad.cache.file.read import FeatureCache, open_cache

LONGEST_SLUG = 80  # letters; a file's name also holds an id and endings, 255 bytes in all


def cache_dir(given: Path | None = None) -> Path:
    """The cache folder: `given` (--cache), else $CLIAD_CACHE, else the user's cache folder."""
    folder = given or os.environ.get("CLIAD_CACHE")
    if not folder:
        folder = platformdirs.user_cache_dir("cliad", appauthor=False)
    return Path(folder).expanduser()


def slug(name: str) -> str:
    """`name` in [a-z0-9._-], so that `ViT-B/32` or `hf-hub:a/b` can be a file name."""
    allowed = re.sub(r"[^a-z0-9._-]+", "-", name.lower())
    # A file name that starts with a dot is hidden, and `..` is the folder above.
    allowed = allowed.strip("-.") or "unnamed"
    if len(allowed) <= LONGEST_SLUG:
        return allowed
    # Two long names that begin alike are told apart by a hash.
    digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:8]
    return f"{allowed[:LONGEST_SLUG]}-{digest}"


def cache_path(folder: Path, dataset: str, encoder: str, image_id: str) -> Path:
    """The file of a data set and an encoder; `find` takes the names apart again."""
    return folder / slug(dataset) / f"{slug(encoder)}-{image_id}.h5"


def cached(folder: Path, dataset: str | None = None) -> list[Path]:
    """The complete caches in a cache folder, of all data sets or of one; last written first."""
    pattern = f"{slug(dataset)}/*.h5" if dataset else "*/*.h5"
    return sorted(folder.glob(pattern), key=_newest_first)


def newest(folder: Path | None = None) -> Path:
    """The cache that was written last in a cache folder, see `cache_dir`.

    Raises:
        CacheError: there is none.
    """
    folder = cache_dir(folder)
    paths = cached(folder)
    if not paths:
        raise CacheError(f"there is no cache in {folder}; `cliad extract` makes one")
    return paths[0]


def _newest_first(path: Path) -> tuple[int, Path]:
    # Files of the same time come in the order of their names, so that the order is always one.
    return (-path.stat().st_mtime_ns, path)


def find(
    folder: Path, dataset: str | None = None, encoder: str | None = None, prompts: str | None = None
) -> FeatureCache | None:
    """The cache that a user means by data set, encoder and prompts; None where there is none.

    Without a data set it is one of the data set that was written last. An encoder may be named by
    its first words (`ViT-B-32` finds `ViT-B-32/openai`), or by the whole name of the file with the
    image id (`vit-b-32-openai-0a1b2c3d`).

    Raises:
        CacheError: more than one cache matches, or the file cannot be opened.
    """
    files = cached(folder, dataset)
    if encoder is not None:
        files = [path for path in files if _is_of_encoder(path, encoder)]
    if not files:
        return None
    newest = files[0]
    files = [path for path in files if path.parent == newest.parent]
    # A user who named no data set wants the newest cache, even where there are others beside it.
    if len(files) > 1 and dataset is not None:
        names = ", ".join(path.stem for path in files)
        raise CacheError(
            f"{len(files)} caches of {dataset} match; choose one with --encoder: {names}"
        )
    return open_cache(newest, prompts)


def _is_of_encoder(path: Path, encoder: str) -> bool:
    wanted = slug(encoder)
    if path.stem == wanted:
        return True
    name = path.stem.rpartition("-")[0]  # without the image id
    # Whole words only: ViT-B-3 is not short for ViT-B-32.
    return f"{name}-".startswith(f"{wanted}-")

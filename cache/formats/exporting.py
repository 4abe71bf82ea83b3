"""`cliad export` of a cache: its features for other tools.

npz          the arrays of `cliad.cache.formats.named_arrays`; `cliad import npz` reads it back
safetensors  the same names without pickle; `cliad import safetensors` reads it back
npy+parquet  the folder of `cliad.cache.formats.clip_retrieval`; `cliad import clip-retrieval`
             reads it back
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cliad.cache.file.layout import TO_DO, CacheError
from cliad.cache.file.read import FeatureCache, open_cache
from cliad.cache.files import replacing
from cliad.cache.formats.clip_retrieval import write_clip_retrieval
from cliad.cache.formats.npz import write_npz
from cliad.cache.formats.safetensors_file import write_safetensors

# Each writes a cache to a path; `replacing` lets nobody see half of it.
FORMATS: dict[str, Callable[[FeatureCache, Path], None]] = {
    "npz": write_npz,
    "safetensors": write_safetensors,
    "npy+parquet": write_clip_retrieval,
}
EXPORTED_NAMES = ("img_emb", "metadata", "text.npz")  # what a folder of npy+parquet holds


def export_cache(
    path: Path, *, format: str, out: Path, prompts: str | None = None, force: bool = False
) -> list[Path]:
    """Write a cache in another format and return the files written.

    Args:
        path: the cache file.
        format: one of FORMATS.
        out: the file to write, for npy+parquet a folder.
        prompts: the prompt set whose text is written.
        force: replace what is there; a folder with other things than an export never is.

    Raises:
        CacheError: unknown format, rows still to do, `out` is there already and not `force`, or
            cannot be written; nothing is left behind.
    """
    if format not in FORMATS:
        raise CacheError(f"unknown format '{format}' for a cache; known are {', '.join(FORMATS)}")
    cache = open_cache(path, prompts)
    out = Path(out)
    _check_finished(cache)
    try:
        _check_target(cache, out, format, force)
        with replacing(out) as new:
            FORMATS[format](cache, new)
    # ValueError: a name that no file can have. Every CacheError is one, too.
    except (OSError, ValueError) as error:
        if isinstance(error, CacheError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise CacheError(f"cannot write {out}: {reason}; give another --out PATH") from None
    if out.is_dir():
        return sorted(file for file in out.rglob("*") if file.is_file())
    return [out]


def _check_finished(cache: FeatureCache) -> None:
    # Rows still to do hold zeros, which no other tool could tell from features.
    unfinished = [name for name in cache.split_names if (cache.split(name).status == TO_DO).any()]
    if unfinished:
        raise CacheError(
            f"{cache.path.name} has rows still to do in {unfinished};"
            " run the same extract again first"
        )


def _check_target(cache: FeatureCache, out: Path, format: str, force: bool) -> None:
    """CacheError where `out` may not be replaced by an export of this format."""
    # Even with --force: the cache is mapped while it is exported.
    if os.path.realpath(out) == os.path.realpath(cache.path):
        raise CacheError(f"{out} is the cache itself; give another --out PATH")
    if not out.name:
        raise CacheError(f"--out {str(out)!r} is no name of a new file; give another --out PATH")
    if not out.exists():
        return
    if not out.is_dir() and not out.is_file():
        raise CacheError(f"{out} is a pipe or a device; give another --out PATH")
    is_folder = out.is_dir()
    # An empty folder was made for the export; nothing in it can be lost.
    is_empty_folder = is_folder and not any(out.iterdir())
    if not force and not is_empty_folder:
        raise CacheError(f"{out} exists; give another --out PATH, or --force to replace it")
    if is_folder is not (format == "npy+parquet"):
        kind = "a folder" if is_folder else "a file"
        raise CacheError(f"{out} is {kind}, which {format} cannot replace; give another --out PATH")
    if is_folder:
        _check_folder_is_export(out)


def _check_folder_is_export(out: Path) -> None:
    others = sorted(entry.name for entry in out.iterdir() if entry.name not in EXPORTED_NAMES)
    if others:
        raise CacheError(
            f"{out} is not replaced: it holds other files ({', '.join(others[:3])});"
            " give another --out PATH"
        )

"""The cache that a user means; the bundled digits are extracted where there is none."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cliad.cache import folder as cache_folder
from cliad.cache.file.read import FeatureCache, open_cache
from cliad.errors import LONGEST_NAME
from cliad.pipelines.experiments.spec_error import SpecError


@dataclass(frozen=True)
class CacheChoice:
    """Which cache of a cache folder: by data set, encoder and prompts, each None where not said."""

    folder: Path
    dataset: str | None = None  # None: that of the cache written last
    encoder: str | None = None  # in short (ViT-B-32) or with its image id
    prompts: str | None = None  # None: "default", or the only set there is


def find_cache(choice: CacheChoice, log: Callable[[str], None]) -> FeatureCache:
    """The cache that is meant.

    Digits with their bundled encoder are extracted where they are not there yet; `log` says so.

    Raises:
        SpecError: another data set has no cache; the message is the command that makes it. Or the
            cache folder is none.
        CacheError: several caches match, or the one found is damaged.
    """
    check_folder(choice.folder)
    cache = cache_folder.find(choice.folder, choice.dataset, choice.encoder, choice.prompts)
    if cache is not None:
        return cache
    if choice.dataset in (None, "digits") and choice.encoder in (None, "tiny"):
        # Brings the encoder: imported only when there is something to encode.
        from cliad.pipelines.extract import extract

        log(
            "there is no cache yet: extracting the bundled data set digits with the bundled"
            " encoder tiny"
        )
        path = extract("digits", cache_folder=choice.folder, log=log)
        return open_cache(path, choice.prompts)
    raise SpecError(no_cache(choice))


def check_folder(folder: Path) -> None:
    """SpecError where something else than a folder has the name of the cache folder."""
    if folder.exists() and not folder.is_dir():
        raise SpecError(f"{folder} is a file, not a folder of caches; give another --cache DIR")


def no_cache(choice: CacheChoice) -> str:
    """What to do where there is no cache of the data set."""
    # Several prompt sets or image ids of one encoder are one entry each, by the file's name.
    found = {f"{path.parent.name}/{path.stem}" for path in cache_folder.cached(choice.folder)}
    there_is = ", ".join(sorted(found)) or "none"
    command = f"cliad extract --dataset {_quoted(choice.dataset or 'NAME')}"
    if choice.encoder:
        command += f" --model {_quoted(choice.encoder)}"
    what = _quoted(choice.dataset or choice.encoder or "")
    return f"{choice.folder} has no cache of {what}; `{command}` makes it; there is: {there_is}"


def _quoted(name: str) -> str:
    """A name as a shell takes it for one word; a message has no room for a long one."""
    return shlex.quote(name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}...")

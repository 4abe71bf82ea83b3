"""Names of shards: what a pattern with braces and stars stands for, and where the files lie."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cliad.cache.datasets.base import DatasetError

MOST_NAMES = 100_000  # that the braces of a pattern stand for; LAION-5B has about as many shards
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def find_shards(pattern: Path, data: Path | None) -> list[Path]:
    """The tar files that a folder or a pattern names, sorted; looked for below `data` as well.

    Raises:
        DatasetError: there are none.
    """
    places = [pattern]
    if data:
        places.append(data / pattern)
    for place in places:
        found = _in_folder(place) if os.path.isdir(place) else _matching_files(place)
        if found:
            return found
    for place in places:
        packed = _compressed(place) if os.path.isdir(place) else []
        if packed:
            raise DatasetError(
                f"wds:{pattern} has {len(packed)} compressed shards, such as {packed[0].name}, and"
                " no .tar; unpack them first (gunzip, unzstd), as images are read where they lie"
            )
    raise DatasetError(
        f"wds:{str(pattern)[:200]} names no shards; give a folder of .tar files,"
        " or a pattern such as data/train-{0000..0007}.tar in quotes"
    )


def _in_folder(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.tar") if not path.is_dir())


def _compressed(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.name.endswith(COMPRESSED))


def _matching_files(pattern: Path) -> list[Path]:
    files = set()
    for name in expand_braces(str(pattern)):
        files |= {Path(file) for file in glob.glob(name)}
    return sorted(files)


def expand_braces(pattern: str) -> list[str]:
    """All names that a pattern with `{a,b}` and `{000..012}` stands for.

    Raises:
        DatasetError: they are more than MOST_NAMES.

    >>> expand_braces("{train,test}-{09..10}.tar")
    ['train-09.tar', 'train-10.tar', 'test-09.tar', 'test-10.tar']
    """
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if not braces:
        return [pattern]
    names: list[str] = []
    for word in _words(braces[1]):
        names += expand_braces(pattern[: braces.start()] + word + pattern[braces.end() :])
        _check_number(len(names))
    return names


def _words(inside: str) -> list[str]:
    """What stands in braces: `a,b` gives a and b, `08..10` gives 08, 09 and 10."""
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if not span:
        return inside.split(",")
    # Before they are made. A number of thousands of digits is none that Python reads.
    digits = max(len(span[1]), len(span[2]))
    _check_number(10**18 if digits > 18 else int(span[2]) - int(span[1]) + 1)
    # Leading zeros are kept, as bash does.
    width = len(span[1])
    return [f"{number:0{width}d}" for number in range(int(span[1]), int(span[2]) + 1)]


def _check_number(number: int) -> None:
    if number > MOST_NAMES:
        raise DatasetError(
            f"the braces of a wds: pattern stand for {number:,} names or more;"
            f" at most {MOST_NAMES:,} are allowed"
        )


def common_folder(shards: Sequence[Path]) -> Path:
    """The deepest folder that holds all shards."""
    columns = zip(*(shard.parent.parts for shard in shards), strict=False)
    # Folder by folder from the root, as long as all shards have the same.
    shared = itertools.takewhile(lambda names: len(set(names)) == 1, columns)
    return Path(*(names[0] for names in shared))

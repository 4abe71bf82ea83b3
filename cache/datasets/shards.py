"""`wds:PATTERN`: webdataset shards, tar files in which the files of one sample share a key (`0001.jpg`, `0001.cls`).

PATTERN is a folder (as clip_benchmark lays it out: train/*.tar, test/*.tar, classnames.txt), or names with braces and stars
such as `data/{train,test}-{0000..0003}.tar`. The split is the word train, val or test in a shard's name or folder; shards
without one are split by chance as folders are. Shards are read in place: an index of offsets is made once per run, so that
any image can be had without reading what lies before it. Nothing but the standard library is needed.
"""

from __future__ import annotations

import glob
import hashlib
import io
import itertools
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cliad.cache.datasets.base import (
    IMAGE_ENDINGS,
    Dataset,
    DatasetError,
    Listing,
    Rows,
    open_image,
    read_lines,
)
from cliad.cache.datasets.own import SPLIT_NAMES, by_chance, read_settings
from cliad.cache.prompts import clean


@dataclass(frozen=True)
class Sample:
    """An image in a shard: where its bytes lie, and its class as the shard says it (a number or a name)."""

    shard: Path
    key: str
    offset: int
    size: int
    label: str


def shard_dataset(name: str) -> Dataset | None:
    """The data set of a name such as `wds:PATTERN`, None for other names."""
    kind, colon, where = name.partition(":")
    return (
        Dataset(name, lambda data, split: read_shards(where, data), about="your own shards")
        if colon and kind == "wds"
        else None
    )


def read_shards(pattern: str, data: Path | None = None) -> Listing:
    """List the images of all shards that a pattern names."""
    if re.match(r"[a-z0-9]+://|pipe:", pattern):
        raise DatasetError(
            f"wds:{pattern} is not on this machine; fetch the shards first, then give their local names"
        )
    shards = _shards(Path(pattern).expanduser(), data)
    root = Path(_common(shards))
    samples = {shard: _index(shard) for shard in shards}
    if not any(samples.values()):
        raise DatasetError(
            f"wds:{pattern} has no samples with an image and a .cls, .label or .json file that holds the class"
        )
    number, names = _classes(root, {sample.label for found in samples.values() for sample in found})
    at = {_path(sample, root): sample for found in samples.values() for sample in found}
    rows: dict[str, Rows] = {}
    for shard, found in samples.items():
        rows.setdefault(_split_of(shard, root), []).extend(
            (_path(sample, root), number[sample.label]) for sample in found
        )
    if "" in rows:
        of_class: dict[str, Rows] = {}
        for row in rows.pop(""):
            of_class.setdefault(names[row[1]], []).append(row)
        rows = by_chance(of_class)
    ordered = {part: rows[part] for part in ("train", "val", "test") if part in rows}
    templates = root / "zeroshot_classification_templates.txt"
    own = tuple(read_settings(root).get("templates", ())) or (
        tuple(read_lines(templates)) if templates.is_file() else ()
    )
    sizes = "\n".join(str(shard.stat().st_size) for shard in shards)
    return Listing(
        ordered,
        [clean(name) for name in names],
        lambda path: _picture(at[path]),
        None,
        own,
        hashlib.sha256(sizes.encode()).hexdigest()[:16],
    )


def _shards(pattern: Path, data: Path | None) -> list[Path]:
    for place in (pattern, *([data / pattern] if data else [])):
        if place.is_dir():
            found = sorted(place.rglob("*.tar"))
        else:
            found = sorted({Path(file) for name in _braces(str(place)) for file in glob.glob(name)})
        if found:
            return found
    raise DatasetError(
        f"wds:{pattern} names no shards; give a folder of .tar files, or a pattern such as data/train-{{0000..0007}}.tar in quotes"
    )


def _braces(pattern: str) -> list[str]:
    """Names that a pattern with `{a,b}` and `{000..012}` stands for."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    inner = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    words = (
        [f"{i:0{len(inner[1])}d}" for i in range(int(inner[1]), int(inner[2]) + 1)]
        if inner
        else found[1].split(",")
    )
    return list(
        itertools.chain.from_iterable(
            _braces(pattern[: found.start()] + word + pattern[found.end() :]) for word in words
        )
    )


def _common(shards: list[Path]) -> Path:
    folders = {shard.parent for shard in shards}
    return folders.pop() if len(folders) == 1 else Path(*_shared_parts(folders))


def _shared_parts(folders: set[Path]) -> list[str]:
    columns = zip(*(folder.parts for folder in folders), strict=False)
    return [
        column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    ]


def _index(shard: Path) -> list[Sample]:
    """The samples of a shard in its own order; those without an image or a class are left out."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                key, _, ending = file.partition(".")
                key = f"{folder}/{key}".lstrip("./")
                if not member.isfile():
                    continue
                if f".{ending.lower()}" in IMAGE_ENDINGS:
                    images[key] = member.offset_data, member.size
                elif ending in ("cls", "label", "json", "index"):
                    labels[key] = _class_in(ending, archive.extractfile(member).read())
    except (tarfile.TarError, OSError, ValueError, KeyError) as error:
        raise DatasetError(
            f"{shard} cannot be read as a shard ({str(error)[:80]}); it must be an uncompressed .tar"
        ) from None
    return [
        Sample(shard, key, *where, labels[key]) for key, where in images.items() if labels.get(key)
    ]


def _class_in(ending: str, content: bytes) -> str:
    text = content.decode().strip()
    if ending != "json":
        return text
    value = json.loads(text)
    return (
        str(next((value[key] for key in ("label", "cls", "class") if key in value), ""))
        if isinstance(value, dict)
        else str(value)
    )


def _classes(root: Path, found: set[str]) -> tuple[dict[str, int], list[str]]:
    """The label of every class as the shards say it, and class names by label.

    Names come from `cliad.toml` or `classnames.txt` beside the shards; classes that are no numbers are numbered in name order.
    """
    settings, file = read_settings(root).get("classnames", {}), root / "classnames.txt"
    if not all(label.isdigit() for label in found):
        return {label: i for i, label in enumerate(sorted(found))}, [
            settings.get(label, label) for label in sorted(found)
        ]
    number = {label: int(label) for label in found}
    n_class = max(number.values()) + 1
    if not settings and not file.is_file():
        raise DatasetError(
            f"{root} has numbers for classes and no classnames.txt that names them, a line each"
        )
    names = (
        [str(settings.get(str(label), label)) for label in range(n_class)]
        if settings
        else read_lines(file)
    )
    if len(names) < n_class:
        raise DatasetError(
            f"{file} has {len(names)} names, the shards use label {n_class - 1}; add the missing lines"
        )
    return number, names


def _split_of(shard: Path, root: Path) -> str:
    words = re.split(r"[^a-z]+", shard.relative_to(root).with_suffix("").as_posix().lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def _path(sample: Sample, root: Path) -> str:
    return f"{sample.shard.relative_to(root).as_posix()}/{sample.key}"


def _picture(sample: Sample) -> Image.Image:
    with open(sample.shard, "rb") as file:
        file.seek(sample.offset)
        return open_image(io.BytesIO(file.read(sample.size)))

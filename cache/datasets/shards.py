"""`wds:PATTERN`: webdataset shards, tar files in which a sample's files share a key.

The files are an image and its class, such as `0001.jpg` and `0001.cls`. PATTERN is a folder (as
clip_benchmark lays it out: train/*.tar, test/*.tar, classnames.txt), or names with braces and
stars such as `data/{train,test}-{0000..0003}.tar`. The split is the word train, val or test in a
shard's name or folder; where shards have none, these alone are used and are split by chance as
folders are.

Shards are read in place: an index of offsets is made once per run, so that any image can be had
without reading what lies before it. Nothing but the standard library is needed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cliad.cache.datasets.base import (
    SPLIT_NAMES,
    Dataset,
    DatasetError,
    Listing,
    Rows,
    open_image,
    read_lines,
)
from cliad.cache.datasets.folders import IMAGE_ENDINGS
from cliad.cache.datasets.own import Settings, by_chance, in_order, read_settings
from cliad.cache.datasets.shard_names import common_folder, find_shards
from cliad.cache.prompts import clean

# Endings of the files that hold a sample's class.
LABEL_ENDINGS = ("cls", "label", "json", "index")
LABEL_KEYS = ("label", "cls", "class")  # of a .json file, the first that is there


@dataclass(frozen=True)
class Sample:
    """An image in a shard: where its bytes lie, and what the shard calls its class.

    label: a number or a name.
    """

    shard: Path
    key: str
    offset: int
    size: int
    label: str


def shard_dataset(name: str) -> Dataset | None:
    """The data set of a name such as `wds:PATTERN`, None for other names."""
    kind, colon, where = name.partition(":")
    if not colon or kind != "wds":
        return None
    return Dataset(name, lambda data, split: read_shards(where, data), about="your own shards")


def read_shards(pattern: str, data: Path | None = None) -> Listing:
    """List the images of all shards that a pattern names, from the working folder or from `data`.

    Raises:
        DatasetError: no shards, a shard that cannot be read, or classes without names.
    """
    # webdataset itself takes addresses and commands here.
    if re.match(r"[a-z0-9]+://|pipe:", pattern):
        raise DatasetError(
            f"wds:{pattern} is not on this machine;"
            " fetch the shards first, then give their local names"
        )
    shards = find_shards(Path(pattern).expanduser(), data)
    root = common_folder(shards)
    samples: list[Sample] = []
    for shard in shards:
        samples += _index(shard)
    if not samples:
        raise DatasetError(
            f"wds:{pattern} has no samples with an image"
            " and a .cls, .label or .json file that holds the class"
        )
    settings = read_settings(root)
    classes = _find_classes(root, {sample.label for sample in samples}, settings)
    rows = _rows_by_split(root, samples, classes)
    return Listing(
        rows,
        [clean(name) for name in classes.names],
        _opener(root, samples),
        root=None,
        templates=_templates(root, settings),
        content_hash=_sizes_hash(shards),
    )


def _index(shard: Path) -> list[Sample]:
    """The samples of a shard in its own order; those without an image or a class are left out."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, str] = {}
    try:
        # "r:" refuses compressed archives, in which an offset is not a place in the file.
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, file = member.name.rpartition("/")
                # webdataset's rule: the key ends at the first dot.
                key, _, ending = file.partition(".")
                key = f"{folder}/{key}".lstrip("./")
                if f".{ending.lower()}" in IMAGE_ENDINGS:
                    images[key] = member
                elif ending in LABEL_ENDINGS:
                    content = archive.extractfile(member)
                    assert content is not None  # only None for what is not a file
                    labels[key] = _class_in(ending, content.read())
    except (tarfile.TarError, OSError, ValueError, KeyError) as error:
        raise DatasetError(
            f"{shard} cannot be read as a shard ({str(error)[:80]});"
            " it must be an uncompressed .tar"
        ) from None
    samples = []
    for key, member in images.items():
        label = labels.get(key)
        # An empty label file is as good as none.
        if label:
            samples.append(Sample(shard, key, member.offset_data, member.size, label))
    return samples


def _class_in(ending: str, content: bytes) -> str:
    """The class that a label file holds; empty where it says none."""
    text = content.decode().strip()
    if ending != "json":
        return text
    value = json.loads(text)
    if not isinstance(value, dict):
        return str(value)
    for key in LABEL_KEYS:
        if key in value:
            return str(value[key])
    return ""


@dataclass(frozen=True)
class _Classes:
    """The number of every class, by what the shards call it, and class names by number."""

    numbers: Mapping[str, int]
    names: Sequence[str]


def _find_classes(root: Path, labels: set[str], settings: Settings) -> _Classes:
    """Number and name the classes, given what the shards call them.

    Names come from `cliad.toml` or `classnames.txt` beside the shards. Classes that are not
    numbers are numbered in name order.
    """
    given = settings.classnames
    if not all(label.isdecimal() for label in labels):
        ordered = sorted(labels)
        numbers = {label: number for number, label in enumerate(ordered)}
        return _Classes(numbers, [given.get(label, label) for label in ordered])
    numbers = {label: int(label) for label in labels}
    # Names count for classes without an image in these shards, too.
    n_class = max(numbers.values()) + 1
    if given:
        return _Classes(numbers, [given.get(str(number), str(number)) for number in range(n_class)])
    file = root / "classnames.txt"
    if not file.is_file():
        raise DatasetError(
            f"{root} has numbers for classes and no classnames.txt that names them, a line each"
        )
    names = read_lines(file)
    if len(names) < n_class:
        raise DatasetError(
            f"{file} has {len(names)} names, the shards use label {n_class - 1};"
            " add the missing lines"
        )
    return _Classes(numbers, names)


def _rows_by_split(root: Path, samples: Sequence[Sample], classes: _Classes) -> dict[str, Rows]:
    """The samples as rows, shard by shard.

    Where some shards have no split in their names, these are split by chance and the others are
    left out.
    """
    rows: dict[str, Rows] = {}
    without_split: dict[str, Rows] = {}
    for sample in samples:
        label = classes.numbers[sample.label]
        split = _split_of(sample.shard, root)
        if split is None:
            group = without_split.setdefault(classes.names[label], [])
        else:
            group = rows.setdefault(split, [])
        group.append((_path(sample, root), label))
    if without_split:
        rows = by_chance(without_split)
    return in_order(rows)


def _split_of(shard: Path, root: Path) -> str | None:
    """The split that the first such word in a shard's folder or name says."""
    words = re.split(r"[^a-z]+", shard.relative_to(root).with_suffix("").as_posix().lower())
    for word in words:
        if word in SPLIT_NAMES:
            return SPLIT_NAMES[word]
    return None


def _path(sample: Sample, root: Path) -> str:
    return f"{sample.shard.relative_to(root).as_posix()}/{sample.key}"


def _opener(root: Path, samples: Sequence[Sample]) -> Callable[[str], Image.Image]:
    by_path = {_path(sample, root): sample for sample in samples}
    return lambda path: _read_image(by_path[path])


def _read_image(sample: Sample) -> Image.Image:
    with open(sample.shard, "rb") as file:
        file.seek(sample.offset)
        return open_image(io.BytesIO(file.read(sample.size)))


def _templates(root: Path, settings: Settings) -> tuple[str, ...]:
    """Templates of `cliad.toml`, else of clip_benchmark's file beside the shards, else none."""
    file = root / "zeroshot_classification_templates.txt"
    if settings.templates or not file.is_file():
        return tuple(settings.templates)
    return tuple(read_lines(file))


def _sizes_hash(shards: Sequence[Path]) -> str:
    # Sizes, as for folders of images: reading all shards would take long.
    sizes = "\n".join(str(shard.stat().st_size) for shard in shards)
    return hashlib.sha256(sizes.encode()).hexdigest()[:16]

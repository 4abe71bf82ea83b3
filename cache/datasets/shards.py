"""`wds:PATTERN`: webdataset shards, tar files in which a sample's files share a key.

The files are an image and its class, such as `0001.jpg` and `0001.cls`. PATTERN is a folder (as
clip_benchmark lays it out: train/*.tar, test/*.tar, classnames.txt), or names with braces and
stars such as `data/{train,test}-{0000..0003}.tar`. The split is the word train, val or test in a
shard's name or folder; where no shard has one, all are split by chance as folders are.

Shards are read in place: an index of offsets is made once per run, so that any image can be had
without reading what lies before it. Nothing but the standard library is needed.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cliad.cache.classnames import read_classnames
from cliad.cache.datasets.base import (
    SPLIT_NAMES,
    Dataset,
    DatasetError,
    Listing,
    Rows,
    open_image,
    read_lines,
)
from cliad.cache.datasets.folders import Note, number_of
from cliad.cache.datasets.own import (
    Settings,
    by_chance,
    check_classnames,
    in_order,
    never_trained,
    notes_on_splits,
    read_settings,
)
from cliad.cache.datasets.shard_index import LeftOut, Sample, index_shard, need_samples
from cliad.cache.datasets.shard_names import common_folder, find_shards
from cliad.cache.documents import open_regular
from cliad.cache.prompts import clean
from cliad.errors import printable

MOST_CLASSES = 100_000


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
    left_out = LeftOut()
    for shard in shards:
        samples += index_shard(shard, left_out)
    need_samples(pattern, samples, left_out)
    settings = read_settings(root)
    classes = _find_classes(root, {sample.label for sample in samples}, settings)
    source = f"wds:{pattern}"
    classnames = [clean(name) for name in classes.names]
    check_classnames(source, classes.names, classnames)
    rows, notes = _rows_by_split(root, samples, classes)
    return Listing(
        rows,
        classnames,
        _opener(root, samples),
        root=None,
        templates=_templates(root, settings),
        content_hash=_sizes_hash(shards),
        notes=[*left_out.notes(), *notes, *notes_on_splits(rows, classes.names)],
        problems=never_trained(source, rows, classes.names),
    )


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
    unknown = sorted(set(given) - labels)
    # A number that no image has may be named: a class may be missing in these shards.
    unknown = [name for name in unknown if not name.isdecimal()]
    if unknown:
        raise DatasetError(
            f"{root / 'cliad.toml'} names class '{printable(unknown[0])}', which the shards do not"
            f" have; they have {', '.join(printable(label) for label in sorted(labels)[:5])}"
        )
    if not all(label.isdecimal() for label in labels):
        ordered = sorted(labels)
        numbers = {label: number for number, label in enumerate(ordered)}
        return _Classes(numbers, [given.get(label, label) for label in ordered])
    numbers = {label: int(label) for label in labels}
    # Names count for classes without an image in these shards, too.
    n_class = max(numbers.values()) + 1
    if given:
        if n_class > MOST_CLASSES:
            raise DatasetError(
                f"the shards use label {n_class - 1}, at most {MOST_CLASSES:,} classes are allowed"
            )
        return _Classes(numbers, [given.get(str(number), str(number)) for number in range(n_class)])
    file = root / "classnames.txt"
    if not file.is_file():
        raise DatasetError(
            f"{root} has numbers for classes and no classnames.txt that names them, a line each"
        )
    # An empty line would shift the names of all labels below it.
    names = read_classnames(file)
    if len(names) < n_class:
        raise DatasetError(
            f"{file} has {len(names)} names, the shards use label {n_class - 1};"
            " add the missing lines"
        )
    return _Classes(numbers, names)


def _rows_by_split(
    root: Path, samples: Sequence[Sample], classes: _Classes
) -> tuple[dict[str, Rows], list[Note]]:
    """The samples as rows, shard by shard, and what is to be said of their splits.

    Where no shard has a split in its name, all samples are split by chance.

    Raises:
        DatasetError: some shards have a split in their names and others have none.
    """
    rows: dict[str, Rows] = {}
    without_split: dict[str, Rows] = {}
    named: set[Path] = set()
    nameless: set[Path] = set()
    for sample in samples:
        label = classes.numbers[sample.label]
        split = _split_of(sample.shard, root)
        if split is None:
            nameless.add(sample.shard)
            group = without_split.setdefault(classes.names[label], [])
        else:
            named.add(sample.shard)
            group = rows.setdefault(split, [])
        group.append((_path(sample, root), label))
    if named and nameless:
        raise DatasetError(
            f"{number_of(len(named), 'shard says', 'shards say')} which split they are, such as"
            f" {printable(min(named).name)}, and {len(nameless):,} do not, such as"
            f" {printable(min(nameless).name)}; name them alike, or leave some out of the pattern"
        )
    if not nameless:
        return in_order(rows), []
    note = "no shard says train, val or test: each class is split by chance, 50 : 20 : 30"
    return in_order(by_chance(without_split)), [Note(note)]


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
    with open_regular(sample.shard, DatasetError) as file:
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

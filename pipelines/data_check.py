"""`cliad data check`: a data set on the disk against what it should be."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from cliad.cache.datasets import data_dir, find_dataset
from cliad.cache.datasets.base import Dataset, DatasetError, Listing, Rows
from cliad.cache.datasets.own import NOTHING, Allowed
from cliad.cache.extract.workers import default_workers
from cliad.pipelines.found_images import check_use

SHOWN = 5  # problems of one kind
MISSING = "missing"


@dataclass(frozen=True)
class SplitCheck:
    """One split: numbers of rows.

    listed: in the data set's lists; expected: as it should be, None where that is not known.
    missing: their image is not there; unreadable: it is there and cannot be read.
    """

    name: str
    listed: int
    expected: int | None
    missing: int
    unreadable: int


@dataclass(frozen=True)
class DataCheck:
    """What was found.

    root: the image folder; None where images are not files, or nothing was found.
    per_class: images that can be read, by split and class name.
    notes: what was left out of a folder, or chosen, a line each.
    problems: a line each; advice: where to get what is missing, a line each.
    """

    dataset: str
    root: Path | None
    splits: list[SplitCheck] = field(default_factory=list)
    classnames: list[str] = field(default_factory=list)
    per_class: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def data_check(
    name: str,
    *,
    data: Path | None = None,
    split: str = "field",
    quick: bool = False,
    allowed: Allowed = NOTHING,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DataCheck:
    """Compare a data set on the disk with what it should be.

    Counts, class names, and images that are missing or cannot be read.

    Args:
        name: the data set, also folder:PATH, csv:FILE, wds:PATTERN.
        data: the folder that holds the data sets; by default $CLIAD_DATA.
        split: "field" or "official".
        quick: look only whether images are there, do not open them.
        allowed: what a user's own folder or list may do beyond the rule.
        progress: is called with the number of images opened so far, and in all.

    Raises:
        DatasetError: there is no data set of that name.
    """
    dataset = find_dataset(name, allowed)
    check_use(dataset, data, split)
    data = data_dir(data)
    try:
        listing = dataset.read(data, split)
    except DatasetError as error:
        return DataCheck(dataset.name, None, problems=[str(error)], advice=advice(dataset, data))
    bad = _bad_images(listing, quick, progress)
    # The numbers that a data set should have are those of the field's split.
    is_field = split == "field"
    expected = dataset.counts if is_field else {}
    checks = []
    per_class = {}
    for part, rows in listing.splits.items():
        checks.append(_check_split(part, rows, expected.get(part), bad))
        per_class[part] = _readable_per_class(rows, listing.classnames, bad)
    problems = _count_problems(checks)
    problems += listing.problems
    problems += _class_problems(dataset, listing, dataset.n_class if is_field else 0)
    problems += _image_problems(bad)
    for part, rows in listing.splits.items():
        problems += _empty_classes(part, rows, listing.classnames, bad)
    # A broken image is not mended by fetching what is missing.
    is_incomplete = any(check.missing for check in checks)
    return DataCheck(
        dataset=dataset.name,
        root=listing.root,
        splits=checks,
        classnames=list(listing.classnames),
        per_class=per_class,
        notes=[note.line(shown=None) for note in listing.notes],
        problems=problems,
        advice=advice(dataset, data) if is_incomplete else [],
    )


def _bad_images(
    listing: Listing, quick: bool, progress: Callable[[int, int], None]
) -> dict[str, str]:
    """Path -> what is wrong, for all images that are not there or cannot be read."""
    # An image may stand in more than one split, and is opened once.
    paths: set[str] = set()
    for rows in listing.splits.values():
        paths |= {path for path, _ in rows}
    bad = {}
    if listing.root is not None:
        for path in paths:
            # Not Path.is_file, which raises an error of its own on a name that is too long.
            if not os.path.isfile(listing.root / path):
                bad[path] = MISSING
    if quick:
        return bad
    present = sorted(paths - set(bad))
    # Pillow decodes without Python's lock, so threads decode several images at once.
    with ThreadPoolExecutor(default_workers()) as pool:
        reasons = pool.map(lambda path: _why_unreadable(listing, path), present)
        for number, (path, reason) in enumerate(zip(present, reasons, strict=True), 1):
            if reason:
                bad[path] = reason
            progress(number, len(present))
    return bad


def _why_unreadable(listing: Listing, path: str) -> str:
    """What is wrong with an image, in one short line; empty where it can be read."""
    try:
        listing.open(path)
    except Exception as error:  # a decoder may raise anything on a bad file
        return " ".join(f"{type(error).__name__}: {error}".split())[:100]
    return ""


def _check_split(name: str, rows: Rows, expected: int | None, bad: Mapping[str, str]) -> SplitCheck:
    reasons = [bad[path] for path, _ in rows if path in bad]
    missing = reasons.count(MISSING)
    return SplitCheck(
        name=name,
        listed=len(rows),
        expected=expected,
        missing=missing,
        unreadable=len(reasons) - missing,
    )


def _readable_per_class(
    rows: Rows, classnames: Sequence[str], bad: Mapping[str, str]
) -> dict[str, int]:
    readable = Counter(classnames[label] for path, label in rows if path not in bad)
    return {name: readable[name] for name in classnames}


def _count_problems(checks: Sequence[SplitCheck]) -> list[str]:
    return [
        f"{check.name} lists {check.listed:,} images, it should list {check.expected:,}"
        for check in checks
        if check.expected not in (None, check.listed)
    ]


def _class_problems(dataset: Dataset, listing: Listing, expected: int) -> list[str]:
    """Wrong numbers of classes (expected 0: not known), and names of several classes."""
    problems = []
    n_class = len(listing.classnames)
    if expected and n_class != expected:
        problems.append(f"there are {n_class} classes, there should be {expected}")
    # Two of ImageNet's names, missile and sunglasses, stand for two classes each.
    if not dataset.name.startswith("imagenet"):
        counts = Counter(listing.classnames)
        repeated = [name for name, count in counts.items() if count > 1]
        if repeated:
            problems.append(
                f"class name '{repeated[0]}' stands for more than one class;"
                " zero-shot cannot tell these apart"
            )
    return problems


def _image_problems(bad: Mapping[str, str]) -> list[str]:
    problems = [f"{path}: {reason}" for path, reason in sorted(bad.items())[:SHOWN]]
    if len(bad) > SHOWN:
        problems.append(f"and {len(bad) - SHOWN:,} more images that are missing or cannot be read")
    return problems


def _empty_classes(
    split: str, rows: Rows, classnames: Sequence[str], bad: Mapping[str, str]
) -> list[str]:
    """Classes that are listed and have no image that can be read."""
    listed = {label for _, label in rows}
    readable = {label for path, label in rows if path not in bad}
    empty = sorted(listed - readable)
    return [f"{split} has no image of class '{classnames[label]}'" for label in empty[:SHOWN]]


def advice(dataset: Dataset, data: Path | None) -> list[str]:
    """Where to get a data set, a line each."""
    if data:
        folder = f"{data}/{dataset.folder}/"
    else:
        folder = f"{dataset.folder}/ in the folder given by --data or $CLIAD_DATA"
    lines = []
    if dataset.remotes:
        megabytes = sum(remote.megabytes for remote in dataset.remotes)
        size = f" {megabytes:,.0f} MB" if megabytes else ""
        lines.append(f"`cliad data download {dataset.name}` fetches{size}:")
        for remote in dataset.remotes:
            target = f" -> {folder}{remote.file}" if data else ""
            lines.append(f"  {remote.url}{target}")
    if dataset.by_hand:
        lines.append(f"by hand: {dataset.by_hand}, into {folder}")
    return lines

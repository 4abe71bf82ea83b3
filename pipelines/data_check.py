"""`cliad data check`: a data set on the disk against what it should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from cliad.cache.datasets import data_dir, find_dataset
from cliad.cache.datasets.base import Dataset, DatasetError, Listing
from cliad.cache.extract.reading import default_workers

SHOWN = 5


@dataclass(frozen=True)
class SplitCheck:
    """One split: rows listed, rows expected (None: not known), images that are missing, and that cannot be read."""

    name: str
    listed: int
    expected: int | None
    missing: int
    unreadable: int


@dataclass(frozen=True)
class DataCheck:
    """What was found: the image folder, its splits, class names and their number of images, and a line for every problem."""

    dataset: str
    root: Path | None
    splits: list[SplitCheck] = field(default_factory=list)
    classnames: list[str] = field(default_factory=list)
    per_class: dict[str, dict[str, int]] = field(
        default_factory=dict
    )  # split -> class name -> images there
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
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DataCheck:
    """Compare a data set on the disk with what it should be: counts, class names, missing and unreadable images.

    Args:
        name: the data set, also folder:PATH, csv:FILE, wds:PATTERN.
        data: the folder that holds the data sets; by default $CLIAD_DATA.
        split: "field" or "official".
        quick: look only whether images are there, do not open them.
        progress: takes images opened so far, and in all.
    Raises:
        DatasetError: there is no data set of that name.
    """
    dataset, data = find_dataset(name), data_dir(data)
    try:
        listing = dataset.read(data, split)
    except DatasetError as error:
        return DataCheck(dataset.name, None, problems=[str(error)], advice=advice(dataset, data))
    bad = _bad_images(listing, quick, progress)
    expected = dataset.counts if split == "field" else {}
    splits = [
        _split_check(part, rows, expected.get(part), bad) for part, rows in listing.splits.items()
    ]
    problems = _problems(dataset, listing, splits, bad, split)
    names = list(listing.classnames)
    per_class = {part: _per_class(rows, names, bad) for part, rows in listing.splits.items()}
    tips = advice(dataset, data) if any(check.missing for check in splits) else []
    return DataCheck(dataset.name, listing.root, splits, names, per_class, problems, tips)


def _bad_images(
    listing: Listing, quick: bool, progress: Callable[[int, int], None]
) -> dict[str, str]:
    """Path -> what is wrong, for all images that are not there or cannot be read."""
    paths = sorted({path for rows in listing.splits.values() for path, _ in rows})
    gone = {path for path in paths if listing.root and not (listing.root / path).is_file()}
    bad = dict.fromkeys(gone, "missing")
    if quick:
        return bad
    there = [path for path in paths if path not in gone]
    with ThreadPoolExecutor(default_workers()) as pool:
        for done, (path, why) in enumerate(
            zip(there, pool.map(lambda path: _why_unreadable(listing, path), there), strict=True)
        ):
            bad |= {path: why} if why else {}
            progress(done + 1, len(there))
    return bad


def _why_unreadable(listing: Listing, path: str) -> str:
    try:
        listing.open(path)
    except Exception as error:  # a decoder may raise anything on a bad file
        return " ".join(f"{type(error).__name__}: {error}".split())[:100]
    return ""


def _split_check(
    name: str, rows: list[tuple[str, int]], expected: int | None, bad: dict[str, str]
) -> SplitCheck:
    missing = sum(bad.get(path) == "missing" for path, _ in rows)
    return SplitCheck(
        name, len(rows), expected, missing, sum(path in bad for path, _ in rows) - missing
    )


def _per_class(
    rows: list[tuple[str, int]], names: list[str], bad: dict[str, str]
) -> dict[str, int]:
    there = Counter(names[y] for path, y in rows if path not in bad)
    return {name: there[name] for name in names}


def _problems(
    dataset: Dataset, listing: Listing, splits: list[SplitCheck], bad: dict[str, str], split: str
) -> list[str]:
    found = [
        f"{s.name} lists {s.listed:,} images, it should list {s.expected:,}"
        for s in splits
        if s.expected not in (None, s.listed)
    ]
    if split == "field" and dataset.n_class and len(listing.classnames) != dataset.n_class:
        found.append(
            f"there are {len(listing.classnames)} classes, there should be {dataset.n_class}"
        )
    if twice := [
        name
        for name, n in Counter(listing.classnames).items()
        if n > 1 and not dataset.name.startswith("imagenet")
    ]:
        found.append(
            f"class name '{twice[0]}' stands for more than one class; zero-shot cannot tell these apart"
        )
    found += [f"{path}: {why}" for path, why in sorted(bad.items())[:SHOWN]]
    if len(bad) > SHOWN:
        found.append(f"and {len(bad) - SHOWN:,} more images that are missing or cannot be read")
    for s in splits:
        rows = listing.splits[s.name]
        empty = sorted({y for _, y in rows} - {y for path, y in rows if path not in bad})
        found += [
            f"{s.name} has no image of class '{listing.classnames[y]}'" for y in empty[:SHOWN]
        ]
    return found


def advice(dataset: Dataset, data: Path | None) -> list[str]:
    """Where to get a data set, a line each."""
    folder = (
        f"{data}/{dataset.folder}/"
        if data
        else f"{dataset.folder}/ in the folder given by --data or $CLIAD_DATA"
    )
    lines = []
    if dataset.remotes:
        size = sum(remote.megabytes for remote in dataset.remotes)
        lines.append(
            f"`cliad data download {dataset.name}` fetches" + (f" {size:,.0f} MB:" if size else ":")
        )
        lines += [
            f"  {remote.url} -> {folder}{remote.file}" if data else f"  {remote.url}"
            for remote in dataset.remotes
        ]
    if dataset.by_hand:
        lines.append(f"by hand: {dataset.by_hand}, into {folder}")
    return lines

"""A data set's lists, found on the disk before anything else is loaded.

Nothing here loads torch, so that what is wrong with a list is said at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cliad.cache.datasets import data_dir, find_dataset
from cliad.cache.datasets.base import Dataset, DatasetError, DatasetMissing, Listing
from cliad.cache.datasets.download import Fetching, download
from cliad.cache.datasets.own import NOTHING, Allowed

MISSING_SHARE = 0.5  # where more files are missing, it is a wrong folder, not some bad images
SAMPLE = 500  # about as many paths are looked up on the disk


@dataclass(frozen=True)
class FoundImages:
    """A data set that is known, and what it is on this disk."""

    known: Dataset
    listing: Listing


def find_images(
    name: str,
    *,
    data: Path | None = None,
    split: str = "field",
    allowed: Allowed = NOTHING,
    fetch: bool = True,
    log: Callable[[str], None] = lambda line: None,
    fetching: Callable[[Fetching], None] = lambda state: None,
) -> FoundImages:
    """The lists of a data set, which is fetched where it is missing and that is allowed.

    Args:
        name: a name of `cliad datasets`, or folder:PATH, csv:FILE, wds:PATTERN.
        data: the folder that holds the data sets; by default $CLIAD_DATA.
        split: "field" or "official".
        allowed: what a user's own folder or list may do beyond the rule.
        fetch: whether a data set that is missing is fetched.
        log: takes lines for the user: what was left out, and what was chosen.
        fetching: takes the state of a download.

    Raises:
        DatasetError: there is no such data set, it is not on the disk, most of its images are not,
            or its lists contradict themselves.
        DownloadError: it cannot be fetched.
    """
    known = find_dataset(name, allowed)
    check_use(known, data, split)
    listing = _listing(known, data_dir(data), split, fetch, log, fetching)
    if listing.problems:
        raise DatasetError(listing.problems[0])
    for note in listing.notes:
        log(note.line())
    return FoundImages(known, listing)


def check_use(known: Dataset, data: Path | None, split: str) -> None:
    """Refuse options that a data set has no use for: what was typed was meant to do something.

    Raises:
        DatasetError: a bundled data set is looked for in a folder, or a user's own data or bundled
            ones with an official split.
    """
    if split not in ("field", "official"):
        raise DatasetError(
            "--split is field (the split files of the literature) "
            f"or official (the data set's own); got {split}"
        )
    if known.bundled and data is not None:
        raise DatasetError(f"{known.name} comes with cliad; leave out --data")
    if split == "official" and (known.bundled or ":" in known.name):
        raise DatasetError(f"{known.name} has one way to be split; leave out --split official")


def _listing(
    known: Dataset,
    data: Path | None,
    split: str,
    fetch: bool,
    log: Callable[[str], None],
    fetching: Callable[[Fetching], None],
) -> Listing:
    """The data set's rows; what is missing is fetched first, where that can be done and is allowed.

    Raises:
        DatasetError: it is not on the disk, or most of its images are not.
        DownloadError: it cannot be fetched.
    """
    try:
        listing = known.read(data, split)
    except DatasetMissing as error:
        if not fetch or not known.remotes or known.by_hand:
            raise DatasetMissing(
                f"{error}; `cliad data check {known.name}` says where to get it"
            ) from None
        data = download(known.name, data=data, log=log, progress=fetching)
        listing = known.read(data, split)
    _check_files(known.name, listing)
    return listing


def _check_files(name: str, listing: Listing) -> None:
    """Refuse a data set most of whose files are not there: a wrong folder, not some bad images."""
    paths = []
    for rows in listing.splits.values():
        paths += [path for path, _ in rows]
    if not paths:
        where = f" in {listing.root}" if listing.root else ""
        raise DatasetError(f"{name} has no images{where}")
    if listing.root is None:
        return  # its images are not files of their own
    sample = paths[:: max(1, len(paths) // SAMPLE)]
    missing = [path for path in sample if not os.path.isfile(listing.root / path)]
    if len(missing) > MISSING_SHARE * len(sample):
        raise DatasetError(
            f"most images of {name} are not there, such as {listing.root / missing[0]}; "
            f"`cliad data check {name}` says more"
        )

"""`cliad extract`: images and class names become a cache file, once per encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cliad.cache.datasets import data_dir, find_dataset
from cliad.cache.datasets.base import Dataset, DatasetError, DatasetMissing, Listing
from cliad.cache.datasets.download import Fetching, download
from cliad.cache.encoders.base import EncoderError, choose_device
from cliad.cache.extract.choices import SILENT, EncoderChoice, Extras, Log, PromptChoice
from cliad.cache.extract.filling import Progress
from cliad.cache.extract.job import Extraction
from cliad.cache.extract.reading import default_workers
from cliad.cache.extract.run import _add_prompts, _is_whole, _make, _Run
from cliad.cache.file.layout import recipe_id
from cliad.cache.file.write import lock_cache
from cliad.cache.folder import cache_dir, cache_path
from cliad.cache.views import parse_draws
from cliad.pipelines.fewshot.draw import draw

MISSING_SHARE = 0.5  # so many missing files are a wrong folder, not bad images


def extract(
    dataset: str,
    *,
    cache_folder: Path | None = None,
    model: str | None = None,
    pretrained: str | None = None,
    encoder: EncoderChoice | None = None,
    prompt_set: PromptChoice = PromptChoice(),
    extras: Extras = Extras(),
    split: str = "field",
    data: Path | None = None,
    device: str = "auto",
    dtype: str = "float16",
    batch: int | None = None,
    workers: int | None = None,
    force: bool = False,
    fetch: bool = True,
    log: Log = SILENT,
    progress: Callable[[Progress], None] = lambda state: None,
    fetching: Callable[[Fetching], None] = lambda state: None,
) -> Path:
    """The cache of a data set by an encoder, made, finished or found; a prompt set that it lacks is added.

    Args:
        dataset: a name of `cliad datasets`, or folder:PATH, csv:FILE, wds:PATTERN.
        cache_folder: where caches lie; None: $CLIAD_CACHE or the user's cache folder.
        model, pretrained: the encoder, in short for `encoder`.
        split: "field" or "official".
        data: the folder that holds the data sets; by default $CLIAD_DATA.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: how features are stored, float16 or float32; with float32 they are also computed in full precision.
        batch, workers: images per encoder call, and threads that read images; found when not given.
        force: extract anew what is there already.
        fetch: whether a data set that is missing is fetched.
        log, progress, fetching: take lines for the user, the state after every batch, the state of a download.
    Returns:
        The path of the whole cache file.
    Raises:
        DatasetError, DownloadError, EncoderError, PromptError, ViewError, DrawError, CacheError: one line that says what to do.
    """
    if dtype not in ("float16", "float32"):
        raise EncoderError(f"--dtype is float16 or float32; got {dtype}")
    if split not in ("field", "official"):
        raise DatasetError(
            f"--split is field (the split files of the literature) or official (the data set's own); got {split}"
        )
    known = find_dataset(dataset)
    name = known.name
    listing = _listing(known, data_dir(data), split, fetch, log, fetching)
    texts = prompt_set.texts(listing, known)
    where = choose_device(device)
    chosen = encoder or EncoderChoice(model, pretrained)
    network = chosen.load(name, where, half=dtype == "float16", fetch=fetch, log=log)
    rows = _rows_for(extras.views_for, listing)
    job = Extraction(name, listing, network, dtype, extras.parts, extras.view_sets, rows)
    _check_parts(job)
    run = _Run(
        job,
        texts,
        prompt_set.key,
        extras.pre_projection,
        workers or default_workers(),
        log,
        progress,
    )
    path = cache_path(cache_dir(cache_folder), name, network.name, recipe_id(job.recipe))
    if path.exists() and not force and _is_whole(path, run):
        return path
    with lock_cache(path, log):
        if path.exists() and not force:
            return path if _is_whole(path, run) else _add_prompts(path, run)
        return _make(path, run, batch, force)


def _listing(
    known: Dataset,
    data: Path | None,
    split: str,
    fetch: bool,
    log: Log,
    fetching: Callable[[Fetching], None],
) -> Listing:
    """The data set's rows; what is missing is fetched first, where that can be done and is allowed."""
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
    """DatasetError where most of the files are not there: that is a wrong folder, not a bad image."""
    rows = [path for split in listing.splits.values() for path, _ in split]
    if not rows:
        raise DatasetError(f"{name} has no images{f' in {listing.root}' if listing.root else ''}")
    if listing.root is None:
        return
    sample = rows[:: max(1, len(rows) // 500)]
    gone = [path for path in sample if not (listing.root / path).is_file()]
    if len(gone) > MISSING_SHARE * len(sample):
        raise DatasetError(
            f"most images of {name} are not there, such as {listing.root / gone[0]}; `cliad data check {name}` says more"
        )


def _rows_for(views_for: str | None, listing: Listing) -> list[int] | None:
    """Training rows that some of the draws uses as support, ascending; None: all."""
    if views_for is None:
        return None
    protocol, shots, seeds = parse_draws(views_for)
    train, val = ([y for _, y in listing.splits.get(name, [])] for name in ("train", "val"))
    draws = [
        draw(train, val, shots=n, seed=seed, protocol=protocol, names=listing.classnames)
        for n in shots
        for seed in seeds
    ]
    return sorted({row for drawn in draws for row in drawn.train})


def _check_parts(job: Extraction) -> None:
    if missing := [part for part in job.parts if part not in job.encoder.parts]:
        raise EncoderError(
            f"{job.encoder.name} gives no {missing[0].replace('_', '-')} output; leave out --{missing[0].replace('_', '-')}"
        )
    if job.view_sets and "train" not in job.listing.splits:
        raise DatasetError(
            f"{job.dataset} has no training images, so there are none to make views of; leave out --views"
        )

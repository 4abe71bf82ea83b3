"""`cliad extract`: images and class names become a cache file, once per encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cliad.cache.datasets.base import Listing
from cliad.cache.datasets.download import Fetching
from cliad.cache.encoders.base import Encoder, EncoderError, choose_device
from cliad.cache.encoders.clip import Clip
from cliad.cache.encoders.text_tower import CausalTower
from cliad.cache.equal_texts import note_equal_texts
from cliad.cache.extract.choices import EncoderChoice, Extras, Log, PromptChoice, silent
from cliad.cache.extract.extraction import Extraction
from cliad.cache.extract.filling import Progress
from cliad.cache.extract.run import PreparedExtraction, ensure_cache
from cliad.cache.extract.workers import number_of_workers
from cliad.cache.file.layout import recipe_id
from cliad.cache.file.read import open_cache
from cliad.cache.folder import cache_dir, cache_path
from cliad.cache.views import parse_draws
from cliad.pipelines.fewshot.draw import draw
from cliad.pipelines.found_images import FoundImages, find_images
from cliad.pipelines.tower import keep

MOST_AT_ONCE = 65_536  # images in one call of the encoder


def extract(
    dataset: str | FoundImages,
    *,
    cache_folder: Path | None = None,
    model: str | None = None,
    pretrained: str | None = None,
    encoder: EncoderChoice | None = None,
    prompt_set: PromptChoice | None = None,
    extras: Extras | None = None,
    split: str = "field",
    data: Path | None = None,
    device: str = "auto",
    dtype: str = "float16",
    batch: int | None = None,
    workers: int | None = None,
    force: bool = False,
    fetch: bool = True,
    log: Log = silent,
    progress: Callable[[Progress], None] = lambda state: None,
    fetching: Callable[[Fetching], None] = lambda state: None,
) -> Path:
    """The cache of a data set by an encoder, made, finished or found; missing prompts are added.

    Args:
        dataset: a name of `cliad datasets`, or folder:PATH, csv:FILE, wds:PATTERN; or what
            `find_images` found, with which `split`, `data` and `fetching` have no meaning.
        cache_folder: where caches lie; None: $CLIAD_CACHE or the user's cache folder.
        model, pretrained: the encoder's names, in place of `encoder`.
        encoder: the encoder and how it sees images.
        prompt_set: the prompts; None: those that come with the data set.
        extras: what is stored beside the features; None: nothing.
        split: "field" or "official".
        data: the folder that holds the data sets; by default $CLIAD_DATA.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: how features are stored, float16 or float32; with float32 they are also computed in
            full precision.
        batch: images per encoder call; None: what the device's memory holds.
        workers: threads that read images; None: one per core.
        force: extract anew what is there already.
        fetch: whether a data set or weights that are missing are fetched.
        log: takes lines for the user.
        progress: takes the state after every batch.
        fetching: takes the state of a download.

    Returns:
        The path of the complete cache file.

    Raises:
        DatasetError, DownloadError, EncoderError, PromptError, ClassnamesError, ViewError,
        DrawError, CacheError: one line that says what to do.
        ValueError: the encoder is given twice.
    """
    if encoder is not None and (model, pretrained) != (None, None):
        raise ValueError(f"expected either encoder or its names, got {encoder=}, {model=}")
    _check_dtype(dtype)
    _check_batch(batch)
    readers = number_of_workers(workers)
    extras = extras or Extras()
    extras.check()
    prompt_set = prompt_set or PromptChoice()
    prompt_set.check()
    encoder = encoder or EncoderChoice(model, pretrained)
    if isinstance(dataset, str):
        dataset = find_images(
            dataset, data=data, split=split, fetch=fetch, log=log, fetching=fetching
        )
    known = dataset.known
    listing = dataset.listing
    texts = prompt_set.texts(listing, known)
    extraction = Extraction(
        dataset=known.name,
        listing=listing,
        encoder=encoder.load(
            known.name, choose_device(device), half=dtype == "float16", fetch=fetch, log=log
        ),
        dtype=dtype,
        parts=extras.parts,
        view_sets=extras.view_sets,
        view_rows=_support_rows(extras.views_for, listing),
    )
    extraction.check()
    # A tower that cannot be kept is refused before any image is encoded.
    tower = _text_tower(extraction.encoder) if extras.text_tower else None
    prepared = PreparedExtraction(
        extraction=extraction,
        texts=texts,
        prompt_key=prompt_set.key,
        text_pre_projection=extras.pre_projection,
        workers=readers,
        log=log,
        progress=progress,
    )
    folder = cache_dir(cache_folder)
    path = cache_path(folder, known.name, extraction.encoder.name, recipe_id(extraction.recipe))
    path = ensure_cache(path, prepared, batch=batch, force=force)
    cache = open_cache(path, prompt_set.key)
    note_equal_texts(cache.text, cache.classnames, cache.encoder, log)
    if tower is not None:
        log(f"kept the text tower in {keep(cache, tower)}")
    return path


def _text_tower(encoder: Encoder) -> CausalTower:
    """The text tower of an encoder that has one to be taken apart."""
    if not isinstance(encoder, Clip):
        raise EncoderError(
            f"the text tower of {encoder.name} cannot be kept; leave --text-tower out"
        )
    return encoder.text_tower()


def _check_dtype(dtype: str) -> None:
    if dtype not in ("float16", "float32"):
        raise EncoderError(f"--dtype is float16 or float32; got {dtype}")


def _check_batch(batch: int | None) -> None:
    if batch is not None and not 1 <= batch <= MOST_AT_ONCE:
        raise EncoderError(f"--batch is a number from 1 to {MOST_AT_ONCE:,}; got {batch}")


def _support_rows(views_for: str | None, listing: Listing) -> list[int] | None:
    """Training rows that some of the draws uses as support, ascending; None: all.

    Raises:
        ViewError: `views_for` is not of the form PROTOCOL:SHOTS:SEEDS.
        DrawError: there is no such protocol, or there are too few images.
    """
    if views_for is None:
        return None
    protocol, all_shots, seeds = parse_draws(views_for)
    train = _labels(listing, "train")
    val = _labels(listing, "val")
    rows: set[int] = set()
    for shots in all_shots:
        for seed in seeds:
            drawn = draw(
                train, val, shots=shots, seed=seed, protocol=protocol, names=listing.classnames
            )
            rows.update(drawn.train)
    return sorted(rows)


def _labels(listing: Listing, split: str) -> list[int]:
    """The labels of a split; none where there is no such split."""
    return [label for _, label in listing.splits.get(split, [])]

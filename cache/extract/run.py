"""The life of an extraction: found, resumed or made; prompts added; what is said about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cliad.cache import prompts
from cliad.cache.encoders.base import EncoderError, is_out_of_memory
from cliad.cache.extract.batch_size import default_batch
from cliad.cache.extract.choices import Log
from cliad.cache.extract.extraction import Extraction
from cliad.cache.extract.filling import ExtractionStats, Progress, run_extraction
from cliad.cache.file.layout import DONE, CacheError, TextSet, part_of, recipe_id
from cliad.cache.file.read import FeatureCache, open_cache
from cliad.cache.file.write import add_text, create, lock_cache

SHOWN = 10  # unreadable images named in the closing lines


@dataclass(frozen=True)
class PreparedExtraction:
    """An extraction with its prompts, and where messages go."""

    extraction: Extraction
    texts: prompts.Prompts
    prompt_key: str  # the name under which the file keeps the prompts
    text_pre_projection: bool  # whether texts are also kept before their projection
    workers: int  # threads that read images
    log: Log
    progress: Callable[[Progress], None]

    def text_set(self) -> TextSet:
        """The prompt set with its features (n_template, n_class, dim)."""
        encoder = self.extraction.encoder
        pre_projection = None
        if self.text_pre_projection and encoder.text_projects:
            pre_projection = self._embed_texts(pre_projection=True)
        elif self.text_pre_projection:
            self.log(
                f"the text tower of {encoder.name} has no projection of its own: features before"
                " the projection are stored of images alone"
            )
        return TextSet(
            name=self.prompt_key,
            features=self._embed_texts(pre_projection=False),
            templates=list(self.texts.labels),
            classnames=list(self.texts.classnames),
            recipe=self.text_recipe,
            encoder_id=encoder.encoder_id,
            logit_scale=encoder.logit_scale,
            pre_projection=pre_projection,
        )

    def _embed_texts(self, *, pre_projection: bool) -> np.ndarray:
        def encode(lines: list[str]) -> np.ndarray:
            rows = self.extraction.encoder.encode_texts(lines, pre_projection=pre_projection)
            return rows.cpu().numpy()

        return self.texts.embed(encode)

    @property
    def text_recipe(self) -> dict:
        """All that decides the text features: the text id is its hash."""
        return {**self.texts.recipe, "encoder": dict(self.extraction.encoder.text_recipe)}

    def has_prompts(self, cache: FeatureCache) -> bool:
        """Whether a cache, opened with the prompts of this key, has just these."""
        is_named = self.prompt_key in cache.prompt_sets
        return is_named and cache.text_id == recipe_id(self.text_recipe)


def ensure_cache(
    path: Path, prepared: PreparedExtraction, *, batch: int | None = None, force: bool = False
) -> Path:
    """The cache at `path`: as it is where it is complete, else with the prompts added, or made.

    Args:
        path: the name of the complete file.
        prepared: what the file is to hold.
        batch: images per encoder call; None: see `default_batch`.
        force: make it anew even if it is there.

    Raises:
        CacheError: the cache cannot be read or written.
        DatasetError: no image can be read.
        EncoderError: the device's memory does not hold a batch, or features are not finite.
    """
    # Looked at before the lock is taken too: a complete cache needs no right to write.
    if path.exists() and not force and _is_complete(path, prepared):
        return path
    with lock_cache(path, prepared.log):
        if force or not path.exists():
            with _no_empty_part(path):
                _make(path, prepared, batch, force)
        elif not _is_complete(path, prepared):
            add_text(path, prepared.text_set())
            prepared.log(f"added prompts '{prepared.prompt_key}' to {path}")
    return path


@contextmanager
def _no_empty_part(path: Path) -> Iterator[None]:
    """Remove `path`.part where the block raises before it has a row: there is nothing to resume."""
    try:
        yield
    except BaseException:
        with suppress(CacheError, OSError):
            cache = open_cache(part_of(path), any_prompts=True)
            if not any((cache.split(name).status == DONE).any() for name in cache.split_names):
                part_of(path).unlink()
        raise


def _is_complete(path: Path, prepared: PreparedExtraction) -> bool:
    """Whether a finished file has the prompt set, too."""
    cache = open_cache(path, prepared.prompt_key, any_prompts=True)
    is_complete = prepared.has_prompts(cache)
    if is_complete:
        prepared.log(f"{path} is complete; nothing to do (--force extracts it anew)")
    return is_complete


def _make(path: Path, prepared: PreparedExtraction, batch: int | None, force: bool) -> None:
    """Make the cache; where memory does not hold a batch of our own choice, with half of it."""
    size = batch or default_batch(prepared.extraction)
    stats = None
    while stats is None:
        _prepare_part(path, prepared, size, force)
        size = open_cache(part_of(path)).batch  # a resumed file keeps its own
        _announce(path, prepared, size)
        try:
            stats = run_extraction(
                path, prepared.extraction, workers=prepared.workers, progress=prepared.progress
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if size == 1 or batch:
                raise EncoderError(
                    f"the device's memory does not hold {size} images at a time; "
                    f"give --batch {max(1, size // 2)} --force"
                ) from None
            size //= 2
            force = True
            prepared.log(f"out of memory; starting anew with {size} images at a time")
    _report(path, stats, prepared.log)
    for split in _unread_splits(prepared.extraction, stats):
        prepared.log(f"no image of {split} could be read: nothing can be done with that split")


def _prepare_part(path: Path, prepared: PreparedExtraction, batch: int, force: bool) -> None:
    """Make sure that `path`.part is there: resumed where it can be, else made."""
    if force or not _can_resume(part_of(path), prepared):
        extraction = prepared.extraction
        create(path, extraction.header(batch), extraction.splits, [prepared.text_set()])


def _can_resume(part: Path, prepared: PreparedExtraction) -> bool:
    """Whether an unfinished file can be read and is of these prompts and no others."""
    if not part.exists():
        return False
    try:
        cache = open_cache(part, any_prompts=True)
    except CacheError:
        prepared.log(f"{part.name} is damaged; starting anew")
        return False
    can_resume = len(cache.prompt_sets) == 1 and prepared.has_prompts(cache)
    if can_resume:
        prepared.log(f"resuming {part.name}")
        _note_precision(part, cache, prepared)
    else:
        prepared.log(f"{part.name} was begun with other prompts; starting anew")
    return can_resume


def _note_precision(part: Path, cache: FeatureCache, prepared: PreparedExtraction) -> None:
    """A line where what is there was computed in another precision than what is to come."""
    before = cache.versions.get("precision")
    now = prepared.extraction.encoder.precision
    if before not in (None, now):
        prepared.log(
            f"{part.name} was begun in {before} and goes on in {now}: last digits differ"
            " between its rows; --force starts anew"
        )


def _announce(path: Path, prepared: PreparedExtraction, batch: int) -> None:
    extraction = prepared.extraction
    encoder = extraction.encoder
    n_image = sum(len(rows) for rows in extraction.listing.splits.values())
    prepared.log(
        f"{extraction.dataset}: {n_image:,} images, "
        f"{encoder.name} on {encoder.device} ({encoder.precision}), "
        f"{batch} at a time, {prepared.workers} readers"
    )
    stored = list(extraction.parts)
    for name, views in extraction.view_sets.items():
        stored.append(f"{views.n_view} {name}")
    prepared.log(f"storing {', '.join(stored)}: {extraction.nbytes / 1e6:,.1f} MB in {path.parent}")


def _report(path: Path, stats: ExtractionStats, log: Log) -> None:
    seconds = max(stats.seconds, 1e-9)
    log(
        f"{stats.images:,} images in {seconds:.1f} s: {stats.images / seconds:.0f} a second, "
        f"{stats.waited / seconds:.0%} of the time waiting for images"
    )
    for name, reason in stats.unreadable[:SHOWN]:
        log(f"unreadable: {name} ({reason})")
    n_more = len(stats.unreadable) - SHOWN
    if n_more > 0:
        log(f"and {n_more} more unreadable images; `cliad info` lists them")
    log(f"wrote {path}")


def _unread_splits(extraction: Extraction, stats: ExtractionStats) -> list[str]:
    """The splits of which this extraction could read no image."""
    # A name is the split, a space and the path.
    unreadable = Counter(name.split(" ", 1)[0] for name, _ in stats.unreadable)
    splits = extraction.listing.splits.items()
    return [split for split, rows in splits if rows and unreadable[split] == len(rows)]

"""The life of an extraction: found, resumed or made; prompts added; what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cliad.cache import prompts
from cliad.cache.encoders.base import EncoderError, is_out_of_memory
from cliad.cache.extract.batch_size import default_batch
from cliad.cache.extract.choices import Log
from cliad.cache.extract.filling import ExtractionStats, Progress, run_extraction
from cliad.cache.extract.job import Extraction
from cliad.cache.file.layout import CacheError, TextSet, part_of, recipe_id
from cliad.cache.file.read import open_cache
from cliad.cache.file.write import add_text, create

SHOWN = 10  # unreadable images named in the closing lines


@dataclass(frozen=True)
class _Run:
    """An extraction with its prompts and where messages go."""

    job: Extraction
    texts: prompts.Prompts
    key: str
    pre_projection: bool
    workers: int
    log: Log
    progress: Callable[[Progress], None]

    def text_set(self) -> TextSet:
        """The prompt set with its features (n_template, n_class, dim)."""
        network = self.job.encoder
        features = self.texts.embed(lambda lines: network.encode_texts(lines).cpu().numpy())
        keep = self.pre_projection and network.text_projects
        before = (
            self.texts.embed(
                lambda lines: network.encode_texts(lines, pre_projection=True).cpu().numpy()
            )
            if keep
            else None
        )
        labels = list(self.texts.labels)
        names = list(self.texts.classnames)
        return TextSet(
            self.key,
            features,
            labels,
            names,
            self.text_recipe,
            network.encoder_id,
            network.logit_scale,
            before,
        )

    @property
    def text_recipe(self) -> dict:
        return {**self.texts.recipe, "encoder": dict(self.job.encoder.text_recipe)}


def _is_whole(path: Path, run: _Run) -> bool:
    """Whether a finished file has the prompt set too; needs no right to write."""
    cache = open_cache(path, run.key, any_prompts=True)
    if run.key not in cache.prompt_sets or cache.text_id != recipe_id(run.text_recipe):
        return False
    run.log(f"{path} is whole; nothing to do (--force extracts it anew)")
    return True


def _add_prompts(path: Path, run: _Run) -> Path:
    add_text(path, run.text_set())
    run.log(f"added prompts '{run.key}' to {path}")
    return path


def _make(path: Path, run: _Run, batch: int | None, force: bool) -> Path:
    size = batch or default_batch(run.job)
    while True:
        _prepare(path, run, size, force)
        size = open_cache(part_of(path)).batch
        _announce(path, run, size)
        try:
            done = run_extraction(path, run.job, workers=run.workers, progress=run.progress)
            break
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if size == 1 or batch:
                raise EncoderError(
                    f"the device's memory does not hold {size} images at a time; give --batch {max(1, size // 2)} --force"
                ) from None
            size, force = size // 2, True
            run.log(f"out of memory; starting anew with {size} images at a time")
    _close(path, done, run.log)
    return path


def _prepare(path: Path, run: _Run, batch: int, force: bool) -> None:
    """See to it that `path`.part is there: resumed where one is sound and of these prompts, else made."""
    part = part_of(path)
    if part.exists() and not force:
        try:
            cache = open_cache(part, any_prompts=True)
            if cache.prompt_sets == [run.key] and cache.text_id == recipe_id(run.text_recipe):
                return run.log(f"resuming {part.name}")
            run.log(f"{part.name} was begun with other prompts; starting anew")
        except CacheError:
            run.log(f"{part.name} is damaged; starting anew")
    create(path, run.job.header(batch), run.job.splits, [run.text_set()])


def _announce(path: Path, run: _Run, batch: int) -> None:
    images = sum(len(rows) for rows in run.job.listing.splits.values())
    size, encoder = run.job.nbytes, run.job.encoder
    kept = ", ".join(
        [*run.job.parts, *(f"{views.n_view} {name}" for name, views in run.job.view_sets.items())]
    )
    run.log(
        f"{run.job.dataset}: {images:,} images, {encoder.name} on {encoder.device} ({encoder.precision}), {batch} at a time, {run.workers} readers"
    )
    run.log(f"storing {kept}: {size / 1e6:,.1f} MB in {path.parent}")


def _close(path: Path, done: ExtractionStats, log: Log) -> None:
    seconds = max(done.seconds, 1e-9)
    log(
        f"{done.images:,} images in {seconds:.1f} s: {done.images / seconds:.0f} a second, {done.waited / seconds:.0%} of the time waiting for images"
    )
    for name, why in done.unreadable[:SHOWN]:
        log(f"unreadable: {name} ({why})")
    if len(done.unreadable) > SHOWN:
        log(f"and {len(done.unreadable) - SHOWN} more unreadable images; `cliad info` lists them")
    log(f"wrote {path}")

"""`cliad extract`: images and class names become a cache file, once per encoder."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cliad.cache import clip, prompts, store
from cliad.cache.datasets import find_dataset
from cliad.cache.datasets.base import Listing
from cliad.cache.encoder import Encoder, choose_device
from cliad.cache.folder import cache_dir, cache_path
from cliad.cache.loader import Batch, Loader, default_workers

CPU_BATCH, GPU_BATCH = 64, 512
SHOWN = 10  # unreadable images named in the closing lines


@dataclass(frozen=True)
class Progress:
    """How far an extraction is: images done and in all, images a second, share of the time spent waiting for images."""

    done: int
    total: int
    rate: float
    waiting: float


def extract(
    dataset: str,
    *,
    cache_folder: Path | None = None,
    model: str | None = None,
    pretrained: str | None = None,
    data: Path | None = None,
    device: str = "auto",
    dtype: str = "float16",
    batch: int | None = None,
    workers: int | None = None,
    force: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    progress: Callable[[Progress], None] = lambda state: None,
) -> Path:
    """The cache of a data set by an encoder, made, finished or found.

    Args:
        dataset: a name of `cliad datasets`.
        cache_folder: where caches lie; None: $CLIAD_CACHE or the user's cache folder.
        model, pretrained: the encoder; by default `tiny` for digits and ViT-B-32 / openai for all else.
        data: the folder that holds the data sets.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: how features are stored, float16 or float32; float32 is also computed in full precision.
        batch, workers: images per encoder call, and threads that read images; found when not given.
        force: extract anew what is there already.
        tell, progress: take lines for the user, and the state after every batch.
    Returns:
        The path of the whole cache file.
    Raises:
        DatasetError, EncoderError, PromptError, CacheError: what is wrong and what to do, in one line.
    """
    listing, templates = _listing(dataset, data)
    chosen = (model, pretrained) if model else ("tiny", None) if dataset == "digits" else clip.DEFAULT
    where = choose_device(device)
    encoder = clip.load(*chosen, device=where, half=dtype == "float16")
    job = Extraction(dataset, listing, encoder, prompts.check_templates(templates), dtype, batch or default_batch(encoder))
    path = cache_path(cache_dir(cache_folder), dataset, encoder.name, job.header.image_id)
    with store.hold(path, tell):
        if path.exists() and not force:
            store.open_cache(path)
            tell(f"{path} is whole; nothing to do (--force extracts it anew)")
            return path
        _prepare(path, job, force, tell)
        return _fill(path, job, workers or default_workers(), tell, progress)


def _listing(name: str, data: Path | None) -> tuple[Listing, tuple[str, ...]]:
    dataset = find_dataset(name)
    listing = dataset.read(data, "field")
    return listing, tuple(listing.templates or dataset.templates)


def default_batch(encoder: Encoder) -> int:
    return CPU_BATCH if encoder.device.type == "cpu" else GPU_BATCH


@dataclass(frozen=True)
class Extraction:
    """One data set, one encoder, and what is to be stored."""

    dataset: str
    listing: Listing
    encoder: Encoder
    templates: tuple[str, ...]
    dtype: str
    batch: int

    @property
    def header(self) -> store.Header:
        rows = {name: ([path for path, _ in split], [y for _, y in split]) for name, split in self.listing.splits.items()}
        recipe = {
            "files": store.file_list_hash(rows),
            "encoder": dict(self.encoder.image_recipe),
            "dtype": self.dtype,
            "parts": ["features"],
        }
        return store.Header(
            self.dataset, self.encoder.name, self.encoder.encoder_id, recipe, self.batch, dtype=self.dtype, versions=versions(self.encoder)
        )

    @property
    def splits(self) -> dict[str, store.SplitLayout]:
        columns = {"features": (self.encoder.dim,)}
        return {
            name: store.SplitLayout([path for path, _ in rows], np.array([y for _, y in rows], np.int32), columns)
            for name, rows in self.listing.splits.items()
        }

    def text(self, name: str = "default") -> store.TextSet:
        """The prompt set: features (n_template, n_class, dim) of every template filled with every class name."""
        classnames = [prompts.clean(name) for name in self.listing.classnames]
        texts = prompts.prompts(self.templates, classnames)
        features = self.encoder.encode_texts([text for row in texts for text in row]).cpu().numpy()
        features = features.reshape(len(texts), len(classnames), -1)
        recipe = {"templates": list(self.templates), "classnames": classnames, "encoder": dict(self.encoder.text_recipe)}
        return store.TextSet(name, features, self.templates, classnames, recipe, self.encoder.encoder_id, self.encoder.logit_scale)


def versions(encoder: Encoder) -> dict[str, str]:
    """What made the file: recorded in it, no part of its id."""
    packages = ("torch", "torchvision", "open_clip_torch", "pillow", "numpy", "h5py")
    return {name: importlib.metadata.version(name) for name in packages} | {"device": encoder.device.type}


def _prepare(path: Path, job: Extraction, force: bool, tell: Callable[[str], None]) -> None:
    """See to it that `path`.part is there: resumed where one is sound, else made."""
    part = store.part_of(path)
    if part.exists() and not force:
        try:
            store.open_cache(part)
            return tell(f"resuming {part.name}")
        except store.CacheError:
            tell(f"{part.name} is damaged; starting anew")
    store.create(path, job.header, job.splits, [job.text()])


def _fill(path: Path, job: Extraction, workers: int, tell: Callable[[str], None], progress: Callable[[Progress], None]) -> Path:
    encoder, rows, problems = job.encoder, job.listing.splits, []
    read = lambda split, row: encoder.preprocess(job.listing.open(rows[split][row][0]))
    with store.Writer(path) as writer:
        size, todo = writer.cache.batch, writer.todo()
        total, left = sum(map(len, rows.values())), sum(stop - start for _, start, stop in todo)
        tell(
            f"{job.dataset}: {left:,} of {total:,} images with {encoder.name} on {encoder.device}, {size} at a time, {workers} reading threads"
        )
        loader, begin, done = Loader(todo, read, size=size, workers=workers, pin=encoder.device.type == "cuda"), time.perf_counter(), 0
        for batch, features in _encoded(encoder, loader):
            writer.write(batch.split, batch.start, {"features": features}, batch.status)
            problems += [(f"{batch.split} {rows[batch.split][row][0]}", why) for row, why in batch.problems]
            done += batch.stop - batch.start
            seconds = time.perf_counter() - begin
            progress(Progress(total - left + done, total, done / seconds, loader.waited / seconds))
        writer.finish()
    _close(path, problems, left, time.perf_counter() - begin, loader.waited, tell)
    return path


def _encoded(encoder: Encoder, loader: Loader):
    """Batches with their features (n, dim), float32; a batch's features are fetched when the next one is under way."""
    before: tuple[Batch, torch.Tensor] | None = None
    for batch in loader:
        features = encoder.encode_images(batch.images)[: batch.stop - batch.start]
        if before:
            yield before[0], _rows(*before)
        before = batch, features
    if before:
        yield before[0], _rows(*before)


def _rows(batch: Batch, features: torch.Tensor) -> np.ndarray:
    """Features as an array; rows of unreadable images are zero."""
    x = features.cpu().numpy()
    x[batch.status != store.DONE] = 0
    return x


def _close(path: Path, problems: list[tuple[str, str]], images: int, seconds: float, waited: float, tell: Callable[[str], None]) -> None:
    tell(
        f"{images:,} images in {seconds:.1f} s ({images / max(seconds, 1e-9):.0f} a second, {waited / max(seconds, 1e-9):.0%} waiting for images)"
    )
    for name, why in problems[:SHOWN]:
        tell(f"unreadable: {name} ({why})")
    if len(problems) > SHOWN:
        tell(f"and {len(problems) - SHOWN} more unreadable images; `cliad info` lists them")
    tell(f"wrote {path}")

"""`cliad extract`: images and class names become a cache file, once per encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cliad.cache import clip, prompts, store
from cliad.cache.datasets import data_dir, find_dataset
from cliad.cache.datasets.base import Dataset, DatasetError, DatasetMissing, Listing
from cliad.cache.encoder import Encoder, EncoderError, choose_device, is_out_of_memory
from cliad.cache.filling import Extraction, Filled, Progress, fill
from cliad.cache.folder import cache_dir, cache_path
from cliad.cache.loader import default_workers
from cliad.cache.views import FLIPPED, ViewSet, parse_draws
from cliad.pipelines.download import Fetching, download
from cliad.pipelines.draw import draw

CPU_BATCH, GPU_BATCH, VIEWS_BATCH = 32, 1024, 256  # with views a batch is many more images
SHOWN = 10  # unreadable images named in the closing lines
MISSING_SHARE = 0.5  # so many missing files are a wrong folder, not bad images

Tell = Callable[[str], None]
SILENT: Tell = lambda line: None


@dataclass(frozen=True)
class EncoderChoice:
    """Which encoder, and how it sees images; the defaults are `tiny` for digits and ViT-B-32 / openai for all else."""

    model: str | None = None
    pretrained: str | None = None
    quick_gelu: bool | None = None  # the activation of a local weights file
    squeeze: bool = False  # resize without keeping proportions, as CoOp's code does

    def load(self, dataset: str, device: torch.device, *, half: bool, fetch: bool, tell: Tell) -> Encoder:
        """The encoder; weights that are not here are fetched, if that is allowed."""
        model, pretrained = clip.full_name(*self._names(dataset))
        if missing := clip.to_fetch(model, pretrained):
            name = clip.shown_name(model, pretrained)
            if not fetch:
                raise EncoderError(
                    f"the weights of {name} are not here; leave out --no-download, or give a local file with --pretrained FILE"
                )
            tell(
                f"fetching the weights of {name} from {missing.where}"
                + (f", about {missing.megabytes:,.0f} MB" if missing.megabytes else "")
            )
        return clip.load(model, pretrained, device=device, quick_gelu=self.quick_gelu, squeeze=self.squeeze, half=half)

    def _names(self, dataset: str) -> tuple[str, str | None]:
        if self.model:
            return self.model, self.pretrained
        return ("tiny", None) if dataset == "digits" and self.pretrained is None else (clip.DEFAULT[0], self.pretrained or clip.DEFAULT[1])


@dataclass(frozen=True)
class PromptChoice:
    """Which prompts: a named set of templates, own templates, or sentences per class; and the name under which the file keeps them."""

    name: str | None = None
    templates: Sequence[str] = ()
    descriptions: Path | None = None
    classnames: Path | None = None

    def texts(self, listing: Listing, dataset: Dataset) -> prompts.Prompts:
        names = prompts.read_classnames(self.classnames, len(listing.classnames)) if self.classnames else listing.classnames
        names = [prompts.clean(name) for name in names]
        if self.descriptions:
            return prompts.from_descriptions(self.descriptions, names)
        named = prompts.template_set(self.name) if self.name and not self.templates else None
        return prompts.from_templates(self.templates or named or listing.templates or dataset.templates, names)

    @property
    def key(self) -> str:
        return self.name or ("descriptions" if self.descriptions else "default")


@dataclass(frozen=True)
class Extras:
    """What is stored beside the plain view: views of the training images, pre-projection features, patch tokens."""

    views: int = 0
    scale: tuple[float, float] = (0.5, 1.0)
    views_seed: int = 1
    flip: bool = False
    views_for: str | None = None  # `coop:16:1,2,3`: only images that these draws use
    pre_projection: bool = False
    tokens: bool = False

    @property
    def view_sets(self) -> dict[str, ViewSet]:
        crops = [] if self.views == 0 else [ViewSet(self.views, self.scale, seed=self.views_seed)]
        sets = [*crops, FLIPPED] if self.flip else crops
        return {views.name: views for views in sets}

    @property
    def parts(self) -> tuple[str, ...]:
        return ("features", *["pre_projection"] * self.pre_projection, *["tokens"] * self.tokens)


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
    tell: Tell = SILENT,
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
        tell, progress, fetching: take lines for the user, the state after every batch, the state of a download.
    Returns:
        The path of the whole cache file.
    Raises:
        DatasetError, DownloadError, EncoderError, PromptError, ViewError, DrawError, CacheError: one line that says what to do.
    """
    if dtype not in ("float16", "float32"):
        raise EncoderError(f"--dtype is float16 or float32; got {dtype}")
    if split not in ("field", "official"):
        raise DatasetError(f"--split is field (the split files of the literature) or official (the data set's own); got {split}")
    known = find_dataset(dataset)
    name = known.name
    listing = _listing(known, data_dir(data), split, fetch, tell, fetching)
    texts = prompt_set.texts(listing, known)
    where = choose_device(device)
    chosen = encoder or EncoderChoice(model, pretrained)
    network = chosen.load(name, where, half=dtype == "float16", fetch=fetch, tell=tell)
    rows = _rows_for(extras.views_for, listing)
    job = Extraction(name, listing, network, dtype, extras.parts, extras.view_sets, rows)
    _check_parts(job)
    run = _Run(job, texts, prompt_set.key, extras.pre_projection, workers or default_workers(), tell, progress)
    path = cache_path(cache_dir(cache_folder), name, network.name, store.recipe_id(job.recipe))
    if path.exists() and not force and _is_whole(path, run):
        return path
    with store.hold(path, tell):
        if path.exists() and not force:
            return path if _is_whole(path, run) else _add_prompts(path, run)
        return _make(path, run, batch, force)


@dataclass(frozen=True)
class _Run:
    """An extraction with its prompts and whom to tell."""

    job: Extraction
    texts: prompts.Prompts
    key: str
    pre_projection: bool
    workers: int
    tell: Tell
    progress: Callable[[Progress], None]

    def text_set(self) -> store.TextSet:
        """The prompt set with its features (n_template, n_class, dim)."""
        network = self.job.encoder
        features = self.texts.embed(lambda lines: network.encode_texts(lines).cpu().numpy())
        keep = self.pre_projection and network.text_projects
        before = self.texts.embed(lambda lines: network.encode_texts(lines, pre_projection=True).cpu().numpy()) if keep else None
        labels = list(self.texts.labels)
        names = list(self.texts.classnames)
        return store.TextSet(self.key, features, labels, names, self.text_recipe, network.encoder_id, network.logit_scale, before)

    @property
    def text_recipe(self) -> dict:
        return {**self.texts.recipe, "encoder": dict(self.job.encoder.text_recipe)}


def _listing(known: Dataset, data: Path | None, split: str, fetch: bool, tell: Tell, fetching: Callable[[Fetching], None]) -> Listing:
    """The data set's rows; what is missing is fetched first, where that can be done and is allowed."""
    try:
        listing = known.read(data, split)
    except DatasetMissing as error:
        if not fetch or not known.remotes or known.by_hand:
            raise DatasetMissing(f"{error}; `cliad data check {known.name}` says where to get it") from None
        data = download(known.name, data=data, tell=tell, progress=fetching)
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
        raise DatasetError(f"most images of {name} are not there, such as {listing.root / gone[0]}; `cliad data check {name}` says more")


def _rows_for(views_for: str | None, listing: Listing) -> list[int] | None:
    """Training rows that some of the draws uses as support, ascending; None: all."""
    if views_for is None:
        return None
    protocol, shots, seeds = parse_draws(views_for)
    train, val = ([y for _, y in listing.splits.get(name, [])] for name in ("train", "val"))
    draws = [draw(train, val, shots=n, seed=seed, protocol=protocol, names=listing.classnames) for n in shots for seed in seeds]
    return sorted({row for drawn in draws for row in drawn.train})


def _check_parts(job: Extraction) -> None:
    if missing := [part for part in job.parts if part not in job.encoder.parts]:
        raise EncoderError(f"{job.encoder.name} gives no {missing[0].replace('_', '-')} output; leave out --{missing[0].replace('_', '-')}")
    if job.view_sets and "train" not in job.listing.splits:
        raise DatasetError(f"{job.dataset} has no training images, so there are none to make views of; leave out --views")


def _is_whole(path: Path, run: _Run) -> bool:
    """Whether a finished file has the prompt set too; needs no right to write."""
    cache = store.open_cache(path, run.key, any_prompts=True)
    if run.key not in cache.prompt_sets or cache.text_id != store.recipe_id(run.text_recipe):
        return False
    run.tell(f"{path} is whole; nothing to do (--force extracts it anew)")
    return True


def _add_prompts(path: Path, run: _Run) -> Path:
    store.add_text(path, run.text_set())
    run.tell(f"added prompts '{run.key}' to {path}")
    return path


def _make(path: Path, run: _Run, batch: int | None, force: bool) -> Path:
    size = batch or default_batch(run.job)
    while True:
        _prepare(path, run, size, force)
        size = store.open_cache(store.part_of(path)).batch
        _announce(path, run, size)
        try:
            done = fill(path, run.job, workers=run.workers, progress=run.progress)
            break
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if size == 1 or batch:
                raise EncoderError(
                    f"the device's memory does not hold {size} images at a time; give --batch {max(1, size // 2)} --force"
                ) from None
            size, force = size // 2, True
            run.tell(f"out of memory; starting anew with {size} images at a time")
    _close(path, done, run.tell)
    return path


def default_batch(job: Extraction) -> int:
    """Images per encoder call: a fixed number on a CPU; elsewhere the most, by halving, that the device's memory holds."""
    longest = max(map(len, job.listing.splits.values()))
    size = CPU_BATCH if job.encoder.device.type == "cpu" else VIEWS_BATCH if job.view_sets else GPU_BATCH
    while size > 1 and size >= 2 * longest:
        size //= 2
    while job.encoder.device.type != "cpu" and size > 1 and not _fits(job, size):
        size //= 2
    return size


def _fits(job: Extraction, size: int) -> bool:
    shape = job.encoder.preprocess(_blank()).shape
    try:
        job.encoder.encode_parts(torch.zeros((2 * size, *shape), dtype=torch.uint8), job.parts)  # twice, to leave room
        return True
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        if job.encoder.device.type == "cuda":
            torch.cuda.empty_cache()


def _blank():
    from PIL import Image

    return Image.new("RGB", (64, 64))


def _prepare(path: Path, run: _Run, batch: int, force: bool) -> None:
    """See to it that `path`.part is there: resumed where one is sound and of these prompts, else made."""
    part = store.part_of(path)
    if part.exists() and not force:
        try:
            cache = store.open_cache(part, any_prompts=True)
            if cache.prompt_sets == [run.key] and cache.text_id == store.recipe_id(run.text_recipe):
                return run.tell(f"resuming {part.name}")
            run.tell(f"{part.name} was begun with other prompts; starting anew")
        except store.CacheError:
            run.tell(f"{part.name} is damaged; starting anew")
    store.create(path, run.job.header(batch), run.job.splits, [run.text_set()])


def _announce(path: Path, run: _Run, batch: int) -> None:
    images = sum(len(rows) for rows in run.job.listing.splits.values())
    size, encoder = run.job.nbytes, run.job.encoder
    kept = ", ".join([*run.job.parts, *(f"{views.n_view} {name}" for name, views in run.job.view_sets.items())])
    run.tell(
        f"{run.job.dataset}: {images:,} images, {encoder.name} on {encoder.device} ({encoder.precision}), {batch} at a time, {run.workers} readers"
    )
    run.tell(f"storing {kept}: {size / 1e6:,.1f} MB in {path.parent}")


def _close(path: Path, done: Filled, tell: Tell) -> None:
    seconds = max(done.seconds, 1e-9)
    tell(
        f"{done.images:,} images in {seconds:.1f} s: {done.images / seconds:.0f} a second, {done.waited / seconds:.0%} of the time waiting for images"
    )
    for name, why in done.unreadable[:SHOWN]:
        tell(f"unreadable: {name} ({why})")
    if len(done.unreadable) > SHOWN:
        tell(f"and {len(done.unreadable) - SHOWN} more unreadable images; `cliad info` lists them")
    tell(f"wrote {path}")

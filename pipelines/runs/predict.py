"""`cliad predict`: a trained head on new images."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cliad.adapters.core.classifier import Classifier
from cliad.cache.datasets.folders import image_files
from cliad.cache.datasets.pictures import open_image
from cliad.cache.encoders.base import Encoder
from cliad.cache.extract.reading import PLAIN, Crop, Job, Loader
from cliad.cache.extract.workers import number_of_workers
from cliad.pipelines.runs import run_folder
from cliad.pipelines.runs.batch_adapt import RunSupport, caution, check_batch, support_of
from cliad.pipelines.runs.run_encoder import PredictError, load_encoder
from cliad.pipelines.runs.sets import meaning, set_size, threshold_at

if TYPE_CHECKING:
    from cliad.cache.encoders.clip import Clip

BATCH = 32


class ClassProbability(NamedTuple):
    """A class by its name, and its probability 0..1."""

    name: str
    probability: float

    def json(self) -> dict[str, object]:
        return {"class": self.name, "probability": self.probability}


@dataclass(frozen=True)
class Prediction:
    """One image: the likeliest classes, best first; or why it could not be read.

    batch: to how many images at once the head was adapted; None where it was not.
    coverage: the share of its own images that sets of such a size cover, where `top` is a set.
    """

    path: str
    top: list[ClassProbability] = field(default_factory=list)
    error: str | None = None
    batch: int | None = None
    coverage: float | None = None

    def json(self) -> dict[str, object]:
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        words: dict[str, object] = {"path": self.path, "top": [entry.json() for entry in self.top]}
        if self.coverage is not None:
            words["set_coverage"] = self.coverage
        return words if self.batch is None else {**words, "batch_adapted": self.batch}


@dataclass(frozen=True, eq=False)
class SavedRun:
    """A trained head as it was saved.

    `about` is what run.json says: `classnames`, `temperature`, `encoder` and more.
    """

    folder: Path
    classifier: Classifier
    about: Mapping

    @property
    def classnames(self) -> list[str]:
        return self.about["classnames"]

    def logits(self, x: Tensor | np.ndarray) -> Tensor:
        """Logits (n, n_class) of raw features x (n, width) of the run's encoder.

        The width is the features' own, and that of the columns behind them for a head that takes
        some, see `Head.columns`. Features are first rounded as the cache rounded its own.

        Raises:
            PredictError: another width, or the training had diverged.
        """
        logits = self.classifier.logits(self._as_cached(x))
        # A softmax of these would look like probabilities of some kind, so nothing is answered.
        if not torch.isfinite(logits).all():
            raise PredictError(
                f"{self.folder} gives logits that are not finite"
                " (its training diverged, or the features are broken)"
            )
        return logits

    def _as_cached(self, x: Tensor | np.ndarray) -> Tensor:
        """Raw features (n, width), rounded as the cache rounds them."""
        x = torch.as_tensor(x)
        width = self.about["width"]
        if x.ndim != 2 or x.shape[1] != width:
            raise PredictError(
                f"{self.folder} takes features (n, {width}), got features of shape {tuple(x.shape)}"
            )
        # A cache stores float16 or float32; the head was trained on what it read from there.
        x = x.to(getattr(torch, self.about["dtype"])).float()
        if self.about["unit_rows"]:
            # Of the feature alone: what stands behind it is as the encoder gave it.
            dim = self.about["dim"]
            features = torch.nn.functional.normalize(x[:, :dim], dim=-1)
            x = torch.cat([features, x[:, dim:]], dim=-1)
        return x

    def probabilities(self, x: Tensor | np.ndarray, support: RunSupport | None = None) -> Tensor:
        """Probabilities (n, n_class) of raw features x (n, width).

        They are at the temperature that the run's card shows; at 1 where none was found. With
        the run's support they are adapted to all n images; no temperature is known for these.
        """
        logits = self.logits(x) / (self.about["temperature"] or 1)
        if support is not None:
            logits = support.adapted(logits, self._as_cached(x))
        return logits.softmax(dim=-1)

    def top(
        self,
        x: Tensor | np.ndarray,
        top: int = 5,
        support: RunSupport | None = None,
        sets: float | None = None,
    ) -> list[list[ClassProbability]]:
        """The `top` likeliest classes of features x (n, width), best first.

        support: see `probabilities`. sets: a share of images, such as 0.9: not `top` classes but as
        many as a set for that share has, see `cliad.pipelines.runs.sets`.

        Raises:
            SetsError: the run has no sets, or not for that share.
        """
        threshold = None
        if sets is not None:
            threshold = threshold_at(self.about.get("sets"), sets)
            top = len(self.classnames)
        # There may be fewer classes than are asked for.
        n_shown = min(top, len(self.classnames))
        values, classes = self.probabilities(x, support).topk(n_shown, dim=-1)  # each (n, n_shown)
        rows = []
        for probabilities, labels in zip(values.tolist(), classes.tolist(), strict=True):
            n = n_shown if threshold is None else set_size(probabilities, threshold)
            names = [self.classnames[label] for label in labels[:n]]
            pairs = zip(names, probabilities[:n], strict=True)
            rows.append([ClassProbability(name, probability) for name, probability in pairs])
        return rows

    def encoder(
        self,
        *,
        model: str | None = None,
        pretrained: str | None = None,
        device: str = "auto",
        log: Callable[[str], None] = lambda line: None,
    ) -> Clip:
        """The encoder that made the run's features, or the one given, checked by its hashes.

        Raises:
            PredictError: the weights, activation or preprocessing differ; or the run does not say
                what its encoder was.
            EncoderError: the encoder cannot be had here.
        """
        return load_encoder(
            self.about, self.folder, model=model, pretrained=pretrained, device=device, log=log
        )

    def features(self, encoder: Encoder, images: Tensor) -> Tensor:
        """What the head takes (n, width), on the CPU.

        Images (n, 3, height, width) are preprocessed.
        """
        names = self.about["parts"]
        parts = encoder.encode_parts(images, names)
        return torch.cat([parts[name].cpu().flatten(1) for name in names], dim=-1)

    def predict(
        self,
        images: Sequence[str | Path],
        *,
        top: int = 5,
        encoder: Encoder | None = None,
        batch: int = BATCH,
        workers: int | None = None,
        support: RunSupport | None = None,
        sets: float | None = None,
    ) -> Iterator[Prediction]:
        """One prediction per image file, in order, as soon as its batch is done.

        Folders and glob patterns stand for the images in them. With the run's support, the head is
        adapted to all images, and predictions come when the last image has been read.

        Raises:
            PredictError: with a support, more images than can be held at once.
        """
        paths = find_images(images)
        in_use = encoder or self.encoder()
        if support is not None:
            width = self.about["width"]
            check_batch(len(paths), width=width, n_class=len(self.classnames))
        encoded = self._encoded(paths, in_use, batch, workers)
        if support is not None and paths:
            encoded = iter([_joined(list(encoded))])
        for part in encoded:
            yield from self._predictions(paths, part, top, support, sets)

    def _encoded(
        self, paths: Sequence[str], encoder: Encoder, batch: int, workers: int | None
    ) -> Iterator[_Encoded]:
        """The features of the images, batch by batch."""

        def read_image(split: str, row: int, crops: Sequence[Crop]) -> list[Tensor]:
            return [encoder.preprocess(open_image(Path(paths[row])))]

        loader = Loader(
            _jobs(len(paths), batch),
            read_image,
            shape=(3, *encoder.preprocess_size),
            workers=number_of_workers(workers),
        )
        for read in loader:
            # Rows count all images; the tensors of the batch begin at its first one.
            rows = range(read.job.start, read.job.stop)
            reasons = dict(read.problems)
            readable = [row for row in rows if row not in reasons]
            x = torch.empty(0, self.about["width"])
            if readable:
                images = read.images[PLAIN][[row - rows.start for row in readable]]
                x = self.features(encoder, images)
            yield _Encoded(rows, reasons, x)

    def _predictions(
        self,
        paths: Sequence[str],
        encoded: _Encoded,
        top: int,
        support: RunSupport | None,
        sets: float | None,
    ) -> Iterator[Prediction]:
        """The predictions of some images; one that could not be read says why."""
        found = iter(self.top(encoded.x, top, support, sets) if len(encoded.x) else [])
        n_adapted = None if support is None else len(encoded.x)
        for row in encoded.rows:
            if row in encoded.reasons:
                yield Prediction(paths[row], error=encoded.reasons[row])
            else:
                yield Prediction(paths[row], next(found), batch=n_adapted, coverage=sets)


@dataclass(frozen=True, eq=False)
class _Encoded:
    """The images of some rows: features x (n, width) of those that could be read, else why not."""

    rows: range
    reasons: Mapping[int, str]
    x: Tensor


def _joined(parts: Sequence[_Encoded]) -> _Encoded:
    """Parts that follow each other, as one."""
    reasons: dict[int, str] = {}
    for part in parts:
        reasons.update(part.reasons)
    x = torch.cat([part.x for part in parts])
    return _Encoded(range(parts[0].rows.start, parts[-1].rows.stop), reasons, x)


def _jobs(n_image: int, batch: int) -> list[Job]:
    """Batches of at most `batch` images, each image in its plain view."""
    jobs = []
    for start in range(0, n_image, batch):
        stop = min(start + batch, n_image)
        jobs.append(Job("", start, stop, {PLAIN: range(start, stop)}, last=True))
    return jobs


def load(run: str | Path, parent: Path = Path("runs")) -> SavedRun:
    """A saved run: a run folder, or `latest`, the newest one in `parent`.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    return load_folder(run_folder.find_run(run, parent))


def load_folder(folder: Path) -> SavedRun:
    """The saved run in a run folder.

    Raises:
        RunFolderError: it is not a run folder, or it is damaged.
    """
    classifier, about = run_folder.load(folder)
    return SavedRun(folder, classifier, about)


def predict(
    run: str | Path,
    images: Sequence[str | Path],
    *,
    top: int = 5,
    model: str | None = None,
    pretrained: str | None = None,
    device: str = "auto",
    batch: int = BATCH,
    workers: int | None = None,
    batch_adapt: bool = False,
    caches: Path | None = None,
    sets: float | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Iterator[Prediction]:
    """Classify images with a saved run; the verb `cliad predict`.

    Args:
        run: a run folder, or `latest`.
        images: image files, folders (all images in them) and glob patterns.
        top: classes per image.
        model, pretrained: the encoder, where it is not the one that run.json names; it is checked
            all the same.
        device: auto, cpu, cuda, cuda:1, mps.
        batch, workers: images per encoder call, and threads that read images (default one per
            core).
        batch_adapt: adapt the head to all images at once, see `adapt_to_batch`.
        caches: the cache folder that this takes the run's training images from; None: $CLIAD_CACHE
            or the user's cache folder.
        sets: a share of images, such as 0.9: sets of classes in place of the `top` likeliest, see
            `SavedRun.top`.
        log: is given lines on what happens.

    Returns:
        An iterator of predictions in the order of the images, filled as it is read.

    Raises:
        RunFolderError, PredictError, SetsError, EncoderError: what is wrong and what to do, in one
            line.
    """
    if top < 1:
        raise PredictError(f"top is the number of classes per image, at least 1; got {top}")
    if batch < 1:
        raise PredictError(
            f"batch is the number of images per encoder call, at least 1; got {batch}"
        )
    # All that can fail as a whole fails here, before the first image.
    saved = load(run)
    if sets is not None:
        threshold_at(saved.about.get("sets"), sets)
        if batch_adapt:
            raise PredictError("no sets are known for adapted predictions: --sets or --batch-adapt")
    support = support_of(saved.about, saved.folder, caches) if batch_adapt else None
    encoder = saved.encoder(model=model, pretrained=pretrained, device=device, log=log)
    log(
        f"{saved.folder}: {saved.about['head']}, {len(saved.classnames)} classes;"
        f" {encoder.name} on {encoder.device}"
    )
    if sets is not None:
        log(meaning(sets))
    if support is not None:
        log(caution(len(find_images(images)), len(saved.classnames)))
    return saved.predict(
        images,
        top=top,
        encoder=encoder,
        batch=batch,
        workers=workers,
        support=support,
        sets=sets,
    )


def find_images(images: Sequence[str | Path]) -> list[str]:
    """The image files that are meant, in order.

    What is not there stays in the list, and fails when it is read.
    """
    paths = []
    for image in images:
        paths += _files(str(image))
    return paths


def _files(image: str) -> list[str]:
    # An empty word is a variable of a script that was not set, and not the folder that one is in.
    if not image:
        return [image]
    # os.path, as pathlib raises on names that are too long or in folders that may not be read: one
    # bad name would stop all images.
    if os.path.isdir(image):
        # Hidden files and other kinds of files are left out.
        files = [str(Path(image, file)) for file in image_files(Path(image))]
    elif os.path.exists(image) or not glob.has_magic(image):
        files = [image]
    else:
        matches = glob.glob(image, recursive=True)
        files = sorted(match for match in matches if os.path.isfile(match))
    # An empty folder, or a pattern that matches nothing, is named in an error of its own.
    return files or [image]

"""`cliad predict`: a trained head on new images."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cliad.adapters.core.classifier import Classifier
from cliad.cache.datasets.base import image_files, open_image
from cliad.cache.encoders.base import Encoder, choose_device
from cliad.cache.extract.reading import PLAIN, Job, Loader, default_workers
from cliad.errors import CliadError
from cliad.pipelines.runs import run_folder

BATCH = 32


class PredictError(CliadError):
    """A run and an encoder, or a run and features, that do not go together; the message says why."""


@dataclass(frozen=True)
class Prediction:
    """One image: the likeliest classes with their probabilities 0..1, best first; or why it could not be read."""

    path: str
    top: list[tuple[str, float]] = field(default_factory=list)
    error: str | None = None

    def json(self) -> dict:
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        return {
            "path": self.path,
            "top": [{"class": name, "probability": p} for name, p in self.top],
        }


@dataclass(frozen=True, eq=False)
class Run:
    """A trained head as it was saved: `classifier`, and `about`, what run.json says (`classnames`, `temperature`, ...)."""

    folder: Path
    classifier: Classifier
    about: Mapping

    @property
    def classnames(self) -> list[str]:
        return self.about["classnames"]

    def logits(self, x: Tensor | np.ndarray) -> Tensor:
        """Logits (n, n_class) of raw features x (n, width) of the run's encoder; they are first rounded as the cache rounded its own.

        The width is the features' own, and for a head on features before the projection theirs behind it.

        Raises:
            PredictError: another width, or the training had diverged.
        """
        x = torch.as_tensor(x)
        if x.ndim != 2 or x.shape[1] != self.about["width"]:
            raise PredictError(
                f"{self.folder} takes features (n, {self.about['width']}), however: {tuple(x.shape)}"
            )
        x = x.to(getattr(torch, self.about["dtype"])).float()
        logits = self.classifier.logits(
            torch.nn.functional.normalize(x, dim=-1) if self.about["unit_rows"] else x
        )
        if not torch.isfinite(logits).all():
            raise PredictError(
                f"{self.folder} gives logits that are not finite (its training diverged, or the features are broken)"
            )
        return logits

    def probabilities(self, x: Tensor | np.ndarray) -> Tensor:
        """Probabilities (n, n_class) of raw features x (n, width), at the temperature that validation found."""
        return (self.logits(x) / (self.about["temperature"] or 1)).softmax(dim=-1)

    def encoder(
        self,
        *,
        model: str | None = None,
        pretrained: str | None = None,
        device: str = "auto",
        log: Callable[[str], None] = lambda line: None,
    ) -> Encoder:
        """The encoder that made the run's features, or the one given, checked by its hashes.

        Raises:
            PredictError: the weights, activation or preprocessing differ; or the run does not say what its encoder was.
            EncoderError: the encoder cannot be had here.
        """
        from cliad.cache.encoders import clip, weights

        recipe = self.about["image_recipe"].get("encoder")
        wanted = recipe if isinstance(recipe, dict) and "weights" in recipe else None
        if wanted is None and model is None:
            raise PredictError(
                f"the features of {self.folder} were imported, made by '{self.about['encoder']}' as somebody said; there is no encoder to check:"
                " give the one that made them with --model NAME --pretrained TAG"
            )
        name, tag = (model, pretrained) if model else _origin(wanted, pretrained)
        options = {"half": self.about["dtype"] == "float16", "device": choose_device(device)}
        if wanted:
            options |= {"squeeze": _preprocess(wanted).get("resize_mode") == "squash"}
            options |= {"quick_gelu": wanted.get("activation") == "QuickGELU"}
        if missing := weights.to_fetch(*weights.full_name(name, tag)):
            log(f"fetching the weights of {weights.shown_name(name, tag)} from {missing.where}")
        encoder = clip.load(name, tag, **options)
        _check_encoder(encoder, wanted, self.about)
        return encoder

    def predict(
        self,
        images: Sequence[str | Path],
        *,
        top: int = 5,
        encoder: Encoder | None = None,
        batch: int = BATCH,
        workers: int | None = None,
    ) -> Iterator[Prediction]:
        """One prediction per image file, in order, as soon as its batch is done; folders and globs are what they hold."""
        paths = find_images(images)
        encoder = encoder or self.encoder()
        starts = range(0, len(paths), batch)
        jobs = [
            Job("", start, stop, {PLAIN: range(start, stop)}, True)
            for start in starts
            if (stop := min(start + batch, len(paths)))
        ]
        read = lambda _, row, crops: [encoder.preprocess(open_image(Path(paths[row])))]
        for part in Loader(
            jobs, read, shape=(3, *encoder.preprocess_size), workers=workers or default_workers()
        ):
            problems, rows = dict(part.problems), range(part.job.start, part.job.stop)
            good = [row for row in rows if row not in problems]
            x = (
                self.features(encoder, part.images[PLAIN][[row - part.job.start for row in good]])
                if good
                else None
            )
            found = dict(zip(good, self.top(x, top) if good else [], strict=True))
            for row in rows:
                yield (
                    Prediction(paths[row], error=problems[row])
                    if row in problems
                    else Prediction(paths[row], found[row])
                )

    def features(self, encoder: Encoder, images: Tensor) -> Tensor:
        """What the head takes (n, width), on the CPU, of preprocessed images (n, 3, height, width)."""
        parts = encoder.encode_parts(images, self.about["parts"])
        return torch.cat([parts[name].cpu() for name in self.about["parts"]], dim=-1)

    def top(self, x: Tensor, top: int = 5) -> list[list[tuple[str, float]]]:
        """The `top` likeliest classes of features x (n, width), each with its probability."""
        values, classes = self.probabilities(x).topk(min(top, len(self.classnames)), dim=-1)
        pairs = zip(values.tolist(), classes.tolist(), strict=True)
        return [[(self.classnames[c], p) for p, c in zip(*pair, strict=True)] for pair in pairs]


def load(run: str | Path, parent: Path = Path("runs")) -> Run:
    """A saved run: a run folder, or `latest`, the newest one in `parent`.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    folder = run_folder.find_run(run, parent)
    return Run(folder, *run_folder.load(folder))


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
    log: Callable[[str], None] = lambda line: None,
) -> Iterator[Prediction]:
    """Classify images with a saved run; the verb `cliad predict`.

    Args:
        run: a run folder, or `latest`.
        images: image files, folders (all images in them) and glob patterns.
        top: classes per image.
        model, pretrained: the encoder, where it is not the one that run.json names; it is checked all the same.
        device: auto, cpu, cuda, cuda:1, mps.
        batch, workers: images per encoder call, and threads that read images (default one per core).
    Returns:
        An iterator of predictions in the order of the images, filled as it is read.
    Raises:
        RunFolderError, PredictError, EncoderError: what is wrong and what to do, in one line.
    """
    if top < 1:
        raise PredictError(f"top is the number of classes per image, at least 1; got {top}")
    if batch < 1:
        raise PredictError(
            f"batch is the number of images per encoder call, at least 1; got {batch}"
        )
    loaded = load(run)
    encoder = loaded.encoder(model=model, pretrained=pretrained, device=device, log=log)
    log(
        f"{loaded.folder}: {loaded.about['head']}, {len(loaded.classnames)} classes; {encoder.name} on {encoder.device}"
    )
    return loaded.predict(images, top=top, encoder=encoder, batch=batch, workers=workers)


def find_images(images: Sequence[str | Path]) -> list[str]:
    """The image files that are meant, in order; what is not there stays in the list and fails when it is read."""
    return [path for image in images for path in _files(str(image))]


def _files(image: str) -> list[str]:
    path = Path(image)
    if path.is_dir():
        return [str(path / file) for file in image_files(path)] or [image]
    if path.exists() or not glob.has_magic(image):
        return [image]
    return sorted(file for file in glob.glob(image, recursive=True) if Path(file).is_file()) or [
        image
    ]


def _preprocess(recipe: Mapping) -> Mapping:
    found = recipe.get("preprocess")
    return found if isinstance(found, dict) else {}


def _origin(recipe: Mapping, pretrained: str | None) -> tuple[str, str | None]:
    """Model and weights as run.json names them. A run folder may come from anywhere: it never names a file to load."""
    model, tag = recipe.get("model"), recipe.get("pretrained")
    if not (isinstance(model, str) and isinstance(tag, str)) or not re.fullmatch(
        r"[\w.@-]+|hf-hub:[\w.@-]+/[\w.@-]+", model
    ):
        raise PredictError(
            f"run.json names no encoder that can be loaded by name ({model!r:.60}); give --model NAME and --pretrained TAG|FILE"
        )
    if pretrained is None and tag == "file":
        raise PredictError(
            f"the weights of this run's encoder {model} were a file; give it with --pretrained FILE"
        )
    if pretrained is None and not re.fullmatch(r"[\w.-]*", tag):
        raise PredictError(
            f"run.json names weights {tag!r:.60}, which is no tag; give --pretrained TAG|FILE"
        )
    return model, pretrained or tag or None


def _check_encoder(encoder: Encoder, wanted: Mapping | None, about: Mapping) -> None:
    """PredictError where the encoder is not the one that made the run's features."""
    if encoder.dim != about["dim"]:
        raise PredictError(
            f"{encoder.name} gives {encoder.dim} features, this run takes {about['dim']}; it was made with {about['encoder']}"
        )
    if missing := set(about["parts"]) - set(encoder.parts):
        raise PredictError(f"{encoder.name} gives no {missing.pop()}, which this run takes")
    for part in ("weights", "activation", "preprocess") if wanted else ():
        here, there = encoder.image_recipe.get(part), wanted.get(part)
        if here != there:
            raise PredictError(
                f"{encoder.name} is not the encoder of this run: its {part} here {_short(here)}, there {_short(there)};"
                " give the right encoder with --model NAME --pretrained TAG|FILE"
            )
    if wanted and encoder.encoder_id != about["encoder_id"]:
        raise PredictError(
            f"{encoder.name} is encoder {encoder.encoder_id}, this run was trained with {about['encoder_id']}"
        )


def _short(value) -> str:
    return value[:16] if isinstance(value, str) else str(value)

"""What the page of `cliad serve` needs: runs kept ready with their encoders, images classified."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cliad.adapters.core.ops import class_weights, unit
from cliad.cache import prompts
from cliad.cache.datasets import data_dir
from cliad.cache.documents import read_json
from cliad.cache.encoders.base import Encoder
from cliad.cache.file.layout import CacheError
from cliad.cache.file.read import FeatureCache, open_cache
from cliad.cache.folder import cache_dir, cache_path
from cliad.errors import printable
from cliad.pipelines.runs import run_folder
from cliad.pipelines.runs.predict import ClassProbability, SavedRun, load_folder
from cliad.pipelines.runs.serve.nearest import NearestSupport, support_of
from cliad.pipelines.runs.serve.request import ServiceError, read_image

MOST_READY = 16  # runs that are kept in memory
# What reading the JSON of a folder that is not a sound run may raise.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class EncoderOptions:
    """The encoder, where it is not the one that run.json names, and where it runs."""

    model: str | None
    pretrained: str | None
    device: str
    log: Callable[[str], None]

    def load(self, run: SavedRun) -> Encoder:
        return run.encoder(
            model=self.model, pretrained=self.pretrained, device=self.device, log=self.log
        )


@dataclass(frozen=True, eq=False)
class ReadyRun:
    """A run with its encoder, ready to classify.

    `zero_shot` (n_class, dim) are the class weights of zero-shot CLIP; it and the training shots
    are None where they cannot be had.
    """

    run: SavedRun
    encoder: Encoder
    zero_shot: Tensor | None
    support: NearestSupport | None


class InferenceService:
    """The runs in one folder, each loaded when it is first needed.

    One image at a time goes through the encoder: a lock keeps requests apart.
    """

    def __init__(
        self,
        run: Path,
        *,
        caches: Path | None = None,
        data: Path | None = None,
        model: str | None = None,
        pretrained: str | None = None,
        device: str = "auto",
        log: Callable[[str], None] = lambda line: None,
    ):
        # Path.resolve raises where links lead in a circle.
        self.first = Path(os.path.realpath(run))
        self.caches = cache_dir(caches)
        self.data = data_dir(data)
        self._options = EncoderOptions(model, pretrained, device, log)
        # A run that is trained again has the same folder, so its time is part of the key.
        self._ready: dict[tuple[Path, int], ReadyRun] = {}
        self._encoders: dict[str, Encoder] = {}
        self._lock = threading.Lock()

    def _folders(self) -> dict[str, Path]:
        """Run folders by name: the one shown first, then those beside it, the newest first."""
        folders = [self.first, *run_folder.runs(self.first.parent)]
        return {printable(folder.name): folder for folder in folders}

    def runs(self) -> list[dict[str, object]]:
        """What there is to choose from; folders that are not sound runs are left out."""
        summaries = []
        for name, folder in self._folders().items():
            summary = _summary(name, folder)
            if summary is not None:
                summaries.append(summary)
        return summaries

    def classify(self, raw: bytes, run: str | None = None, top: int = 5) -> dict[str, object]:
        """The answer to an image file, as docs/serve.md describes it.

        Args:
            raw: the file.
            run: the name of a run; None: the first one.
            top: how many classes.

        Raises:
            ServiceError: no such run, not an image, or one that is too large.
            RunFolderError, PredictError, EncoderError: the run cannot be used.
        """
        with self._lock, torch.inference_mode():
            image = read_image(raw)
            ready = self.ready(run)
            batch = ready.encoder.preprocess(image)[None]  # (1, 3, height, width)
            x = ready.run.features(ready.encoder, batch)  # (1, width)
            feature = x[:, : ready.run.about["dim"]]  # (1, dim): without what may stand behind it
            (likeliest,) = ready.run.top(x, top)
            return {
                "run": printable(ready.run.folder.name),
                "head": ready.run.about["head"],
                "width": image.width,
                "height": image.height,
                "top": [entry.json() for entry in likeliest],
                "zero_shot": _zero_shot_top(ready, feature, top),
                "nearest": [] if ready.support is None else ready.support.nearest(feature),
            }

    def ready(self, name: str | None = None) -> ReadyRun:
        """A run by its name, ready; the first one where there is no name.

        Raises:
            ServiceError: there is no such run.
            RunFolderError, PredictError, EncoderError: the run cannot be used.
        """
        folder = self.first if name is None else self._folders().get(name)
        if folder is None:
            raise ServiceError(
                f"there is no run '{name:.80}'; reload the page to see those there are", 404
            )
        # Read each time, which is quick, so that a folder damaged meanwhile is noticed.
        run = load_folder(folder)
        key = (folder, (folder / "run.json").stat().st_mtime_ns)
        if key not in self._ready:
            self._make_room(folder)
            cache = self._cache(run)
            encoder = self._encoder_of(run)
            zero_shot = _zero_shot(run, encoder, cache)
            self._ready[key] = ReadyRun(run, encoder, zero_shot, support_of(run, cache, self.data))
        return self._ready[key]

    def _make_room(self, folder: Path) -> None:
        """Drop what this folder held before it was trained again, and the oldest of many runs."""
        outdated = [key for key in self._ready if key[0] == folder]
        too_many = len(self._ready) - len(outdated) - MOST_READY + 1
        oldest = [key for key in self._ready if key[0] != folder][: max(too_many, 0)]
        for key in outdated + oldest:
            del self._ready[key]

    def _encoder_of(self, run: SavedRun) -> Encoder:
        """The run's encoder; runs of the same encoder and precision share one."""
        recipe = run.about["image_recipe"].get("encoder")
        decides = [run.about["encoder_id"], recipe, run.about["dtype"]]
        # With sorted keys, equal recipes are equal text.
        key = json.dumps(decides, sort_keys=True)
        if key not in self._encoders:
            # Runs that are ready keep theirs: the memory holds as many as they use.
            in_use = {id(ready.encoder) for ready in self._ready.values()}
            kept = {name: one for name, one in self._encoders.items() if id(one) in in_use}
            self._encoders = kept | {key: self._options.load(run)}
        return self._encoders[key]

    def _cache(self, run: SavedRun) -> FeatureCache | None:
        """The cache that the run was trained on, where it is on this machine."""
        about = run.about
        dataset = str(about["spec"].get("dataset"))
        image_id = about["fingerprint"].partition("-")[0]
        path = cache_path(self.caches, dataset, about["encoder"], image_id)
        try:
            cache = open_cache(path, about.get("prompts"))
        except CacheError:
            return None
        # The name of the file stands for its images; its prompts may have been made anew.
        return cache if cache.fingerprint == about["fingerprint"] else None


def _zero_shot(run: SavedRun, encoder: Encoder, cache: FeatureCache | None) -> Tensor | None:
    """Zero-shot class weights (n_class, dim): from the cache, else the prompts encoded anew."""
    if cache is not None:
        return None if cache.text is None else class_weights(torch.from_numpy(cache.text))
    try:
        templates = prompts.check_templates(run.about["templates"])
        features = []  # per template
        for template in templates:
            texts = [prompts.fill(template, name) for name in run.classnames]
            features.append(encoder.encode_texts(texts).cpu())  # (n_class, dim)
    except prompts.PromptError:
        return None
    return class_weights(torch.stack(features))


def _zero_shot_top(ready: ReadyRun, feature: Tensor, top: int) -> list[dict[str, object]] | None:
    """The likeliest classes of a feature (1, dim) by zero-shot CLIP, where it can be had."""
    if ready.zero_shot is None:
        return None
    logits = ready.run.about["logit_scale"] * unit(feature) @ ready.zero_shot.T  # (1, n_class)
    probabilities = logits.softmax(dim=-1)[0]
    best = probabilities.topk(min(top, len(probabilities))).indices.tolist()
    shown = []
    for label in best:
        name = ready.run.classnames[label]
        shown.append(ClassProbability(name, probabilities[label].item()).json())
    return shown


def _summary(name: str, folder: Path) -> dict[str, object] | None:
    """What the list of runs says of one; None for a folder that is not a sound run."""
    try:
        about = _read_json(folder / "run.json")
        row = {}
        if (folder / "result.json").is_file():
            row = _read_json(folder / "result.json")
        spec = about["spec"]
        # The page takes one image at a time.
        top1 = row.get("inductive_top1" if row.get("transductive") else "top1")
        return {
            "run": name,
            "head": _text(about["head"]),
            "dataset": _text(spec["dataset"]),
            "encoder": _text(about["encoder"]),
            "shots": int(spec["shots"]),
            "n_class": len(about["classnames"]),
            "top1": _fraction(top1),
            "zero_shot_top1": _fraction(row.get("zero_shot_top1")),
        }
    except UNREADABLE:
        return None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {type(value).__name__}")
    return value


def _fraction(value: object) -> float | None:
    """A number from 0 to 1; None for anything else, which JSON may hold, NaN too."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None


def _read_json(path: Path) -> dict:
    return read_json(path, run_folder.RunFolderError, largest=run_folder.LARGEST_JSON)

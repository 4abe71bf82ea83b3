"""What the page of `cliad serve` asks for: runs and their encoders kept ready, and an uploaded image classified by one of them."""

from __future__ import annotations

import base64
import io
import json
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from cliad.adapters.core.ops import class_weights, unit
from cliad.cache import prompts
from cliad.cache.datasets import data_dir, find_dataset
from cliad.cache.datasets.base import DatasetError, Listing, open_image
from cliad.cache.encoders.base import Encoder
from cliad.cache.file.layout import CacheError
from cliad.cache.file.read import FeatureCache, open_cache
from cliad.cache.folder import cache_dir, cache_path
from cliad.errors import CliadError
from cliad.pipelines.experiments.episode import draw_of
from cliad.pipelines.fewshot.draw import DrawError, DrawRequest
from cliad.pipelines.runs import run_folder
from cliad.pipelines.runs.predict import SavedRun

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # none of these starts another program
LARGEST_PIXELS = 50_000_000
NEAREST, THUMBNAIL = 4, 96


class ServiceError(CliadError):
    """A request that cannot be answered; `status` is the HTTP status that says so."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, eq=False)
class Support:
    """The training shots of a run: unit features x (n, dim), class names and paths (n,), and how to see one."""

    x: Tensor
    classes: list[str]
    paths: list[str]
    listing: Listing | None

    def nearest(self, x: Tensor) -> list[dict]:
        """The shots most like x (1, dim)."""
        values, rows = (self.x @ unit(x)[0]).topk(min(NEAREST, len(self.x)))
        found = zip(values.tolist(), rows.tolist(), strict=True)
        return [
            {
                "path": self.paths[i],
                "class": self.classes[i],
                "similarity": value,
                "thumbnail": self._thumbnail(self.paths[i]),
            }
            for value, i in found
        ]

    def _thumbnail(self, path: str) -> str | None:
        """The shot as a small picture in a data URI, where its image is on this machine."""
        try:
            image = self.listing.open(path) if self.listing else None
        except Exception:  # a picture that has gone since is no reason to fail
            image = None
        if image is None:
            return None
        scale = THUMBNAIL / max(image.size)
        size = tuple(max(1, round(side * scale)) for side in image.size)
        out = io.BytesIO()
        image.resize(
            size, Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST
        ).save(out, "PNG")
        return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


@dataclass(frozen=True, eq=False)
class Ready:
    """A run with its encoder; zero-shot class weights (n_class, dim) and the training shots where they can be had."""

    run: SavedRun
    encoder: Encoder
    zero_shot: Tensor | None
    support: Support | None


class InferenceService:
    """Runs in one folder, loaded when first asked for; one image at a time goes through the encoder."""

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
        self.first, self.caches, self.data = run.resolve(), cache_dir(caches), data_dir(data)
        self._encoder: dict = {
            "model": model,
            "pretrained": pretrained,
            "device": device,
            "log": log,
        }
        self._ready: dict[tuple[Path, int], Ready] = {}
        self._encoders: dict[str, Encoder] = {}
        self._lock = threading.Lock()

    def _folders(self) -> dict[str, Path]:
        """SavedRun folders by name: the one that was asked for, then those beside it, the newest first."""
        return {folder.name: folder for folder in [self.first, *run_folder.runs(self.first.parent)]}

    def runs(self) -> list[dict]:
        """What there is to choose from: name, head, dataset, shots, n_class, accuracies as fractions or null."""
        return [
            about for name, folder in self._folders().items() if (about := _summary(name, folder))
        ]

    def classify(self, raw: bytes, run: str | None = None, top: int = 5) -> dict:
        """The likeliest classes of an image file, by the run's head and by zero-shot CLIP, and the nearest training shots.

        Raises:
            ServiceError: no such run, no image, or one that is too large.
            RunFolderError, PredictError, EncoderError: the run cannot be used.
        """
        with self._lock, torch.inference_mode():
            image = read_upload(raw)
            ready = self.ready(run)
            x = ready.run.features(ready.encoder, ready.encoder.preprocess(image)[None])
            row, feature = ready.run.top(x, top)[0], x[:, : ready.run.about["dim"]]
            found = {
                "run": ready.run.folder.name,
                "head": ready.run.about["head"],
                "width": image.width,
                "height": image.height,
            }
            found |= {"top": _pairs(row), "zero_shot": None}
            if ready.zero_shot is not None:
                p = (ready.run.about["logit_scale"] * unit(feature) @ ready.zero_shot.T).softmax(
                    dim=-1
                )[0]
                best = p.topk(min(top, len(p))).indices.tolist()
                found["zero_shot"] = _pairs([(ready.run.classnames[i], p[i].item()) for i in best])
            return found | {"nearest": ready.support.nearest(feature) if ready.support else []}

    def ready(self, name: str | None = None) -> Ready:
        """A run by its name, ready; the first one where there is no name."""
        folder = self.first if name is None else self._folders().get(name)
        if folder is None:
            raise ServiceError(
                f"there is no run '{name:.80}'; reload the page to see those there are", 404
            )
        run = SavedRun(folder, *run_folder.load(folder))
        key = folder, (folder / "run.json").stat().st_mtime_ns
        if key not in self._ready:
            cache = self._cache(run)
            encoder = self._encoder_of(run)
            self._ready[key] = Ready(
                run, encoder, _zero_shot(run, encoder, cache), self._support(run, cache)
            )
        return self._ready[key]

    def _encoder_of(self, run: SavedRun) -> Encoder:
        key = json.dumps(
            [run.about["encoder_id"], run.about["image_recipe"].get("encoder"), run.about["dtype"]],
            sort_keys=True,
        )
        if key not in self._encoders:
            self._encoders[key] = run.encoder(**self._encoder)
        return self._encoders[key]

    def _cache(self, run: SavedRun) -> FeatureCache | None:
        """The cache that the run was trained on, where it is on this machine."""
        about = run.about
        path = cache_path(
            self.caches,
            str(about["spec"].get("dataset")),
            about["encoder"],
            about["fingerprint"].partition("-")[0],
        )
        try:
            cache = open_cache(path, about.get("prompts"))
        except CacheError:
            return None
        return cache if cache.fingerprint == about["fingerprint"] else None

    def _support(self, run: SavedRun, cache: FeatureCache | None) -> Support | None:
        """The training shots, drawn again as they were then."""
        if cache is None:
            return None
        try:
            spec = run.about["spec"]
            drawn, _ = draw_of(cache, DrawRequest(spec["shots"], spec["seed"], spec["protocol"]))
        except (DrawError, KeyError, TypeError):
            return None
        split = cache.split("train")
        classes = [cache.classnames[y] for y in split.y[drawn.train].tolist()]
        x = torch.from_numpy(split.rows(drawn.train, unit=True))
        return Support(x, classes, split.paths(drawn.train), _listing(cache.dataset, self.data))


def read_upload(raw: bytes) -> Image.Image:
    """An uploaded file as upright RGB.

    Raises:
        ServiceError: not an image of a known kind, damaged, or of too many pixels.
    """
    too_large = ServiceError(
        f"the image has too many pixels; at most {LARGEST_PIXELS:,} are taken", 413
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        raise too_large from None
    except Exception:  # a decoder may raise anything on a bad file
        raise ServiceError(
            f"this is no image that can be read; send one of {', '.join(FORMATS)}", 415
        ) from None
    if width * height > LARGEST_PIXELS:
        raise too_large
    try:
        return open_image(io.BytesIO(raw), FORMATS)
    except Exception:
        raise ServiceError("the image is damaged or cut short", 422) from None


def _pairs(row: list[tuple[str, float]]) -> list[dict]:
    return [{"class": name, "probability": p} for name, p in row]


def _summary(name: str, folder: Path) -> dict | None:
    """What the list of runs says of one; None for a folder that is no sound run."""
    read: Callable[[str], dict] = lambda file: json.loads(
        (folder / file).read_text(encoding="utf-8")
    )
    try:
        about, row = (
            read("run.json"),
            read("result.json") if (folder / "result.json").is_file() else {},
        )
        spec = about["spec"]
        summary = {
            "run": name,
            "head": about["head"],
            "dataset": spec["dataset"],
            "encoder": about["encoder"],
            "shots": spec["shots"],
        }
        return summary | {
            "n_class": len(about["classnames"]),
            "top1": row.get("top1"),
            "zero_shot_top1": row.get("zero_shot_top1"),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _zero_shot(run: SavedRun, encoder: Encoder, cache: FeatureCache | None) -> Tensor | None:
    """Zero-shot class weights (n_class, dim): from the cache, else the prompts encoded anew."""
    if cache is not None:
        return None if cache.text is None else class_weights(torch.from_numpy(cache.text))
    try:
        texts = [
            [prompts.fill(t, name) for name in run.classnames]
            for t in prompts.check_templates(run.about["templates"])
        ]
    except prompts.PromptError:
        return None
    return class_weights(
        torch.stack([encoder.encode_texts(of_template).cpu() for of_template in texts])
    )


def _listing(dataset: str, data: Path | None) -> Listing | None:
    try:
        return find_dataset(dataset).read(data, "field")
    except (DatasetError, OSError):
        return None

"""`cliad predict --batch-adapt`: a saved head, adapted to all images of a call at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cliad.adapters.core.ops import unit
from cliad.adapters.core.transductive import adapt_to_batch
from cliad.cache.file.layout import CacheError
from cliad.cache.file.read import FeatureCache, open_cache
from cliad.cache.folder import cache_dir, cache_path
from cliad.pipelines.experiments.episode import draw_of
from cliad.pipelines.fewshot.draw import DrawError, DrawRequest
from cliad.pipelines.runs.run_encoder import PredictError

CAUTION = (
    "the head is adapted to these images, as if every class were among them, in like number; where"
    " that is not so, leave out --batch-adapt"
)
# Below so many images to a class, a batch is small: of two a class nothing is gained.
FEW = 5
# Bytes that the features and logits of one batch may take.
LARGEST_BATCH = 2**31


@dataclass(frozen=True, eq=False)
class RunSupport:
    """The support of a run: unit rows x (n, dim) and labels y (n,)."""

    x: Tensor
    y: Tensor

    def adapted(self, logits: Tensor, features: Tensor) -> Tensor:
        """Logits (n, n_class) of raw features (n, width), adapted to all n of them."""
        dim = self.x.shape[1]
        return adapt_to_batch(logits, unit(features[:, :dim]), self.x, self.y)


def support_of(about: Mapping, folder: Path, caches: Path | None = None) -> RunSupport:
    """The support of the run in `folder`, drawn from its cache again as it was then.

    Args:
        about: what run.json says.
        caches: the cache folder; None: $CLIAD_CACHE or the user's cache folder.

    Raises:
        PredictError: the cache is not there, is another one, or the draw cannot be made from it.
    """
    try:
        spec = about["spec"]
        request = DrawRequest(spec["shots"], spec["seed"], spec["protocol"])
        cache = _cache_of(about, spec["dataset"], cache_dir(caches))
        drawn, _ = draw_of(cache, request)
        split = cache.split("train")
        x = torch.from_numpy(split.rows(drawn.train, unit=True))
        y = torch.from_numpy(np.asarray(split.y[drawn.train], np.int64))
    except (CacheError, DrawError, PredictError) as error:
        raise PredictError(
            f"{folder}: --batch-adapt takes the run's training images from its cache: {error}"
        ) from None
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError):
        # Only the kind of `spec` has been checked.
        raise PredictError(f"{folder}: run.json does not say how images were drawn") from None
    return RunSupport(x, y)


def _cache_of(about: Mapping, dataset: str, folder: Path) -> FeatureCache:
    image_id = about["fingerprint"].partition("-")[0]
    path = cache_path(folder, dataset, about["encoder"], image_id)
    if not path.is_file():
        raise PredictError(f"{path} is not there; give the folder that holds it with --cache DIR")
    cache = open_cache(path, about.get("prompts"))
    if cache.fingerprint != about["fingerprint"]:
        raise PredictError(
            f"{path} has changed since (fingerprint {cache.fingerprint}, the run has"
            f" {about['fingerprint']}); train it again"
        )
    return cache


def check_batch(n_image: int, *, width: int, n_class: int) -> None:
    """PredictError where so many images are more than one batch can hold."""
    # Features in parts and as one, logits of the head, adapted ones, and their softmax.
    needed = 4 * n_image * (2 * width + 3 * n_class)
    if needed > LARGEST_BATCH:
        most = LARGEST_BATCH * n_image // needed
        raise PredictError(
            f"--batch-adapt holds all images at once, here at most {most:,}; got {n_image:,}"
        )


def caution(n_image: int, n_class: int) -> str:
    """The line on a batch: what is taken for granted, and whether it is small."""
    if n_image >= FEW * n_class:
        return CAUTION
    return f"a batch of {n_image:,} is small for {n_class:,} classes; {CAUTION}"

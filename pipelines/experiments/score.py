"""The numbers of fitted classifiers: what a result row says."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from cliad.adapters import HEADS
from cliad.adapters.core.classifier import Classifier, can_stack, inputs, logits_of
from cliad.adapters.core.episode import Episode
from cliad.adapters.core.fit import stack
from cliad.adapters.core.metrics import calibration, fit_temperature, metrics, reliability
from cliad.adapters.core.select import fit_all
from cliad.cache.file.read import FeatureCache
from cliad.pipelines.experiments.episode import DrawnEpisode
from cliad.pipelines.experiments.spec import TrainSpec


@dataclass(frozen=True)
class Result:
    """One run: its spec, the numbers, and the classifier (kept for saving; not part of the row)."""

    spec: TrainSpec
    values: Mapping
    classifier: Classifier = field(repr=False, compare=False)

    def row(self, run: str | None = None) -> dict:
        """One JSON line, in DESIGN.md's words."""
        return self.spec.json() | dict(self.values) | {"run": run}


def _zero_shot(cache: FeatureCache, drawn: DrawnEpisode, test: tuple) -> float | None:
    if cache.text is None:
        return None
    (classifier,) = fit_all([(HEADS["zero-shot"](), drawn.episode)])
    return metrics(classifier.logits(test[0]), test[1])["top1"]


METRICS = ("top1", "top5", "mean_class", "ece", "nll", "ece_t", "nll_t", "temperature")
SCORED_FLOATS = 2**24  # about the most logits and features held at once while test images are scored


def _scored(fitted: Sequence[Classifier], episodes: Sequence[DrawnEpisode], test: tuple, cache: FeatureCache) -> list[dict]:
    """The numbers of each run of a group; as many are scored at once as memory likes."""
    size = max(1, SCORED_FLOATS // (len(test[0]) * (cache.dim + len(cache.classnames)))) if can_stack(fitted) else 1
    parts = [(fitted[i : i + size], episodes[i : i + size]) for i in range(0, len(fitted), size)]
    return [values for part in parts for values in _values(*part, test, cache)]


def _values(fitted: Sequence[Classifier], episodes: Sequence[DrawnEpisode], test: tuple, cache: FeatureCache) -> list[dict]:
    """The numbers of some runs: scores on test, the temperature from validation, and what identifies them."""
    logits, temperature = logits_of(fitted, test[0]), _temperatures(fitted, [drawn.episode for drawn in episodes])
    return [_row_values(*each, test[1], cache) for each in zip(fitted, episodes, logits, temperature, strict=True)]


def _temperatures(fitted: Sequence[Classifier], episodes: Sequence[Episode]) -> list[float | None]:
    """The temperature of each run, from its own validation items; None where it has none."""
    if not all(len(episode.val_index) for episode in episodes):
        return [None] * len(fitted)
    val = [replace(episode, index=episode.val_index, y=episode.val_y) for episode in episodes]
    support, _ = stack(val, inputs(fitted[0].head, episodes[0]))
    return fit_temperature(logits_of(fitted, support.x), support.y, support.mask).tolist()


def _row_values(
    classifier: Classifier, drawn: DrawnEpisode, logits: Tensor, temperature: float | None, y: Tensor, cache: FeatureCache
) -> dict:
    head, scores = classifier.head, {}
    diverged = classifier.diverged or not bool(torch.isfinite(logits).all())
    if not diverged:
        scores = metrics(logits, y) | {"temperature": temperature, "reliability": reliability(logits, y)}
    if not diverged and temperature:
        scores |= {f"{name}_t": value for name, value in calibration(logits / temperature, y).items()}
    found = {spec.name: getattr(head, spec.name) for spec in fields(head)}
    identity = {"index_hash": drawn.index_hash, "fingerprint": cache.fingerprint, "val_per_class": drawn.val_per_class}
    return (
        dict.fromkeys((*METRICS, "reliability")) | scores | {"diverged": diverged, "alpha": found.get("alpha"), "found": found} | identity
    )


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("cliad", "torch", "numpy")}

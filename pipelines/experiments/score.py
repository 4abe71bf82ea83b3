"""The numbers of fitted classifiers: what a result row says."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from cliad.adapters import HEADS
from cliad.adapters.core.classifier import Classifier, can_stack, inputs, logits_of, width_of
from cliad.adapters.core.episode import Episode, Support, stack_validation
from cliad.adapters.core.metrics import calibration, metrics, reliability, supported_temperature
from cliad.adapters.core.ops import unit
from cliad.adapters.core.transductive import adapt_to_batch
from cliad.cache.file.read import FeatureCache
from cliad.pipelines.experiments.episode import DrawnEpisode, LabelledRows, class_texts
from cliad.pipelines.experiments.spec import TrainSpec

# About the most logits and features held at once while test images are scored.
SCORED_FLOATS = 2**24


@dataclass(frozen=True)
class Scores:
    """How a classifier does on labelled images; each None where its logits are not finite.

    Fractions from 0 to 1, nats, and for `reliability` [items, mean confidence, accuracy] per bin.
    """

    top1: float | None = None
    top5: float | None = None  # the label is among the five likeliest classes
    mean_class: float | None = None  # the mean over classes of their accuracy
    ece: float | None = None  # expected calibration error, 15 equal bins
    nll: float | None = None  # mean negative log-likelihood
    reliability: list[list[float]] | None = None

    def json(self) -> dict:
        """The words of a result row."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self)}


def score(logits: Tensor, y: Tensor) -> Scores:
    """The scores of finite logits (n, n_class) on labels y (n,)."""
    return Scores(**metrics(logits, y), reliability=reliability(logits, y))


def is_finite(logits: Tensor) -> bool:
    """Whether all logits are numbers: a head whose training diverged gives others."""
    return bool(torch.isfinite(logits).all())


@dataclass(frozen=True)
class TestScores:
    """The scores of one run on its test split, and its calibration once divided by a temperature.

    The temperature comes from folds of the support, or from validation, and is 1 where none lowers
    the loss on items that it was not fitted to. It and what depends on it are None without either.
    """

    __test__ = False  # not a class of tests, whatever pytest thinks of its name

    scores: Scores
    diverged: bool  # training ended in numbers that are not finite, or above guessing
    temperature: float | None = None  # logits are divided by it
    temperature_on: str | None = None  # "val", or "cv" for out of fold
    ece_t: float | None = None  # `ece` with the temperature
    nll_t: float | None = None  # `nll` with the temperature
    inductive_top1: float | None = None  # of a transductive run: `top1` of the head alone


@dataclass(frozen=True)
class Timing:
    """What training cost and where it ran: seconds per run, and how many runs trained together."""

    train_seconds: float  # the group's seconds divided by its runs
    group_size: int
    device: str


@dataclass(frozen=True)
class Result:
    """One run: its spec, its numbers, and the classifier (kept for saving; not part of the row)."""

    spec: TrainSpec
    test: TestScores
    zero_shot_top1: float | None  # None for a cache without class texts
    draw: DrawnEpisode = field(repr=False, compare=False)
    fingerprint: str  # of the cache: image_id-text_id
    timing: Timing
    classifier: Classifier = field(repr=False, compare=False)

    @property
    def hyper(self) -> dict[str, object]:
        """Every hyper-parameter of the fitted head, chosen ones included."""
        head = self.classifier.head
        return {spec.name: getattr(head, spec.name) for spec in fields(head)}

    def row(self, run: str | None = None) -> dict:
        """One JSON line; `run` is the run folder, where the head was saved."""
        hyper = self.hyper
        row = {
            **self.spec.json(),
            "protocol": self.spec.row_protocol,
            **self.test.scores.json(),
            "ece_t": self.test.ece_t,
            "nll_t": self.test.nll_t,
            "temperature": self.test.temperature,
            "temperature_on": self.test.temperature_on,
            "diverged": self.test.diverged,
            "alpha": hyper.get("alpha"),
            "found": hyper,
            "index_hash": self.draw.index_hash,
            "fingerprint": self.fingerprint,
            "val_per_class": self.draw.val_per_class,
            "zero_shot_top1": self.zero_shot_top1,
            "train_seconds": self.timing.train_seconds,
            "group_size": self.timing.group_size,
            "device": self.timing.device,
            "versions": versions(),
            "run": run,
        }
        if self.spec.transductive:
            # No inductive accuracy stands where accuracies of rows are compared.
            row["zero_shot_top1"] = None
            row["inductive_top1"] = self.test.inductive_top1
        return row


def zero_shot_top1(cache: FeatureCache, rows: LabelledRows) -> float | None:
    """The accuracy of a cache's class texts alone on rows of it; None for a cache without text."""
    text = class_texts(cache, rows.y.device)
    return None if text is None else text_top1(text, cache.logit_scale, rows)


def text_top1(text: Tensor, logit_scale: float, rows: LabelledRows) -> float:
    """The accuracy of class texts (n_template, n_class, dim) alone on labelled rows."""
    # Zero-shot has no parameters, and `rebind` makes its constants from the text.
    empty = Classifier(HEADS["zero-shot"](), p={}, c={}, logit_scale=logit_scale)
    logits = empty.rebind(Support.of_text(text, logit_scale)).logits(rows.features)
    return metrics(logits, rows.y)["top1"]


def score_runs(
    fitted: Sequence[Classifier],
    episodes: Sequence[Episode],
    test: LabelledRows,
    *,
    transductive: bool = False,
) -> list[TestScores]:
    """The numbers of each run of a group; as many are scored at once as memory allows.

    Args:
        transductive: adapt the logits of each run to all test images, see `adapt_to_batch`.
    """
    at_once = 1
    # Runs of one group are scored by the same stacked products that trained them.
    if can_stack(fitted):
        floats_per_run = len(test.y) * (width_of(test.x) + episodes[0].n_class)
        at_once = max(1, SCORED_FLOATS // floats_per_run)
    scores = []
    for start in range(0, len(fitted), at_once):
        part = slice(start, start + at_once)
        scores += _score_together(fitted[part], episodes[part], test, transductive)
    return scores


def _score_together(
    fitted: Sequence[Classifier],
    episodes: Sequence[Episode],
    test: LabelledRows,
    transductive: bool,
) -> list[TestScores]:
    logits = logits_of(fitted, test.x)  # (n_run, n, n_class)
    temperatures, found_on = _temperatures(fitted, episodes)
    scores = [
        _score_run(classifier, of_run, temperature, found_on, test.y)
        for classifier, of_run, temperature in zip(fitted, logits, temperatures, strict=True)
    ]
    if not transductive:
        return scores
    return [
        _rescore(one, of_run, episode, test)
        for one, of_run, episode in zip(scores, logits, episodes, strict=True)
    ]


def _rescore(
    inductive: TestScores, logits: Tensor, episode: Episode, test: LabelledRows
) -> TestScores:
    """The scores of the same logits (n, n_class), adapted to all test images at once.

    The temperature stays that of the head, by which its logits are divided first, so that shares
    of images are probabilities. For what comes out, no temperature is known.
    """
    if inductive.diverged:
        return inductive
    x = episode.features
    support = unit(x[episode.index.to(x.device)])
    images = unit(test.features)
    tempered = logits / (inductive.temperature or 1)
    adapted = adapt_to_batch(tempered, images, support, episode.y.to(x.device))
    return TestScores(
        score(adapted, test.y),
        diverged=False,
        temperature=inductive.temperature,
        temperature_on=inductive.temperature_on,
        inductive_top1=inductive.scores.top1,
    )


def _temperatures(
    fitted: Sequence[Classifier], episodes: Sequence[Episode]
) -> tuple[Sequence[float | None], str | None]:
    """The temperature of each run, 1 where nothing supports another, and what it was found on.

    "cv": out of fold, where that was done; else "val": the run's own validation items. None for all
    runs where one of them has neither.
    """
    calibrations = [classifier.calibration for classifier in fitted]
    known = [one for one in calibrations if one is not None]
    if len(known) == len(fitted):
        return [float(one.temperature) for one in known], "cv"
    if not all(len(episode.val_index) for episode in episodes):
        return [None] * len(fitted), None
    validation = stack_validation(episodes, inputs(fitted[0].head, episodes[0]))
    logits = logits_of(fitted, validation)  # (n_run, n_val, n_class)
    found = supported_temperature(logits, validation.y, validation.mask.to(logits))
    return found.tolist(), "val"


def _score_run(
    classifier: Classifier,
    logits: Tensor,
    temperature: float | None,
    found_on: str | None,
    y: Tensor,
) -> TestScores:
    if classifier.diverged or not is_finite(logits):
        return TestScores(Scores(), diverged=True)
    scores = score(logits, y)
    # Without items to find one on there is no temperature, and the logits stay as they are.
    if temperature is None:
        return TestScores(scores, diverged=False)
    tempered = calibration(logits / temperature, y)
    return TestScores(
        scores,
        diverged=False,
        temperature=temperature,
        temperature_on=found_on,
        ece_t=tempered["ece"],
        nll_t=tempered["nll"],
    )


@functools.cache
def versions() -> Mapping[str, str]:
    """The versions of what decides the numbers, recorded in each row."""
    # Looked up once: reading them takes about a millisecond, and a grid has many rows.
    return {name: importlib.metadata.version(name) for name in ("cliad", "torch", "numpy")}

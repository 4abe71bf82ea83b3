"""Specs -> results: episodes drawn, heads fitted in groups, each scored once on the test split."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from cliad.adapters.core.classifier import Classifier
from cliad.adapters.core.episode import without_validation
from cliad.adapters.core.fit import Run, require
from cliad.adapters.core.head import static_fields
from cliad.adapters.core.select import (
    WITHOUT_LIMIT,
    fit_all,
    fit_cross_validated,
    fit_selected,
)
from cliad.cache.file.read import FeatureCache
from cliad.pipelines.experiments.episode import (
    DrawnEpisode,
    LabelledRows,
    make_episodes,
    score_rows,
)
from cliad.pipelines.experiments.memory import group_size, in_parts
from cliad.pipelines.experiments.score import Result, Timing, score_runs, zero_shot_top1
from cliad.pipelines.experiments.spec import TrainSpec
from cliad.pipelines.fewshot.draw import DrawRequest


def run(
    cache: FeatureCache,
    specs: Sequence[TrainSpec],
    device: torch.device,
    largest: int | None = None,
) -> Iterator[list[Result]]:
    """Results of specs over one cache, a list as soon as its group is done.

    Args:
        cache: the cache that all specs are of.
        specs: the runs.
        device: where heads are trained.
        largest: how many runs train at once; None: what memory allows.

    Raises:
        HeadError: the cache lacks what a head needs.
        DrawError: too few images for a draw.
        CacheError: a drawn image could not be read, or there is no test split.
    """
    experiment = _Experiment(cache, specs, device)
    for members in groups(specs):
        # All members of a group need equally much memory.
        first = specs[members[0]]
        size = largest or group_size(first.head, cache, first.shots, device)
        yield from in_parts(experiment.results_of, members, size)


def groups(specs: Sequence[TrainSpec]) -> list[list[int]]:
    """Positions of the specs of one cache that can train together, a list for each group.

    They have one kind of head, equal shapes, one plan, one way of selecting and of scoring.
    """
    found: dict[Hashable, list[int]] = defaultdict(list)
    for position, spec in enumerate(specs):
        head = spec.head
        # Where hyper-parameters are searched, what was given is not: other fields given, another
        # search.
        searched = None if spec.select == "fixed" else (spec.select, spec.given)
        # Equal shots mean equal plans, and no padding.
        key = (type(head), static_fields(head), spec.shots, searched, spec.transductive)
        found[key].append(position)
    return list(found.values())


def request_of(spec: TrainSpec) -> DrawRequest:
    """The few-shot draw of a run."""
    return DrawRequest(spec.shots, spec.seed, spec.protocol)


@dataclass
class _Experiment:
    """Specs over one cache with all that their training and scoring needs, loaded once."""

    cache: FeatureCache
    specs: Sequence[TrainSpec]
    device: torch.device
    drawn: dict[DrawRequest, DrawnEpisode] = field(init=False)
    zero_shot: float | None = field(init=False)
    # By what stands behind the features.
    _test_rows: dict[tuple[str, ...], LabelledRows] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        # Specs that differ in the head alone share a draw.
        requests = list(dict.fromkeys(request_of(spec) for spec in self.specs))
        needs: set[str] = set()
        for spec in self.specs:
            needs |= spec.head.needs | spec.head.optional_inputs
        episodes = make_episodes(self.cache, requests, self.device, needs=needs)
        self.drawn = dict(zip(requests, episodes, strict=True))
        # Before anything is trained: a head that the cache cannot serve ends the whole call.
        # Each once, in order: of several, the same one is reported in every call.
        for head in dict.fromkeys(spec.head for spec in self.specs):
            require(head, episodes[0].episode)
        self.zero_shot = zero_shot_top1(self.cache, self.test_rows(()))

    def test_rows(self, columns: tuple[str, ...]) -> LabelledRows:
        """The test split as a head takes it; read once."""
        if columns not in self._test_rows:
            rows = score_rows(self.cache, "test", self.device, columns=columns)
            self._test_rows[columns] = rows
        return self._test_rows[columns]

    def results_of(self, members: list[int]) -> list[Result]:
        """Train and score the specs at these positions, all of one group."""
        specs = [self.specs[position] for position in members]
        drawn = [self.drawn[request_of(spec)] for spec in specs]
        runs = [Run(spec.head, one.episode) for spec, one in zip(specs, drawn, strict=True)]
        fitted, timing = fit_timed(runs, specs[0], self.device, largest=len(runs))
        test = self.test_rows(specs[0].head.columns())
        episodes = [one.episode for one in drawn]
        if specs[0].select == "cv":
            # At one shot there is no temperature, rather than one of validation images.
            episodes = [without_validation(episode) for episode in episodes]
        scores = score_runs(fitted, episodes, test, transductive=specs[0].transductive)
        return [
            Result(
                spec=spec,
                test=of_run,
                zero_shot_top1=self.zero_shot,
                draw=one,
                fingerprint=self.cache.fingerprint,
                timing=timing,
                classifier=classifier,
            )
            for spec, of_run, one, classifier in zip(specs, scores, drawn, fitted, strict=True)
        ]


def fit_timed(
    runs: Sequence[Run], spec: TrainSpec, device: torch.device, largest: int = WITHOUT_LIMIT
) -> tuple[list[Classifier], Timing]:
    """Runs of one group, fitted in the way that their specs select, and what that cost.

    Args:
        runs: the heads and episodes.
        spec: any of the group's.
        device: where the episodes are.
        largest: how many candidates of a search train at once.
    """
    started = time.perf_counter()
    if spec.select == "val":
        fitted = fit_selected(runs, spec.given, largest)
    elif spec.select == "cv":
        fitted = fit_cross_validated(runs, spec.given, largest)
    else:
        fitted = fit_all(runs)
    # CUDA works in the background: without this, seconds would end before the work does.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - started) / len(runs)
    return fitted, Timing(seconds, len(runs), str(device))

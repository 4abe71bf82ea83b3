"""Specs -> results: episodes drawn, heads fitted in groups, each scored once on the test split."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import fields

import torch

from cliad.adapters.core.fit import require
from cliad.adapters.core.head import Head
from cliad.adapters.core.select import fit_all, fit_selected
from cliad.cache.file.read import FeatureCache
from cliad.pipelines.experiments.episode import make_episodes, score_rows
from cliad.pipelines.experiments.memory import group_size, in_parts
from cliad.pipelines.experiments.score import Result, _scored, _zero_shot, versions
from cliad.pipelines.experiments.spec import TrainSpec, make_head


def run(cache: FeatureCache, specs: Sequence[TrainSpec], device: torch.device, largest: int | None = None) -> Iterator[list[Result]]:
    """Results of specs over one cache, a list as soon as its group is done; `largest` runs train at once, None: what memory allows.

    Raises:
        HeadError, DrawError, CacheError: see the parts.
    """
    heads = [make_head(spec.head, dict(spec.hyper)) for spec in specs]
    asked = list(dict.fromkeys((spec.shots, spec.seed, spec.protocol) for spec in specs))
    needs = frozenset().union(*(head.needs | head.likes for head in heads))
    drawn = dict(zip(asked, make_episodes(cache, asked, device, needs=needs), strict=True))
    episodes = [drawn[spec.shots, spec.seed, spec.protocol] for spec in specs]
    for head in set(heads):
        require(head, episodes[0].episode)
    test = functools.cache(lambda pre_projection: score_rows(cache, "test", device, pre_projection=pre_projection))
    zero_shot = _zero_shot(cache, episodes[0], test(False))
    runs = [(head, drawn.episode) for head, drawn in zip(heads, episodes, strict=True)]

    def fit_part(members: list[int]) -> list[Result]:
        started = time.perf_counter()
        part, spec = [runs[i] for i in members], specs[members[0]]
        fitted = fit_selected(part, dict(spec.hyper), len(part)) if spec.select == "val" else fit_all(part)
        _synchronise(device)
        seconds = (time.perf_counter() - started) / len(members)
        shared = {"zero_shot_top1": zero_shot, "train_seconds": seconds, "group_size": len(members)}
        shared |= {"device": str(device), "versions": versions()}
        values = _scored(fitted, [episodes[i] for i in members], test("pre_projection" in part[0][0].needs), cache)
        return [Result(specs[i], of | shared, c) for i, of, c in zip(members, values, fitted, strict=True)]

    for members in groups(cache, specs, heads):
        size = largest or group_size(heads[members[0]], cache, specs[members[0]].shots, device)
        for _, results in in_parts(fit_part, members, size):
            yield results


def groups(cache: FeatureCache, specs: Sequence[TrainSpec], heads: Sequence[Head]) -> list[list[int]]:
    """Positions of the specs of one cache that can train together: one head, shapes, plan and way of selecting; all else differs."""
    found = defaultdict(list)
    for i, (spec, head) in enumerate(zip(specs, heads, strict=True)):
        static = tuple((f.name, getattr(head, f.name)) for f in fields(head) if f.name not in head.vary)
        way = frozenset(dict(spec.hyper)) if spec.select == "val" else None
        found[spec.head, static, spec.shots, way].append(i)  # equal shots: equal plans, and no padding
    return list(found.values())


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""`cliad grid`: every combination of what is asked, each once, its row in results.jsonl as soon as it is there."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from cliad.adapters import HEADS
from cliad.adapters.core.head import Head
from cliad.cache.file.read import FeatureCache
from cliad.cache.folder import cache_dir, slug
from cliad.pipelines.experiments.axes import Axes, AxisError, axes_of, hyper_names, read_config
from cliad.pipelines.experiments.episode import draw_of, pick_device
from cliad.pipelines.experiments.find_cache import find_cache
from cliad.pipelines.experiments.memory import group_size
from cliad.pipelines.experiments.results_file import open_ledger
from cliad.pipelines.experiments.run import groups, run
from cliad.pipelines.experiments.score import Result
from cliad.pipelines.experiments.spec import SpecError, TrainSpec, make_head, nearest, selects, spec_of
from cliad.pipelines.experiments.transfer import check_target, find_targets, transfer
from cliad.pipelines.fewshot.draw import check_asked

DEFAULTS = {"shots": ["1", "2", "4", "8", "16"], "seeds": ["1", "2", "3"], "head": ["clip-adapter"], "protocol": ["coop"]}


@dataclass(frozen=True)
class Progress:
    """How far a grid is: rows done and to do in this call, and rows per second."""

    done: int
    total: int
    rate: float


@dataclass(frozen=True)
class Grid:
    """What a grid did: the file, rows asked, rows that were in it already, rows done now, and the seconds that took."""

    out: Path
    asked: int
    found: int
    done: int
    seconds: float


@dataclass(frozen=True)
class _Todo:
    """The rows over one cache by key: spec, head, and the cache that the head is scored on, its own or a target's."""

    cache: FeatureCache
    rows: Mapping[str, tuple[TrainSpec, Head, FeatureCache]]

    @property
    def runs(self) -> dict[TrainSpec, Head]:
        """What has to be trained for them: each run once."""
        return {spec: head for spec, head, _ in self.rows.values()}


def grid(
    *,
    folder: Path | None = None,
    words: Mapping[str, object] = {},
    config: Path | None = None,
    out: Path | None = None,
    device: str | None = None,
    tell: Callable[[str], None] = lambda message: None,
    progress: Callable[[Progress], None] = lambda state: None,
) -> Grid:
    """Run what a results file lacks of a grid.

    Args:
        folder: where caches lie; None: $CLIAD_CACHE or the user's cache folder.
        words: axes as typed: word -> `1,2,4`, `0:1:0.2`, or a list; "set" holds a table of further hyper-parameters.
        config: a TOML file with the same words; `words` win.
        out: the results file; default the configuration's, else results.jsonl.
        device: auto, cpu, cuda, ...
        tell, progress: called with messages, and with how far it is.
    Raises:
        ValueError: AxisError, SpecError, HeadError, DrawError, CacheError, RowsError; rows that were done are in the file.
    """
    axes = (read_config(config) if config else Axes()) | axes_of(words)
    out = Path(out or axes.other.get("out", "results.jsonl"))
    on = pick_device(device or axes.other.get("device", "auto"))
    todos = list(_todos(cache_dir(folder), axes, tell))
    asked = sum(len(todo.rows) for todo in todos)
    with open_ledger(out, tell) as ledger:
        have = {row.get("key") for row in ledger.rows}
        todos = [_Todo(todo.cache, {key: of for key, of in todo.rows.items() if key not in have}) for todo in todos]
        total = sum(len(todo.rows) for todo in todos)
        tell(_plan_line(todos, asked, total, out, on))
        started, done = time.perf_counter(), 0
        for rows in _rows(todos, on):
            ledger.append(rows)
            done += len(rows)
            progress(Progress(done, total, done / (time.perf_counter() - started)))
        return Grid(out, asked, asked - total, done, time.perf_counter() - started)


def key_of(spec: TrainSpec, head: Head, source: FeatureCache, scored: FeatureCache) -> str:
    """16 hex digits for what decides a row's numbers: data, cache, head, every hyper-parameter, how it is selected, what it is scored on.

    A default counts like the same value typed, so that a later default is another run.
    """
    given = dict(spec.hyper)
    searched = {name for name in head.searches() if name not in given} if spec.select == "val" else set()
    hyper = {field.name: "searched" if field.name in searched else getattr(head, field.name) for field in fields(head)}
    identity = spec.json() | {"hyper": hyper, "fingerprint": source.fingerprint}
    if scored is not source:
        identity |= {"test_dataset": scored.dataset, "test_fingerprint": scored.fingerprint}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _todos(folder: Path, axes: Axes, tell: Callable[[str], None]) -> Iterator[_Todo]:
    """The rows that are asked, cache by cache; equal ones are one."""
    _check_words(axes)
    sources = itertools.product(*(axes.spec.get(word, [None]) for word in ("dataset", "encoder", "prompts")))
    caches = [find_cache(folder, *source, tell) for source in sources]
    for cache in {cache.fingerprint + cache.dataset: cache for cache in caches}.values():
        specs, targets = [*_specs(cache, axes)], _targets(folder, cache, axes, tell)
        rows = {key_of(*of, cache, at): (*of, at) for at in reversed([cache, *targets]) for of in reversed(specs)}
        todo = _Todo(cache, dict(reversed(rows.items())))
        most = max((spec.shots, spec.protocol, spec.seed) for spec in todo.runs)
        draw_of(cache, shots=most[0], protocol=most[1], seed=most[2])  # too few images: said before anything is trained
        yield todo


def _targets(folder: Path, cache: FeatureCache, axes: Axes, tell: Callable[[str], None]) -> list[FeatureCache]:
    """The caches of the word `test`, but for the run's own data set; all heads can be scored on them."""
    names = [name for name in axes.spec.get("test", ()) if slug(name) != slug(cache.dataset)]
    targets = find_targets(folder, names, cache, tell)
    for head, target in itertools.product(axes.spec.get("head", DEFAULTS["head"]), targets):
        check_target(HEADS[head], cache, target)
    return targets


def _check_words(axes: Axes) -> None:
    heads = axes.spec.get("head", DEFAULTS["head"])
    for head in heads:
        if head not in HEADS:
            raise SpecError(nearest("head", head, HEADS))
    for name in axes.hyper:
        if not any(name in axes.of(head) for head in heads):
            raise SpecError(nearest(f"hyper-parameter of {', '.join(heads)}", name, hyper_names(heads)))


def _specs(cache: FeatureCache, axes: Axes) -> Iterator[tuple[TrainSpec, Head]]:
    take = lambda word: axes.spec.get(word, DEFAULTS.get(word, [None]))
    for name in take("head"):
        own = axes.of(name)
        draws = itertools.product(_whole("shots", take("shots")), _whole("seeds", take("seeds")), take("protocol"), take("select"))
        combos = [dict(zip(own, of, strict=True)) for of in itertools.product(*own.values())]
        for (shots, seed, protocol, select), given in itertools.product(draws, combos):
            check_asked(shots, protocol)
            head = make_head(name, given)
            way = "fixed" if select == "val" and not selects(head, given) else select  # an axis that the head lacks
            yield spec_of(cache, name, head, shots=shots, seed=seed, protocol=protocol, select=way, given=given), head


def _whole(word: str, values) -> list[int]:
    try:
        return [int(value) for value in values]
    except ValueError:
        raise AxisError(f"{word} are whole numbers; got {', '.join(map(str, values))}") from None


def _plan_line(todos: list[_Todo], asked: int, total: int, out: Path, device: torch.device) -> str:
    """What is about to happen, in one line."""
    if not total:
        return f"all {asked} rows are in {out}; nothing to do"
    batches = 0
    for todo in todos:
        specs, heads = [*todo.runs], [*todo.runs.values()]
        for members in groups(todo.cache, specs, heads):
            batches += -(-len(members) // group_size(heads[members[0]], todo.cache, specs[members[0]].shots, device))
    found = f" ({asked - total} of {asked} rows are in {out} already)" if total < asked else f" into {out}"
    caches, runs = len([todo for todo in todos if todo.rows]), sum(len(todo.runs) for todo in todos)
    scored = f", {total} rows," if total > runs else ""
    return f"{runs} runs in {batches} batches over {caches} cache{'s' * (caches > 1)} on {device}{scored}{found}"


def _rows(todos: list[_Todo], device: torch.device) -> Iterator[list[dict]]:
    """Rows with their keys, a list as soon as a group is done."""
    for todo in todos:
        keys = {(spec, at.path): key for key, (spec, _, at) in todo.rows.items()}
        scored = {at.path: at for _, _, at in todo.rows.values()}
        if not keys:
            continue
        for results in run(todo.cache, [*todo.runs], device):
            rows = []
            for path, at in scored.items():
                asked = [result for result in results if (result.spec, path) in keys]
                made = _scored(asked, todo.cache, at, device)
                rows += [row | {"key": keys[result.spec, path]} for result, row in zip(asked, made, strict=True)]
            yield rows


def _scored(results: Sequence[Result], source: FeatureCache, at: FeatureCache, device: torch.device) -> list[dict]:
    """The rows of runs over one cache, scored on it or on another one."""
    if at is source:
        return [result.row() for result in results]
    return transfer(results, source, at, device) if results else []

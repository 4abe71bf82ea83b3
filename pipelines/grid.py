"""`cliad grid`: every combination of what is asked, each once, its row in results.jsonl as soon as it is there."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from cliad.adapters import HEADS
from cliad.adapters.base import Head
from cliad.cache.folder import cache_dir
from cliad.cache.store import FeatureCache
from cliad.pipelines.axes import Axes, AxisError, axes_of, hyper_names, read_config
from cliad.pipelines.draw import check_asked
from cliad.pipelines.episode import draw_of, pick_device
from cliad.pipelines.memory import group_size
from cliad.pipelines.rows import open_ledger
from cliad.pipelines.train import SpecError, TrainSpec, find_cache, groups, make_head, nearest, run, selects, spec_of

DEFAULTS = {"shots": ["1", "2", "4", "8", "16"], "seeds": ["1", "2", "3"], "head": ["clip-adapter"], "protocol": ["coop"]}


@dataclass(frozen=True)
class Progress:
    """How far a grid is: runs done and to do in this call, and runs per second."""

    done: int
    total: int
    rate: float


@dataclass(frozen=True)
class Grid:
    """What a grid did: the file, runs asked, runs that were in it already, runs done now, and the seconds that took."""

    out: Path
    asked: int
    found: int
    done: int
    seconds: float


@dataclass(frozen=True)
class _Todo:
    """The runs over one cache: spec and head by key."""

    cache: FeatureCache
    runs: Mapping[str, tuple[TrainSpec, Head]]


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
    asked = sum(len(todo.runs) for todo in todos)
    with open_ledger(out, tell) as ledger:
        have = {row.get("key") for row in ledger.rows}
        todos = [_Todo(todo.cache, {key: of for key, of in todo.runs.items() if key not in have}) for todo in todos]
        total = sum(len(todo.runs) for todo in todos)
        tell(_plan_line(todos, asked, total, out, on))
        started, done = time.perf_counter(), 0
        for rows in _rows(todos, on):
            ledger.append(rows)
            done += len(rows)
            progress(Progress(done, total, done / (time.perf_counter() - started)))
        return Grid(out, asked, asked - total, done, time.perf_counter() - started)


def key_of(spec: TrainSpec, head: Head, fingerprint: str) -> str:
    """16 hex digits for what decides a run's numbers: data, cache, head, every hyper-parameter, how it is selected.

    A default counts like the same value typed, so that a later default is another run.
    """
    given = dict(spec.hyper)
    searched = {name for name in head.searches() if name not in given} if spec.select == "val" else set()
    hyper = {field.name: "searched" if field.name in searched else getattr(head, field.name) for field in fields(head)}
    identity = spec.json() | {"hyper": hyper, "fingerprint": fingerprint}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _todos(folder: Path, axes: Axes, tell: Callable[[str], None]) -> Iterator[_Todo]:
    """The runs that are asked, cache by cache; equal ones are one."""
    _check_words(axes)
    sources = itertools.product(*(axes.spec.get(word, [None]) for word in ("dataset", "encoder", "prompts")))
    caches = [find_cache(folder, *source, tell) for source in sources]
    for cache in {cache.fingerprint + cache.dataset: cache for cache in caches}.values():
        runs = {key_of(spec, head, cache.fingerprint): (spec, head) for spec, head in reversed([*_specs(cache, axes)])}
        todo = _Todo(cache, dict(reversed(runs.items())))
        most = max((spec.shots, spec.protocol, spec.seed) for spec, _ in todo.runs.values())
        draw_of(cache, shots=most[0], protocol=most[1], seed=most[2])  # too few images: said before anything is trained
        yield todo


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
        return f"all {asked} runs are in {out}; nothing to do"
    batches = 0
    for todo in todos:
        specs, heads = [[of[i] for of in todo.runs.values()] for i in (0, 1)]
        for members in groups(todo.cache, specs, heads):
            batches += -(-len(members) // group_size(heads[members[0]], todo.cache, specs[members[0]].shots, device))
    found = f" ({asked - total} of {asked} are in {out} already)" if total < asked else f" into {out}"
    caches = len([todo for todo in todos if todo.runs])
    return f"{total} runs in {batches} batches over {caches} cache{'s' * (caches > 1)} on {device}{found}"


def _rows(todos: list[_Todo], device: torch.device) -> Iterator[list[dict]]:
    """Rows with their keys, a list as soon as a group is done."""
    for todo in todos:
        keys = {spec: key for key, (spec, _) in todo.runs.items()}
        if keys:
            for results in run(todo.cache, list(keys), device):
                yield [result.row() | {"key": keys[result.spec]} for result in results]

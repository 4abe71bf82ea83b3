"""`cliad grid`: every combination of what was asked for, each once.

A row is in the results file as soon as it is known.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from cliad.adapters import HEADS
from cliad.adapters.core.fit import require
from cliad.adapters.core.head import Head
from cliad.adapters.core.progress import Steps, silent, steps_go_to
from cliad.cache.equal_texts import note_equal_texts
from cliad.cache.file.read import FeatureCache
from cliad.cache.folder import cache_dir, slug
from cliad.errors import unknown
from cliad.pipelines.experiments.axes import (
    SPEC_WORDS,
    Axes,
    AxisError,
    axes_of,
    hyper_names,
    read_config,
)
from cliad.pipelines.experiments.below_zero_shot import caution_of_many, largest_class
from cliad.pipelines.experiments.episode import draw_of, make_episodes, pick_device
from cliad.pipelines.experiments.find_cache import CacheChoice, find_cache
from cliad.pipelines.experiments.memory import check_size, group_size
from cliad.pipelines.experiments.results_file import open_results
from cliad.pipelines.experiments.run import groups, run
from cliad.pipelines.experiments.score import Result
from cliad.pipelines.experiments.spec import (
    CAUTION,
    SELECTIONS,
    SpecError,
    TrainSpec,
    make_head,
    selects,
    spec_of,
    true_or_false,
)
from cliad.pipelines.experiments.transfer import check_target, find_targets, transfer
from cliad.pipelines.fewshot.draw import DrawRequest, check_request

# What is run where an axis is not given, as one would type it.
DEFAULTS = {
    "shots": ["1", "2", "4", "8", "16"],
    "seeds": ["1", "2", "3"],
    "protocol": ["coop"],
}


MOST_ROWS = 100_000  # of one grid


@dataclass(frozen=True)
class Progress:
    """How far a grid is: rows done and to do in this call, and rows per second."""

    done: int
    total: int
    rate: float


@dataclass(frozen=True)
class Grid:
    """What a grid did.

    out: the results file; asked: the rows of the grid; found: rows that were in the file already;
    done: rows added now, in `seconds`; caution: a line on rows of the grid that are no better than
    doing nothing, None where all are.
    """

    out: Path
    asked: int
    found: int
    done: int
    seconds: float
    caution: str | None = None


@dataclass(frozen=True)
class PlannedRow:
    """A row to come: a run, and the cache that its head is scored on, its own or another."""

    spec: TrainSpec
    target: FeatureCache  # the spec's own cache, or one of `--test`


@dataclass(frozen=True)
class PlannedCache:
    """The rows over one cache, by key."""

    cache: FeatureCache
    rows: Mapping[str, PlannedRow]  # in the order in which they were asked for

    @property
    def specs(self) -> list[TrainSpec]:
        """What has to be trained for the rows: each run once."""
        return list(dict.fromkeys(row.spec for row in self.rows.values()))

    def without(self, done: set[str]) -> PlannedCache:
        """The rows whose keys are not in `done`."""
        left = {key: row for key, row in self.rows.items() if key not in done}
        return PlannedCache(self.cache, left)


def grid(
    *,
    folder: Path | None = None,
    words: Mapping[str, object] = {},
    config: Path | None = None,
    out: Path | None = None,
    device: str | None = None,
    log: Callable[[str], None] = lambda message: None,
    progress: Callable[[Progress], None] = lambda state: None,
    steps: Steps = silent,
) -> Grid:
    """Run what a results file lacks of a grid.

    Args:
        folder: where caches lie; None: $CLIAD_CACHE or the user's cache folder.
        words: axes as typed: word -> `1,2,4`, `0:1:0.2`, or a list; "set" holds a table of further
            hyper-parameters.
        config: a TOML file with the same words; `words` win.
        out: the results file; default the configuration's, else results.jsonl.
        device: auto, cpu, cuda, ...
        log, progress: called with messages, and with how far it is.
        steps: called with how far the training of a batch of runs is.

    Raises:
        AxisError, SpecError, HeadError, DrawError, CacheError, RowsError: what is wrong and what to
            do; rows that were done are in the file.
    """
    axes = axes_of(words)
    if config:
        axes = read_config(config) | axes
    results_path = Path(out or axes.other.get("out", "results.jsonl"))
    torch_device = pick_device(device or axes.other.get("device", "auto"))
    planned = list(_planned(cache_dir(folder), axes, log))
    asked = sum(len(part.rows) for part in planned)
    with open_results(results_path, log) as results:
        done_before = {row["key"] for row in results.rows if "key" in row}
        # Rows of an earlier, interrupted call are not made again.
        left = [part.without(done_before) for part in planned]
        total = sum(len(part.rows) for part in left)
        log("; ".join([_plan_line(left, asked, total, results_path, torch_device), *axes.notes()]))
        started = time.perf_counter()
        done = 0
        with steps_go_to(steps):
            for rows in _rows(left, torch_device):
                results.append(rows)
                done += len(rows)
                rate = done / (time.perf_counter() - started)
                progress(Progress(done, total, rate))
        return Grid(
            out=results_path,
            asked=asked,
            found=asked - total,
            done=done,
            seconds=time.perf_counter() - started,
            caution=_caution(results.rows, planned),
        )


def _caution(rows: Sequence[dict], planned: Sequence[PlannedCache]) -> str | None:
    """The line on rows of this grid that are no better than doing nothing."""
    largest: dict[str, float] = {}
    keys: set[str] = set()
    for part in planned:
        keys.update(part.rows)
        for row in part.rows.values():
            if row.target.fingerprint not in largest:
                largest[row.target.fingerprint] = largest_class(row.target)
    return caution_of_many([row for row in rows if row.get("key") in keys], largest)


def key_of(spec: TrainSpec, source: FeatureCache, target: FeatureCache) -> str:
    """16 hex digits for all that decides a row's numbers.

    That is the data, the cache, the head, every hyper-parameter, how it is selected, and what it is
    scored on. A default counts like the same value typed, so that a later default is another run.
    """
    searched = set()
    if spec.select != "fixed":
        searched = set(spec.head.searches()) - spec.given
    hyper = {}
    for field in fields(spec.head):
        value = getattr(spec.head, field.name)
        # A searched value is a result, not a part of the question.
        hyper[field.name] = "searched" if field.name in searched else value
    identity = {**spec.json(), "hyper": hyper, "fingerprint": source.fingerprint}
    if target is not source:
        identity["test_dataset"] = target.dataset
        identity["test_fingerprint"] = target.fingerprint
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _planned(folder: Path, axes: Axes, log: Callable[[str], None]) -> Iterator[PlannedCache]:
    """The rows that were asked for, cache by cache; equal ones are one."""
    _check_words(axes)
    _check_count(axes)
    if True in _transductive(axes):
        log(CAUTION)
    all_shots = _whole_numbers("shots", axes)
    seeds = _whole_numbers("seeds", axes)
    protocols = axes.spec.get("protocol", DEFAULTS["protocol"])
    # Checked for all before anything is made of them.
    for shots, seed, protocol in itertools.product(all_shots, seeds, protocols):
        check_request(shots, protocol, seed)
    for cache in _caches(folder, axes, log):
        # The largest draw: too few images are reported before anything is made or trained.
        largest = DrawRequest(max(all_shots), max(seeds), max(protocols))
        draw_of(cache, largest)
        specs = list(_specs(cache, axes))
        _check_heads(cache, specs, largest)
        rows: dict[str, PlannedRow] = {}
        for target in [cache, *_targets(folder, cache, axes, log)]:
            for spec in specs:
                # Specs collapse where an axis does not matter for a head; the first one stays.
                rows.setdefault(key_of(spec, cache, target), PlannedRow(spec, target))
        yield PlannedCache(cache, rows)


def _check_heads(cache: FeatureCache, specs: Sequence[TrainSpec], largest: DrawRequest) -> None:
    """Check what would end the grid later: what a head needs of the cache, and its size.

    Raises:
        HeadError, SpecError, CacheError: see `require` and `check_size`.
    """
    needs: set[str] = set()
    heads: dict[Head, int] = {}
    for spec in specs:
        needs |= spec.head.needs
        heads[spec.head] = max(heads.get(spec.head, 0), spec.shots)
    (drawn,) = make_episodes(cache, [largest], torch.device("cpu"), needs=needs)
    for head, shots in heads.items():
        require(head, drawn.episode)
        check_size(head, cache, shots)


def _caches(folder: Path, axes: Axes, log: Callable[[str], None]) -> list[FeatureCache]:
    """The caches that are meant, each once."""
    # Two names of one encoder, or a default beside its name, may mean the same cache.
    found: dict[tuple[str, str], FeatureCache] = {}
    for dataset in axes.spec.get("dataset", [None]):
        for encoder in axes.spec.get("encoder", [None]):
            for prompts in axes.spec.get("prompts", [None]):
                cache = find_cache(CacheChoice(folder, dataset, encoder, prompts), log)
                found[cache.fingerprint, cache.dataset] = cache
    for cache in found.values():
        note_equal_texts(cache.text, cache.classnames, cache.encoder, log)
    return list(found.values())


def _targets(
    folder: Path, cache: FeatureCache, axes: Axes, log: Callable[[str], None]
) -> list[FeatureCache]:
    """The caches of the word `test`, without the run's own data set; checked for all heads."""
    own = slug(cache.dataset)
    names = [name for name in axes.spec.get("test", ()) if slug(name) != own]
    targets = find_targets(folder, names, cache, log)
    for head in axes.heads:
        for target in targets:
            check_target(HEADS[head], cache, target)
    return targets


def _check_words(axes: Axes) -> None:
    """SpecError for a head that does not exist, or a hyper-parameter that none of the heads has."""
    heads = axes.heads
    for head in heads:
        if head not in HEADS:
            raise SpecError(unknown("head", head, HEADS))
    for name in axes.hyper:
        if not any(name in axes.of_head(head) for head in heads):
            what = f"hyper-parameter of {', '.join(heads)}"
            raise SpecError(unknown(what, name, hyper_names(heads)))
    if True in _transductive(axes) and "test" in axes.spec:
        raise AxisError("transductive runs are scored on their own test split; leave out test")


def _check_count(axes: Axes) -> None:
    """AxisError for a grid of more rows than a file should hold; nothing is made to count them."""
    settings = 0
    for head in axes.heads:
        settings += math.prod(len(values) for values in axes.of_head(head).values())
    rows = settings
    # Heads are counted with their settings above.
    for word in set(SPEC_WORDS) - {"head", "test"}:
        rows *= len(axes.spec.get(word, DEFAULTS.get(word, [""])))
    rows *= 1 + len(axes.spec.get("test", ()))
    if rows > MOST_ROWS:
        raise AxisError(
            f"this grid has {rows:,} rows, at most {MOST_ROWS:,} are allowed;"
            " give fewer values, or make it in parts"
        )


def _specs(cache: FeatureCache, axes: Axes) -> Iterator[TrainSpec]:
    """The runs over one cache, in the order in which they were asked for."""
    scorings = _transductive(axes)
    selections = axes.spec.get("select", [None])
    protocols = axes.spec.get("protocol", DEFAULTS["protocol"])
    all_shots = _whole_numbers("shots", axes)
    seeds = _whole_numbers("seeds", axes)
    for name in axes.heads:
        own = axes.of_head(name)
        settings = [
            dict(zip(own, values, strict=True)) for values in itertools.product(*own.values())
        ]
        draws = itertools.product(all_shots, seeds, protocols, selections, scorings)
        for shots, seed, protocol, select, transductive in draws:
            for given in settings:
                head = make_head(name, given)
                yield spec_of(
                    cache,
                    head,
                    given=given,
                    shots=shots,
                    seed=seed,
                    protocol=protocol,
                    select=_selection(head, given, select),
                    transductive=transductive,
                )


def _selection(head: Head, given: Mapping, select: str | None) -> str | None:
    """How a head is selected where the axis says `select`: by that, where there is a choice."""
    if head.cross_fits and select in SELECTIONS:
        return "cv"
    nothing_to_select = select == "val" and not selects(head, given)
    return "fixed" if nothing_to_select else select


def _transductive(axes: Axes) -> list[bool]:
    """The ways in which runs are scored; SpecError for a value that is neither true nor false."""
    values = axes.spec.get("transductive", ["false"])
    return [true_or_false(value, "transductive") for value in values]


def _whole_numbers(word: str, axes: Axes) -> list[int]:
    values = axes.spec.get(word, DEFAULTS[word])
    try:
        return [int(value) for value in values]
    except ValueError:
        listed = ", ".join(values)[:80]
        raise AxisError(f"{word} are whole numbers; got {listed}") from None


def _plan_line(
    planned: Sequence[PlannedCache], asked: int, total: int, out: Path, device: torch.device
) -> str:
    """What is about to happen, in one line."""
    if not total:
        return f"all {asked} rows are in {out}; nothing to do"
    batches = 0
    runs = 0
    for part in planned:
        specs = part.specs
        runs += len(specs)
        for members in groups(specs):
            first = specs[members[0]]
            size = group_size(first.head, part.cache, first.shots, device)
            batches += -(-len(members) // size)  # rounded up
    caches = sum(1 for part in planned if part.rows)
    line = f"{runs} runs in {batches} batches over {caches} {'cache' if caches == 1 else 'caches'}"
    line += f" on {device}"
    # A run that is scored on several data sets has a row for each.
    if total > runs:
        line += f", {total} rows,"
    if total < asked:
        return f"{line} ({asked - total} of {asked} rows are in {out} already)"
    return f"{line} into {out}"


def _rows(planned: Sequence[PlannedCache], device: torch.device) -> Iterator[list[dict]]:
    """Rows with their keys, a list as soon as a group is done."""
    for part in planned:
        if not part.rows:
            continue
        # The path stands for the cache: a FeatureCache is not hashable.
        keys = {(row.spec, row.target.path): key for key, row in part.rows.items()}
        targets = {row.target.path: row.target for row in part.rows.values()}
        for results in run(part.cache, part.specs, device):
            yield _keyed_rows(results, part.cache, list(targets.values()), keys, device)


def _keyed_rows(
    results: Sequence[Result],
    source: FeatureCache,
    targets: Sequence[FeatureCache],
    keys: Mapping[tuple[TrainSpec, Path], str],
    device: torch.device,
) -> list[dict]:
    """The rows of one group on every target that they are asked for on."""
    keyed = []
    for target in targets:
        wanted = [result for result in results if (result.spec, target.path) in keys]
        if target is source:
            rows = [result.row() for result in wanted]
        elif wanted:
            rows = transfer(wanted, source, target, device)
        else:
            rows = []
        for result, row in zip(wanted, rows, strict=True):
            keyed.append({**row, "key": keys[result.spec, target.path]})
    return keyed

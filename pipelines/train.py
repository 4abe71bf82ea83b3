"""Specs -> results: episodes drawn, heads fitted in groups, each scored once on the test split."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.metadata
import json
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path

import torch

from cliad.adapters import HEADS
from cliad.adapters.base import Head, default_of
from cliad.adapters.metrics import calibration, fit_temperature, metrics
from cliad.adapters.optimise import Classifier, group, require, validation
from cliad.adapters.select import fit_all, fit_selected
from cliad.cache import folder as cache_folder
from cliad.cache.store import FeatureCache
from cliad.pipelines.draw import check_asked
from cliad.pipelines.episode import DrawnEpisode, make_episodes, pick_device, score_rows

LARGEST_GROUP = 64  # runs trained at once


class SpecError(ValueError):
    """A run that cannot be what is asked; the message says what is known and what to do."""


@dataclass(frozen=True)
class TrainSpec:
    """Everything that decides a number, but for the cache's contents, which the fingerprint stands for.

    `hyper`: the head's hyper-parameters that the user gave, as sorted (name, value) pairs; all others have their default, or
    are chosen on validation where `select` is "val".
    """

    dataset: str
    encoder: str
    prompts: str
    head: str
    shots: int
    seed: int
    protocol: str = "coop"
    select: str = "fixed"
    hyper: tuple[tuple[str, object], ...] = ()

    def json(self) -> dict:
        words = {spec.name: getattr(self, spec.name) for spec in fields(self)} | {"hyper": dict(self.hyper)}
        return {"selected_on" if name == "select" else name: value for name, value in words.items()}

    @property
    def key(self) -> str:
        """8 hex digits that name the spec."""
        return hashlib.sha256(json.dumps(self.json(), sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Result:
    """One run: its spec, the numbers, and the classifier (kept for saving; not part of the row)."""

    spec: TrainSpec
    values: Mapping
    classifier: Classifier = field(repr=False, compare=False)

    def row(self, run: str | None = None) -> dict:
        """One JSON line, in DESIGN.md's words."""
        return self.spec.json() | dict(self.values) | {"run": run}


def nearest(what: str, name: str, known: Collection[str]) -> str:
    """One line for an unknown name: what there is, and which was probably meant."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"there is no {what} '{name}'{f', did you mean {close[0]}?' if close else ''}; known: {', '.join(known)}"


def make_head(name: str, given: Mapping[str, object]) -> Head:
    """The head `name` with the hyper-parameters given, text values read as the field's type.

    Raises:
        SpecError: unknown head, a hyper-parameter that it lacks, or a value of another type.
        HeadError: a value out of range.
    """
    if name not in HEADS:
        raise SpecError(nearest("head", name, HEADS))
    known = {spec.name: spec for spec in fields(HEADS[name])}
    for key in given:
        if key not in known:
            raise SpecError(nearest(f"hyper-parameter of {name}", key, known) if known else f"{name} has no hyper-parameters; got {key}")
    return HEADS[name](**{key: _typed(key, value, known[key]) for key, value in given.items()})


def _typed(name: str, value, spec: Field):
    """`value` as the type of the field; a field whose default is None is a number of the kind that it is annotated with."""
    default = default_of(spec)
    if value is None and default is None:
        return None
    if default is None:
        default = {"int": 0, "float": 0.0}[str(spec.type).split(" |")[0]]
    if isinstance(default, bool):
        if str(value).lower() in ("true", "yes", "on", "1", "false", "no", "off", "0"):
            return str(value).lower() in ("true", "yes", "on", "1")
        raise SpecError(f"{name} is true or false; got {value}")
    try:
        return type(default)(str(value)) if isinstance(default, (str, int)) else float(value)
    except (TypeError, ValueError):
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise SpecError(f"{name} is {kind}; got {value}") from None


def find_cache(folder: Path, dataset: str | None, encoder: str | None, prompts: str | None, tell: Callable[[str], None]) -> FeatureCache:
    """The cache that is meant; `digits` with its bundled encoder is extracted where it is not there yet.

    Raises:
        SpecError: another data set has no cache; the message is the command that makes it.
    """
    cache = cache_folder.find(folder, dataset, encoder, prompts)
    if cache is not None:
        return cache
    if dataset in (None, "digits") and encoder in (None, "tiny"):
        from cliad.pipelines.extract import extract  # brings the encoder: only when there is something to encode

        tell("there is no cache yet: extracting the bundled data set digits with the bundled encoder tiny")
        return cache_folder.open_cache(extract("digits", cache_folder=folder, tell=tell), prompts)
    have = sorted({f"{path.parent.name}/{path.stem}" for path in cache_folder.cached(folder)})
    what = f"--dataset {dataset}" if dataset else "--dataset NAME"
    with_encoder = f" --model {encoder}" if encoder else ""
    raise SpecError(
        f"{folder} has no cache of {dataset or encoder}; `cliad extract {what}{with_encoder}` makes it; there is: {', '.join(have) or 'none'}"
    )


def train(
    *,
    folder: Path,
    dataset: str | None = None,
    encoder: str | None = None,
    prompts: str | None = None,
    head: str = "clip-adapter",
    shots: int = 16,
    seed: int = 1,
    protocol: str = "coop",
    select: str | None = None,
    hyper: Mapping[str, object] = {},
    device: str = "auto",
    tell: Callable[[str], None] = lambda message: None,
) -> tuple[Result, FeatureCache]:
    """One run on a cache of `folder`: the verb `cliad train`."""
    made = make_head(head, hyper)
    check_asked(shots, protocol)
    cache = find_cache(folder, dataset, encoder, prompts, tell)
    spec = spec_of(cache, head, made, shots=shots, seed=seed, protocol=protocol, select=select, given=hyper)
    (result,) = next(run(cache, [spec], pick_device(device)))
    return result, cache


def spec_of(
    cache: FeatureCache, head: str, made: Head, *, shots: int, seed: int, protocol: str, select: str | None, given: Collection[str]
) -> TrainSpec:
    """The spec of a run; `select` None is the head's published way."""
    free = bool(set(made.searches()) - set(given)) or made.plan(1, 1).keep == "best"
    select = select or ("val" if made.select == "val" and free else "fixed")
    if select not in ("fixed", "val"):
        raise SpecError(f"select is fixed or val; got {select}")
    if select == "val" and not free:
        raise SpecError(f"{head} has nothing left to select on validation; use --select fixed")
    pairs = tuple(sorted((name, getattr(made, name)) for name in given))
    return TrainSpec(cache.dataset, cache.encoder, cache.prompts, head, shots, seed, protocol, select, pairs)


def run(cache: FeatureCache, specs: Sequence[TrainSpec], device: torch.device, largest: int = LARGEST_GROUP) -> Iterator[list[Result]]:
    """Results of specs over one cache, a list as soon as its group is done.

    Raises:
        HeadError, DrawError, CacheError: see the parts.
    """
    heads = [make_head(spec.head, dict(spec.hyper)) for spec in specs]
    asked = list(dict.fromkeys((spec.shots, spec.seed, spec.protocol) for spec in specs))
    needs = frozenset().union(*(head.needs | head.likes for head in heads))
    drawn = dict(zip(asked, make_episodes(cache, asked, device, needs=needs), strict=True))
    episodes = [drawn[spec.shots, spec.seed, spec.protocol] for spec in specs]
    test = functools.cache(lambda pre_projection: score_rows(cache, "test", device, pre_projection=pre_projection))
    zero_shot = _zero_shot(cache, episodes[0], test(False))
    runs = [(head, drawn.episode) for head, drawn in zip(heads, episodes, strict=True)]
    for members in _groups(specs, runs, largest):
        part = [runs[i] for i in members]
        require(*part[0])
        started = time.perf_counter()
        spec = specs[members[0]]
        classifiers = fit_selected(part, dict(spec.hyper), largest) if spec.select == "val" else fit_all(part, largest)
        _synchronise(device)
        seconds = (time.perf_counter() - started) / len(members)
        shared = {
            "zero_shot_top1": zero_shot,
            "train_seconds": seconds,
            "group_size": len(members),
            "device": str(device),
            "versions": versions(),
        }
        scored_on = test("pre_projection" in part[0][0].needs)
        yield [Result(specs[i], _values(c, episodes[i], scored_on, cache) | shared, c) for i, c in zip(members, classifiers, strict=True)]


def _groups(specs: Sequence[TrainSpec], runs: Sequence, largest: int) -> Iterator[list[int]]:
    """Positions of specs that train together: one group of the optimiser, one way of selecting, at most `largest` runs."""
    for members in group(runs):
        ways = defaultdict(list)
        for i in members:
            ways[specs[i].select, frozenset(dict(specs[i].hyper))].append(i)
        for same in ways.values():
            yield from (same[i : i + largest] for i in range(0, len(same), largest))


def _zero_shot(cache: FeatureCache, drawn: DrawnEpisode, test: tuple) -> float | None:
    if cache.text is None:
        return None
    (classifier,) = fit_all([(HEADS["zero-shot"](), drawn.episode)])
    return metrics(classifier.logits(test[0]), test[1])["top1"]


METRICS = ("top1", "top5", "mean_class", "ece", "nll", "ece_t", "nll_t", "temperature")


def _values(classifier: Classifier, drawn: DrawnEpisode, test: tuple, cache: FeatureCache) -> dict:
    """The numbers of one run: scores on test, the temperature from validation, and what identifies them."""
    head, (x, y) = classifier.head, test
    logits = classifier.logits(x)
    diverged = classifier.diverged or not bool(torch.isfinite(logits).all())
    scores = dict.fromkeys(METRICS) if diverged else metrics(logits, y)
    if not diverged and len(drawn.episode.val_index):
        val_x, val_y = validation(head, drawn.episode)
        scores["temperature"] = fit_temperature(classifier.logits(val_x), val_y)
        scores |= {f"{name}_t": value for name, value in calibration(logits / scores["temperature"], y).items()}
    found = {spec.name: getattr(head, spec.name) for spec in fields(head)}
    identity = {"index_hash": drawn.index_hash, "fingerprint": cache.fingerprint, "val_per_class": drawn.val_per_class}
    return dict.fromkeys(METRICS) | scores | {"diverged": diverged, "alpha": found.get("alpha"), "found": found} | identity


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("cliad", "torch", "numpy")}

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
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from cliad.adapters import HEADS
from cliad.adapters.base import Episode, Head, default_of
from cliad.adapters.metrics import calibration, fit_temperature, metrics, reliability
from cliad.adapters.optimise import Classifier, can_stack, inputs, logits_of, require, stack
from cliad.adapters.select import fit_all, fit_selected
from cliad.cache import folder as cache_folder
from cliad.cache.store import FeatureCache
from cliad.pipelines.draw import check_asked
from cliad.pipelines.episode import DrawnEpisode, make_episodes, pick_device, score_rows
from cliad.pipelines.memory import group_size, in_parts


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
    folder: Path | None = None,
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
    """One run: the verb `cliad train`.

    Args:
        folder: the cache folder; None: $CLIAD_CACHE or the user's cache folder.
        dataset, encoder, prompts: which cache; by default the one written last, or the bundled digits.
        head: a name of `cliad heads`; hyper: its hyper-parameters by name, such as {"alpha": 0.2}.
        shots, seed, protocol: the few-shot draw; shots are images per class.
        select: "fixed" hyper-parameters or chosen on "val"; None: the head's published way.
        device: auto, cpu, cuda, cuda:1, mps.
    Returns:
        The result (`.row()`: accuracies as fractions, seconds; `.classifier`) and the cache it is of.
    Raises:
        SpecError, HeadError, DrawError, CacheError: what is wrong and what to do, in one line.
    """
    folder = cache_folder.cache_dir(folder)
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
    free = selects(made, given)
    select = select or ("val" if made.select == "val" and free else "fixed")
    if select not in ("fixed", "val"):
        raise SpecError(f"select is fixed or val; got {select}")
    if select == "val" and not free:
        raise SpecError(f"{head} has nothing left to select on validation; use --select fixed")
    pairs = tuple(sorted((name, getattr(made, name)) for name in given))
    return TrainSpec(cache.dataset, cache.encoder, cache.prompts, head, shots, seed, protocol, select, pairs)


def selects(head: Head, given: Collection[str]) -> bool:
    """Whether validation has something to choose: a field of its space that is not given, or the best moment of training."""
    return bool(set(head.searches()) - set(given)) or head.plan(1, 1).keep == "best"


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


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("cliad", "torch", "numpy")}

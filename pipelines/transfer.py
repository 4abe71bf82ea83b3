"""How a head does elsewhere: on other data sets' caches of the same encoder, and on classes that it never saw."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cliad.adapters import HEADS
from cliad.adapters.base import Episode, Head, HeadError
from cliad.adapters.metrics import metrics, reliability
from cliad.adapters.optimise import Classifier, require
from cliad.adapters.select import fit_all, fit_selected
from cliad.cache.store import FeatureCache
from cliad.pipelines.draw import check_asked
from cliad.pipelines.episode import make_episodes, pick_device, score_rows
from cliad.pipelines.train import Result, SpecError, find_cache, make_head, spec_of, train, versions

SCORES = ("top1", "top5", "mean_class", "ece", "nll", "reliability")


def train_and_transfer(
    *, folder: Path, test: Sequence[str], class_map: Mapping[str, str] = {}, device: str = "auto", **asked
) -> tuple[Result, FeatureCache, list[dict]]:
    """`cliad train --test NAME...`: one run, and its rows on the test splits of other data sets (see `transfer`).

    Raises:
        SpecError: no cache of that name and encoder, other classes for a head that cannot serve them, another encoder.
    """
    result, cache = train(folder=folder, device=device, **asked)
    targets = find_targets(folder, test, cache, asked.get("tell", print))
    return result, cache, [row for target in targets for row in transfer([result], cache, target, pick_device(device), class_map)]


def find_targets(folder: Path, names: Sequence[str], source: FeatureCache, tell: Callable[[str], None]) -> list[FeatureCache]:
    """The caches of other data sets that heads of `source` can be scored on: those of its encoder and prompts.

    Raises:
        SpecError, CacheError: there is none.
    """
    return [find_cache(folder, name, source.encoder, source.prompts, tell) for name in names]


def transfer(
    results: Sequence[Result], source: FeatureCache, target: FeatureCache, device: torch.device, class_map: Mapping[str, str] = {}
) -> list[dict]:
    """The rows of runs of one head on the test split of another cache.

    A row is the run's own, but for: test_dataset (what it was scored on; `dataset` stays what it was trained on), the scores,
    zero_shot_top1 of that data set, test_fingerprint, n_class of the test. A temperature belongs to the data set that it was fitted
    on: ece_t and nll_t are null. Classes are matched by name (`class_map`: name there -> name in the source): logits of the classes
    that the target has are compared, so that a target with fewer classes is fine. Where a name is unknown, a head without
    parameters per class is given the target's own texts.

    Raises:
        SpecError, CacheError: see `check_target`.
    """
    head = results[0].classifier.head
    check_target(type(head), source, target, class_map)
    x, y = score_rows(target, "test", device, pre_projection="pre_projection" in head.needs)
    columns = _columns(source, target, class_map)
    shared = {"zero_shot_top1": _zero_shot_top1(target, device), "test_fingerprint": target.fingerprint}
    shared |= {"test_dataset": target.dataset, "test_n_class": len(target.classnames)}
    text = torch.from_numpy(target.text).to(device) if None in columns else None
    rows = []
    for result in results:
        classifier = result.classifier
        logits = classifier.rebind(text).logits(x) if None in columns else classifier.logits(x)[:, columns]
        diverged = result.values["diverged"] or not bool(torch.isfinite(logits).all())
        scores = dict.fromkeys(SCORES) if diverged else metrics(logits, y) | {"reliability": reliability(logits, y)}
        rows.append(result.row() | dict.fromkeys(("ece_t", "nll_t")) | scores | {"diverged": diverged} | shared)
    return rows


def check_target(head: type[Head], source: FeatureCache, target: FeatureCache, class_map: Mapping[str, str] = {}) -> None:
    """See to it that a head trained on `source` can be scored on the test split of `target`; needs no trained head.

    Raises:
        SpecError: another encoder, features that the head needs are missing, or classes that it cannot serve.
        CacheError: there is no test split.
    """
    if source.attrs["encoder_id"] != target.attrs["encoder_id"]:
        raise SpecError(f"{target.dataset} was encoded by {target.encoder}, the head was trained on features of {source.encoder}")
    target.split("test")
    if "pre_projection" in head.needs and target.column("test", "pre_projection") is None:
        raise SpecError(f"{head.__name__} needs features before the projection; extract {target.dataset} with --pre-projection")
    missing = [name for name, at in zip(target.classnames, _columns(source, target, class_map), strict=True) if at is None]
    if missing and head.per_class:
        few = f"{target.dataset} has {len(missing)} classes that {source.dataset} lacks, such as '{missing[0]}'"
        raise SpecError(f"{few}; {head.__name__} serves only the classes that it was trained on; {_able()} serve others")
    if missing and target.text is None:
        raise SpecError(f"{target.dataset} has no text features for its classes; import or extract it with text")


def _able() -> str:
    return ", ".join(name for name, head in HEADS.items() if not head.per_class)


def _columns(source: FeatureCache, target: FeatureCache, class_map: Mapping[str, str]) -> list[int | None]:
    """For each class of the target the source's class of that name, None where there is none.

    Several classes of one name (ImageNet has two called missile) are matched in their order.
    """
    places, taken, columns = defaultdict(list), Counter(), []
    for i, name in enumerate(source.classnames):
        places[name].append(i)
    for name in (class_map.get(name, name) for name in target.classnames):
        columns.append(places[name][min(taken[name], len(places[name]) - 1)] if name in places else None)
        taken[name] += 1
    return columns


def _zero_shot_top1(cache: FeatureCache, device: torch.device) -> float | None:
    if cache.text is None:
        return None
    x, y = score_rows(cache, "test", device)
    return metrics(_zero_shot(torch.from_numpy(cache.text).to(device), cache.logit_scale)(x), y)["top1"]


def _zero_shot(text: Tensor, logit_scale: float) -> Callable[[Tensor], Tensor]:
    head = HEADS["zero-shot"]()
    return Classifier(head, {}, {"text": text[:0]}, logit_scale).rebind(text).logits


def base_to_new(
    *,
    folder: Path,
    dataset: str | None = None,
    encoder: str | None = None,
    prompts: str | None = None,
    head: str = "clip-adapter",
    shots: int = 16,
    seeds: Sequence[int] = (1,),
    protocol: str = "coop",
    select: str | None = None,
    hyper: Mapping[str, object] = {},
    device: str = "auto",
    tell: Callable[[str], None] = lambda message: None,
) -> list[dict]:
    """Train on the first ceil(n_class / 2) classes by label, score on both halves: a row per seed.

    The few-shot draw is that of all classes, cut afterwards, as CoOp does it; each half is scored among its own classes only. A row
    is the spec's words, task "base-to-new", and base_top1, new_top1, their harmonic mean `harmonic`, zero_shot_base_top1,
    zero_shot_new_top1, zero_shot_harmonic, n_base, n_new; top1 is null, so that it is never averaged with rows over all classes.

    Raises:
        SpecError: fewer than two classes, or no text for them.
        HeadError: the head has parameters for each class, which new ones lack.
    """
    made, where = make_head(head, hyper), pick_device(device)
    if made.per_class:
        raise HeadError(f"{head} has parameters for each of its classes and cannot serve new ones; base-to-new takes {_able()}")
    check_asked(shots, protocol)
    cache = find_cache(folder, dataset, encoder, prompts, tell)
    if cache.text is None or len(cache.classnames) < 2:
        raise SpecError(f"base-to-new needs text features of two classes or more; {cache.dataset} lacks them")
    n_base = -(-len(cache.classnames) // 2)
    specs = [spec_of(cache, head, made, shots=shots, seed=seed, protocol=protocol, select=select, given=hyper) for seed in seeds]
    drawn = make_episodes(cache, [(shots, seed, protocol) for seed in seeds], where, needs=made.needs | made.likes)
    text = drawn[0].episode.text
    base_text, new_text = text[:, :n_base], text[:, n_base:]
    runs = [(made, base_half(d.episode, n_base, base_text)) for d in drawn]
    require(*runs[0])
    started = time.perf_counter()
    fitted = fit_selected(runs, dict(specs[0].hyper)) if specs[0].select == "val" else fit_all(runs)
    seconds = (time.perf_counter() - started) / len(runs)
    x, y = score_rows(cache, "test", where, pre_projection="pre_projection" in made.needs)
    halves = (x[y < n_base], y[y < n_base]), (x[y >= n_base], y[y >= n_base] - n_base)
    plain = [rows[:, : cache.dim] for rows, _ in halves]
    both = zip(plain, (base_text, new_text), halves, strict=True)
    zero = [metrics(_zero_shot(t, cache.logit_scale)(rows), y)["top1"] for rows, t, (_, y) in both]
    shared = {"task": "base-to-new", "top1": None, "n_base": n_base, "n_new": text.shape[1] - n_base, "train_seconds": seconds}
    shared |= dict(zip(("zero_shot_base_top1", "zero_shot_new_top1"), zero, strict=True)) | {"zero_shot_harmonic": harmonic(*zero)}
    shared |= {"fingerprint": cache.fingerprint, "group_size": len(runs), "device": str(where), "versions": versions(), "run": None}
    return [
        spec.json() | _half_scores(classifier, halves, new_text) | shared | {"index_hash": d.index_hash, "val_per_class": d.val_per_class}
        for spec, classifier, d in zip(specs, fitted, drawn, strict=True)
    ]


def base_half(episode: Episode, n_base: int, text: Tensor) -> Episode:
    """The episode's items of the labels under n_base, and their text."""
    support, val = episode.y < n_base, episode.val_y < n_base
    items = {"index": episode.index[support], "y": episode.y[support], "val_index": episode.val_index[val], "val_y": episode.val_y[val]}
    return replace(episode, **items, text=text, n_class=n_base)


def _half_scores(classifier: Classifier, halves: Sequence, new_text: Tensor) -> dict:
    logits = [c.logits(x) for c, (x, _) in zip((classifier, classifier.rebind(new_text)), halves, strict=True)]
    diverged = classifier.diverged or not all(bool(torch.isfinite(part).all()) for part in logits)
    tops = [None if diverged else metrics(part, y)["top1"] for part, (_, y) in zip(logits, halves, strict=True)]
    found = {"diverged": diverged, "alpha": getattr(classifier.head, "alpha", None)}
    return dict(zip(("base_top1", "new_top1"), tops, strict=True)) | {"harmonic": harmonic(*tops)} | found


def harmonic(a: float | None, b: float | None) -> float | None:
    """The harmonic mean of two accuracies, 0 where one is 0."""
    return None if a is None or b is None else 2 * a * b / (a + b) if a + b else 0.0

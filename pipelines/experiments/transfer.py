"""How a head does on other data sets' caches of the same encoder."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cliad.adapters import HEADS
from cliad.adapters.core.classifier import Classifier
from cliad.adapters.core.head import Head
from cliad.adapters.core.metrics import metrics, reliability
from cliad.cache.file.read import FeatureCache
from cliad.pipelines.experiments.episode import pick_device, score_rows
from cliad.pipelines.experiments.find_cache import find_cache
from cliad.pipelines.experiments.score import Result
from cliad.pipelines.experiments.spec import SpecError
from cliad.pipelines.experiments.train import train

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

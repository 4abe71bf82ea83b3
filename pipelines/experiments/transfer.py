"""How a head does on other data sets' caches of the same encoder."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from cliad.adapters import HEADS
from cliad.adapters.core.episode import Support
from cliad.adapters.core.head import Head
from cliad.cache.file.read import FeatureCache
from cliad.cache.folder import cache_dir
from cliad.pipelines.experiments.episode import class_texts, pick_device, score_rows
from cliad.pipelines.experiments.find_cache import CacheChoice, find_cache
from cliad.pipelines.experiments.score import Result, Scores, is_finite, score, zero_shot_top1
from cliad.pipelines.experiments.spec import SpecError
from cliad.pipelines.tower import tower_of


def score_elsewhere(
    result: Result,
    source: FeatureCache,
    names: Sequence[str],
    *,
    folder: Path | None = None,
    device: str = "auto",
    log: Callable[[str], None] = lambda message: None,
) -> list[dict]:
    """`cliad train --test NAME...`: the rows of one run on the test splits of other data sets.

    Raises:
        SpecError: no cache of that name and encoder, or classes that the head cannot serve.
        CacheError: a cache found is damaged or has no test split.
    """
    rows = []
    for target in find_targets(cache_dir(folder), names, source, log):
        rows += transfer([result], source, target, pick_device(device))
    return rows


def find_targets(
    folder: Path, names: Sequence[str], source: FeatureCache, log: Callable[[str], None]
) -> list[FeatureCache]:
    """The caches of other data sets that heads of `source` can be scored on.

    They are of its encoder and prompts.

    Raises:
        SpecError, CacheError: there is none.
    """
    choices = [CacheChoice(folder, name, source.encoder, source.prompts) for name in names]
    return [find_cache(choice, log) for choice in choices]


def transfer(
    results: Sequence[Result], source: FeatureCache, target: FeatureCache, device: torch.device
) -> list[dict]:
    """The rows of runs of one head on the test split of another cache.

    A row is the run's own, except for: `test_dataset` (what it was scored on; `dataset` stays what
    it was trained on), the scores, `zero_shot_top1` of that data set, `test_fingerprint` and
    `test_n_class`. A temperature belongs to the data set that it was fitted on, so `ece_t` and
    `nll_t` are null.

    Classes are matched by name: logits of the classes that the target has are compared, so that a
    target with fewer classes is fine. Where a name is unknown, a head that serves new
    classes by their texts is given the target's own.

    Raises:
        SpecError, CacheError: see `check_target`; or the runs are transductive.
    """
    if results[0].spec.transductive:
        raise SpecError(
            "a transductive run is scored on its own test split only; leave out other data sets"
        )
    head = results[0].classifier.head
    check_target(type(head), source, target)
    test = score_rows(target, "test", device, pre_projection="pre_projection" in head.needs)
    columns = _columns(source, target)
    # One unknown class is enough: then all classes are served by their texts, as one softmax.
    of_target = _classes_of(target, head, device) if None in columns else None
    about_target = {
        "zero_shot_top1": zero_shot_top1(target, score_rows(target, "test", device)),
        "test_fingerprint": target.fingerprint,
        "test_dataset": target.dataset,
        "test_n_class": len(target.classnames),
    }
    rows = []
    for result in results:
        if of_target is None:
            logits = result.classifier.logits(test.x)[:, columns]
        else:
            logits = result.classifier.rebind(of_target).logits(test.x)
        # A head can overflow on other data alone.
        diverged = result.test.diverged or not is_finite(logits)
        scores = Scores() if diverged else score(logits, test.y)
        changed = {**scores.json(), "ece_t": None, "nll_t": None, "diverged": diverged}
        rows.append({**result.row(), **changed, **about_target})
    return rows


def _classes_of(target: FeatureCache, head: Head, device: torch.device) -> Support | None:
    """What serves the classes of a target to a head that was not trained on them."""
    text = class_texts(target, device)
    if text is None:
        return None
    tower = tower_of(target, device) if "tower" in head.needs else None
    return Support.of_text(text, target.logit_scale, tuple(target.classnames), tower)


def check_target(head: type[Head], source: FeatureCache, target: FeatureCache) -> None:
    """Check that a head trained on `source` can be scored on `target`; needs no trained head.

    Raises:
        SpecError: another encoder, features that the head needs are missing, or classes that it
            cannot serve.
        CacheError: there is no test split.
    """
    if source.attrs["encoder_id"] != target.attrs["encoder_id"]:
        raise SpecError(
            f"{target.dataset} was encoded by {target.encoder}, the head was trained on"
            f" features of {source.encoder}"
        )
    target.split("test")  # raises where there is none
    if "pre_projection" in head.needs and target.column("test", "pre_projection") is None:
        raise SpecError(
            f"{head.__name__} needs features before the projection; extract {target.dataset}"
            " with --pre-projection"
        )
    columns = _columns(source, target)
    missing = [
        name for name, column in zip(target.classnames, columns, strict=True) if column is None
    ]
    if missing and head.new_classes != "text":
        reason = "serves only the classes that it was trained on"
        if head.new_classes == "support":
            reason = "needs images of the classes that it serves"
        raise SpecError(
            f"{target.dataset} has {len(missing)} classes that {source.dataset} lacks,"
            f" such as '{missing[0]}'; {head.__name__} {reason};"
            f" {heads_for_new_classes('text')} serve others"
        )
    if missing and target.text is None:
        raise SpecError(
            f"{target.dataset} has no text features for its classes; import or extract it with text"
        )


def heads_for_new_classes(*by: str) -> str:
    """The names of the heads that serve new classes by one of these, see `Head.new_classes`."""
    return ", ".join(name for name, head in HEADS.items() if head.new_classes in by)


def _columns(source: FeatureCache, target: FeatureCache) -> list[int | None]:
    """For each class of the target, the source's class of that name; None where there is none.

    Several classes of one name (ImageNet has two called missile) are matched in their order.
    """
    places = defaultdict(list)
    for label, name in enumerate(source.classnames):
        places[name].append(label)
    used: Counter[str] = Counter()
    columns: list[int | None] = []
    for name in target.classnames:
        if name not in places:
            columns.append(None)
            continue
        # More classes of a name than the source has share its last one.
        last = len(places[name]) - 1
        columns.append(places[name][min(used[name], last)])
        used[name] += 1
    return columns

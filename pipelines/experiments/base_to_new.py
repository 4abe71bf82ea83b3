"""How a head does on classes that it never saw: base-to-new generalisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from cliad.adapters.core.classifier import Classifier, support_of
from cliad.adapters.core.episode import Episode, Support, of_classes, without_validation
from cliad.adapters.core.fit import Run, require
from cliad.adapters.core.head import Head, HeadError
from cliad.adapters.core.metrics import metrics
from cliad.adapters.core.progress import Steps, silent, steps_go_to
from cliad.adapters.core.rows import WideRows
from cliad.adapters.core.select import fit_all
from cliad.adapters.prototype import Prototype
from cliad.cache.equal_texts import note_equal_texts
from cliad.cache.file.read import FeatureCache
from cliad.cache.folder import cache_dir
from cliad.pipelines.experiments.episode import (
    LabelledRows,
    class_texts,
    make_episodes,
    pick_device,
    score_rows,
)
from cliad.pipelines.experiments.find_cache import CacheChoice, find_cache
from cliad.pipelines.experiments.memory import check_size
from cliad.pipelines.experiments.run import fit_timed, request_of
from cliad.pipelines.experiments.score import is_finite, text_top1, versions
from cliad.pipelines.experiments.spec import SpecError, TrainSpec, make_head, spec_of
from cliad.pipelines.experiments.transfer import heads_for_new_classes
from cliad.pipelines.fewshot.draw import check_request

# The words of a row for the head `prototype`, of a head that has no images of the new classes.
NO_PROTOTYPE = {
    "prototype_base_top1": None,
    "prototype_new_top1": None,
    "prototype_harmonic": None,
}


@dataclass(frozen=True, eq=False)
class Half:
    """Half of a data set's classes: their texts (n_template, n_class, dim) and their test rows.

    Labels are counted from 0 within the half. `plain` are the rows without what stands behind the
    features.
    """

    text: Tensor  # (n_template, n_class of the half, dim), raw
    rows: LabelledRows  # x as the head takes it, (n, dim) or wide
    plain: LabelledRows  # x (n, dim): what zero-shot takes

    @classmethod
    def cut(cls, test: LabelledRows, text: Tensor, labels: range) -> Half:
        """The half of the classes with these labels."""
        inside = ((test.y >= labels.start) & (test.y < labels.stop)).nonzero()[:, 0]
        x = test.x.take(inside) if isinstance(test.x, WideRows) else test.x[inside]
        rows = LabelledRows(x, test.y[inside] - labels.start)
        of_half = text[:, labels.start : labels.stop]
        return cls(of_half, rows, LabelledRows(rows.features, rows.y))


def base_to_new(
    *,
    folder: Path | None = None,
    dataset: str | None = None,
    encoder: str | None = None,
    prompts: str | None = None,
    head: str = "clip-adapter",
    hyper: Mapping[str, object] = {},
    shots: int = 16,
    seeds: Sequence[int] = (1,),
    protocol: str = "coop",
    select: str | None = None,
    device: str = "auto",
    log: Callable[[str], None] = lambda message: None,
    steps: Steps = silent,
) -> list[dict]:
    """Train on the first ceil(n_class / 2) classes by label, score on both halves: a row per seed.

    The few-shot draw is that of all classes, cut afterwards, as CoOp does it; each half is scored
    among its own classes only. A row is the spec's words, task "base-to-new", and `base_top1`,
    `new_top1`, their harmonic mean `harmonic`, `zero_shot_base_top1`, `zero_shot_new_top1`,
    `zero_shot_harmonic`, `n_base`, `n_new`, and `new_shots`: how many labelled images of each new
    class the head has, `shots` or 0. `top1` is null, so that it is never averaged with rows over
    all classes. Beside a head that has images of the new classes, `prototype_base_top1`,
    `prototype_new_top1` and `prototype_harmonic` are what the head `prototype` makes of the same
    images without training; else they are null.

    Args:
        folder, dataset, encoder, prompts, head, hyper, shots, protocol, select, device, log,
            steps: as `train`.
        seeds: a run for each.

    Raises:
        SpecError: fewer than two classes, or no text for them.
        HeadError: the head has parameters for each class, which new ones lack.
    """
    untrained = make_head(head, hyper)
    torch_device = pick_device(device)
    if untrained.new_classes == "no":
        raise HeadError(
            f"{head} has parameters for each of its classes and cannot serve new ones;"
            f" base-to-new takes {heads_for_new_classes('text', 'support')}"
        )
    for seed in seeds:
        check_request(shots, protocol, seed)
    cache = find_cache(CacheChoice(cache_dir(folder), dataset, encoder, prompts), log)
    note_equal_texts(cache.text, cache.classnames, cache.encoder, log)
    text = class_texts(cache, torch_device)
    if text is None or len(cache.classnames) < 2:
        raise SpecError(
            f"base-to-new needs text features of two classes or more; {cache.dataset} lacks them"
        )
    check_size(untrained, cache, shots)
    specs = [
        spec_of(
            cache, untrained, given=hyper, shots=shots, seed=seed, protocol=protocol, select=select
        )
        for seed in seeds
    ]
    with steps_go_to(steps):
        return _rows(cache, text, specs, torch_device)


def _rows(
    cache: FeatureCache, text: Tensor, specs: Sequence[TrainSpec], device: torch.device
) -> list[dict]:
    """The rows of runs of one head that differ in their seed only.

    text (n_template, n_class, dim) raw: the class texts of the cache.
    """
    head = specs[0].head
    n_class = len(cache.classnames)
    # Rounded up: with an odd number of classes the base half has one more, as in CoOp's code.
    n_base = -(-n_class // 2)
    # The draw is that of all classes, so that a base class has the same shots as in a plain run.
    drawn = make_episodes(
        cache, [request_of(spec) for spec in specs], device, needs=head.needs | head.optional_inputs
    )
    test = score_rows(cache, "test", device, columns=head.columns())
    base = Half.cut(test, text, range(n_base))
    new = Half.cut(test, text, range(n_base, n_class))
    runs = [Run(head, base_half(one.episode, n_base, base.text)) for one in drawn]
    require(head, runs[0].episode)
    fitted, timing = fit_timed(runs, specs[0], device)
    has_images = head.new_classes == "support"
    shared = {
        **_words_of_halves(cache, base, new),
        "train_seconds": timing.train_seconds,
        "group_size": timing.group_size,
        "device": timing.device,
        # Labelled images that the head has of each new class; others have their texts alone.
        "new_shots": specs[0].shots if has_images else 0,
    }
    rows = []
    for spec, classifier, run, one in zip(specs, fitted, runs, drawn, strict=True):
        of_draw = {"index_hash": one.index_hash, "val_per_class": one.val_per_class}
        new_episode = new_half(one.episode, n_base, new.text)
        scores = _score_halves(classifier, base, new, _support_of_new(head, new_episode))
        peer = _prototype(run.episode, base, new, new_episode) if has_images else NO_PROTOTYPE
        rows.append({**spec.json(), **scores, **peer, **shared, **of_draw})
    return rows


def _words_of_halves(cache: FeatureCache, base: Half, new: Half) -> dict:
    """The words of a row that no head changes."""
    zero_shot_base = text_top1(base.text, cache.logit_scale, base.plain)
    zero_shot_new = text_top1(new.text, cache.logit_scale, new.plain)
    return {
        "task": "base-to-new",
        "top1": None,
        "n_base": base.text.shape[1],
        "n_new": new.text.shape[1],
        "zero_shot_base_top1": zero_shot_base,
        "zero_shot_new_top1": zero_shot_new,
        "zero_shot_harmonic": harmonic(zero_shot_base, zero_shot_new),
        "fingerprint": cache.fingerprint,
        "versions": versions(),
        "run": None,
    }


def base_half(episode: Episode, n_base: int, text: Tensor) -> Episode:
    """The episode's items of the labels under n_base, and their text."""
    return of_classes(episode, torch.arange(n_base), text)


def new_half(episode: Episode, n_base: int, text: Tensor) -> Episode:
    """The episode's support of the labels from n_base on, counted from 0, and their text.

    Without validation: nothing is chosen on new classes.
    """
    new = torch.arange(n_base, episode.n_class)
    return without_validation(of_classes(episode, new, text))


def _support_of_new(head: Head, episode: Episode) -> Support:
    """What the new classes are served by: their text, and their drawn images where the head asks.

    episode: of the new classes.
    """
    if head.new_classes == "text":
        text = episode.need_text()
        return Support.of_text(text, episode.logit_scale, episode.names, episode.tower)
    support, _ = support_of(head, [episode])
    return support


def _prototype(episode: Episode, base: Half, new: Half, new_episode: Episode) -> dict:
    """What the head `prototype`, which trains nothing, does on the same halves.

    It is what a head that has images of the new classes is to be compared with; heads that have
    none cannot know as much.
    """
    head = Prototype()
    (classifier,) = fit_all([Run(head, episode)])
    plain_base = replace(base, rows=base.plain)
    plain_new = replace(new, rows=new.plain)
    support = _support_of_new(head, new_episode)
    scores = _score_halves(classifier, plain_base, plain_new, support)
    return {name: scores[name.removeprefix("prototype_")] for name in NO_PROTOTYPE}


def _score_halves(classifier: Classifier, base: Half, new: Half, support: Support) -> dict:
    """The words of a row for both halves; accuracies are None where training diverged.

    support: of the new classes.
    """
    head = classifier.head
    base_logits = classifier.logits(base.rows.x)
    new_logits = classifier.rebind(support).logits(new.rows.x)
    finite = is_finite(base_logits) and is_finite(new_logits)
    diverged = classifier.diverged or not finite
    base_top1 = None if diverged else metrics(base_logits, base.rows.y)["top1"]
    new_top1 = None if diverged else metrics(new_logits, new.rows.y)["top1"]
    return {
        "base_top1": base_top1,
        "new_top1": new_top1,
        "harmonic": harmonic(base_top1, new_top1),
        "diverged": diverged,
        "alpha": getattr(head, "alpha", None),
        # Every hyper-parameter of the fitted head, chosen ones included.
        "found": {spec.name: getattr(head, spec.name) for spec in fields(head)},
    }


def harmonic(a: float | None, b: float | None) -> float | None:
    """The harmonic mean of two accuracies, 0 where one is 0."""
    if a is None or b is None:
        return None
    # Both accuracies 0: the harmonic mean's limit, where the formula would divide by 0.
    if a + b == 0:
        return 0.0
    return 2 * a * b / (a + b)

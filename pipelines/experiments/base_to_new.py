"""How a head does on classes that it never saw: base-to-new generalisation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cliad.adapters.core.classifier import Classifier
from cliad.adapters.core.episode import Episode
from cliad.adapters.core.fit import require
from cliad.adapters.core.head import HeadError
from cliad.adapters.core.metrics import metrics
from cliad.adapters.core.select import fit_all, fit_selected
from cliad.pipelines.experiments.episode import make_episodes, pick_device, score_rows
from cliad.pipelines.experiments.find_cache import find_cache
from cliad.pipelines.experiments.score import versions
from cliad.pipelines.experiments.spec import SpecError, make_head, spec_of
from cliad.pipelines.experiments.transfer import _able, _zero_shot
from cliad.pipelines.fewshot.draw import check_asked


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

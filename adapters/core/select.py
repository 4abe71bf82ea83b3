"""Choosing hyper-parameters on the episode's validation items, all candidates trained in one batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from cliad.adapters.core.classifier import Classifier, hypers, validation
from cliad.adapters.core.episode import Episode
from cliad.adapters.core.fit import Run, fit, group
from cliad.adapters.core.head import Head, HeadError
from cliad.adapters.core.ops import unit

SAME_LOSS = 1e-3  # nats per item
SWEEP_FLOATS = 2**26  # the most logits held at once while fitted candidates are compared


def fit_all(
    runs: Sequence[Run], largest: int = 10**9, *, validate: bool = False
) -> list[Classifier]:
    """Fit any runs, group by group, in batches of at most `largest`; the order stays. `validate`: see `fit`."""
    fitted: dict[int, Classifier] = {}
    for members in group(runs):
        for start in range(0, len(members), largest):
            part = members[start : start + largest]
            fitted |= zip(part, fit([runs[i] for i in part], validate=validate), strict=True)
    return [fitted[i] for i in range(len(runs))]


@dataclass(frozen=True)
class _Score:
    """How good a candidate is: more right first, then less loss.

    Losses that differ by less than SAME_LOSS are equal, and the first candidate stays: otherwise the last bit of a sum, and so
    the number of threads, would choose.
    """

    right: float
    loss: float

    def beats(self, other: _Score | None) -> bool:
        if other is None or self.right != other.right:
            return other is None or self.right > other.right
        return self.loss < other.loss - SAME_LOSS


def fit_selected(
    runs: Sequence[Run], given: Collection[str] = (), largest: int = 10**9
) -> list[Classifier]:
    """Fit runs with their hyper-parameters chosen on each episode's own validation items.

    Fields of the head's space that are `given` keep their value. First the fields that training depends on are searched, each
    candidate trained; then, with the parameters found, those in `tuned`.

    Raises:
        HeadError: an episode without validation items, or a head with nothing to search.
    """
    head = runs[0][0]
    free = {name: values for name, values in head.searches().items() if name not in given}
    for _, episode in runs:
        if not len(episode.val_index):
            raise HeadError("there are no validation images to select on; use --select fixed")
    grid = {name: values for name, values in free.items() if name not in head.tuned}
    chosen = _best_trained(runs, grid, largest)
    if grid and head.refine:
        chosen = _bisect(runs, chosen, next(iter(grid)), head.refine, largest)
    tuned = {name: values for name, values in free.items() if name in head.tuned}
    return [
        _tune(classifier, episode, tuned)
        for (classifier, _), (_, episode) in zip(chosen, runs, strict=True)
    ]


def _best_trained(
    runs: Sequence[Run], grid: dict[str, tuple], largest: int
) -> list[tuple[Classifier, _Score]]:
    """The best candidate of each run, over the product of `grid`."""
    combos = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    trained = fit_all(
        [(replace(head, **combo), episode) for head, episode in runs for combo in combos],
        largest,
        validate=True,
    )
    per_run = [trained[i : i + len(combos)] for i in range(0, len(trained), len(combos))]
    return [
        _first_best(candidates, episode)
        for candidates, (_, episode) in zip(per_run, runs, strict=True)
    ]


def _first_best(candidates: Sequence[Classifier], episode: Episode) -> tuple[Classifier, _Score]:
    best, best_score = None, None
    for classifier in candidates:
        if (score := _score(classifier, episode)).beats(best_score):
            best, best_score = classifier, score
    return best, best_score


def _score(classifier: Classifier, episode: Episode) -> _Score:
    x, y = validation(classifier.head, episode)
    logits = classifier.logits(x)
    right, loss = (logits.argmax(dim=-1) == y).sum().item(), F.cross_entropy(logits, y).item()
    return (
        _Score(-1.0, math.inf)
        if classifier.diverged or not math.isfinite(loss)
        else _Score(right, loss)
    )


def _bisect(
    runs: Sequence[Run],
    chosen: list[tuple[Classifier, _Score]],
    name: str,
    steps: int,
    largest: int,
) -> list[tuple[Classifier, _Score]]:
    """CoOp's search around the best value: keep the better end of [value / 10, 10 value], move the other to the log midpoint."""
    at = lambda values: fit_all(
        [
            (replace(head, **{name: value}), episode)
            for (head, episode), value in zip(runs, values, strict=True)
        ],
        largest,
        validate=True,
    )
    scored = lambda fitted: [
        (classifier, _score(classifier, episode))
        for classifier, (_, episode) in zip(fitted, runs, strict=True)
    ]
    middle = [getattr(classifier.head, name) for classifier, _ in chosen]
    left, right = (scored(at([value * factor for value in middle])) for factor in (0.1, 10))
    for _ in range(steps):
        to_left = [not r[1].beats(a[1]) for a, r in zip(left, right, strict=True)]
        ends = [
            (getattr(a[0].head, name), getattr(r[0].head, name))
            for a, r in zip(left, right, strict=True)
        ]
        new = scored(at([math.sqrt(a * r) for a, r in ends]))
        left = [a if keep else fresh for a, fresh, keep in zip(left, new, to_left, strict=True)]
        right = [fresh if keep else r for r, fresh, keep in zip(right, new, to_left, strict=True)]
    best = [r if r[1].beats(a[1]) else a for a, r in zip(left, right, strict=True)]
    return [b if b[1].beats(c[1]) else c for b, c in zip(best, chosen, strict=True)]


def _tune(classifier: Classifier, episode: Episode, space: dict[str, tuple]) -> Classifier:
    """Search the fields that only logits read, with the fitted parameters: candidates lie along the run axis."""
    if not space:
        return classifier
    x, y = validation(classifier.head, episode)
    x = x if "raw" in classifier.head.needs else unit(x)
    heads = [
        replace(classifier.head, **dict(zip(space, values, strict=True)))
        for values in itertools.product(*space.values())
    ]
    rows = max(1, SWEEP_FLOATS // (len(heads) * max(episode.n_class, len(episode.index) // 8)))
    parts = [
        _sweep(classifier, heads, *part) for part in zip(x.split(rows), y.split(rows), strict=True)
    ]
    right, loss = (torch.stack(values).sum(dim=0) for values in zip(*parts, strict=True))
    best = (
        torch.where(right == right.max(), loss.nan_to_num(nan=math.inf), math.inf).argmin().item()
    )
    return replace(classifier, head=heads[best])


@torch.no_grad()
def _sweep(
    classifier: Classifier, heads: Sequence[Head], x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Right answers (n_head,) and summed loss (n_head,) of a fitted classifier under other heads' hyper-parameters."""
    logits = classifier.head.logits(classifier.p, classifier.c, hypers(heads, x), x[None])
    loss = (
        F.cross_entropy(logits.flatten(0, 1), y.repeat(len(heads)), reduction="none")
        .view(len(heads), -1)
        .sum(dim=1)
    )
    return (logits.argmax(dim=-1) == y).sum(dim=1), loss

"""Choosing hyper-parameters on validation items, all candidates trained in one batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from cliad.adapters.core.classifier import Classifier, rows_for, validation
from cliad.adapters.core.episode import Episode
from cliad.adapters.core.fit import Run, fit, group
from cliad.adapters.core.head import Head, HeadError, hypers
from cliad.adapters.core.ops import on_host

SAME_LOSS = 1e-3  # nats per item, of candidates that were trained
ROUNDING = 1e-5  # nats per item: far above what other threads or other company change in a sum
SWEEP_FLOATS = 2**26  # the most numbers held at once while fitted candidates are compared
LEAST_ROWS = 64  # but not fewer rows at once than make an efficient product
WITHOUT_LIMIT = 10**9  # runs in one batch


def fit_all(
    runs: Sequence[Run], largest: int = WITHOUT_LIMIT, *, validate: bool = False
) -> list[Classifier]:
    """Fit any runs, group by group, in batches of at most `largest`; the order stays.

    validate: see `fit`.
    """
    fitted: dict[int, Classifier] = {}
    for positions in group(runs):
        for start in range(0, len(positions), largest):
            part = positions[start : start + largest]
            classifiers = fit([runs[position] for position in part], validate=validate)
            fitted.update(zip(part, classifiers, strict=True))
    return [fitted[position] for position in range(len(runs))]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A fitted classifier and how it does on validation.

    right: items that it classifies rightly. loss: its mean cross-entropy in nats.
    A classifier that diverged, or whose loss is not finite, has right -1 and loss infinity.
    """

    classifier: Classifier
    right: float
    loss: float

    def beats(self, other: Candidate) -> bool:
        """More right first, then less loss.

        Losses that differ by less than SAME_LOSS are equal: otherwise the last bit of a sum, and so
        the number of threads, would choose.
        """
        if self.right != other.right:
            return self.right > other.right
        return self.loss < other.loss - SAME_LOSS


def fit_selected(
    runs: Sequence[Run], given: Collection[str] = (), largest: int = WITHOUT_LIMIT
) -> list[Classifier]:
    """Fit runs with their hyper-parameters chosen on each episode's own validation items.

    Fields of the head's space that are `given` keep their value. First the fields that training
    depends on are searched, each candidate trained; then, with the parameters found, those in
    `tuned`.

    Raises:
        HeadError: an episode without validation items.
    """
    for _, episode in runs:
        if not len(episode.val_index):
            raise HeadError("there are no validation images to select on; use --select fixed")
    head, _ = runs[0]
    free = {name: values for name, values in head.searches().items() if name not in given}
    trained = {name: values for name, values in free.items() if name not in head.tuned}
    tuned = {name: values for name, values in free.items() if name in head.tuned}
    chosen = _best_trained(runs, trained, largest)
    if trained and head.refine:
        name = next(iter(trained))  # a space that is refined has one field
        chosen = _bisect(runs, chosen, name, head.refine, largest)
    if not tuned:
        return [candidate.classifier for candidate in chosen]
    return [
        _tune(candidate.classifier, episode, tuned)
        for candidate, (_, episode) in zip(chosen, runs, strict=True)
    ]


def _heads(head: Head, space: Mapping[str, Sequence]) -> list[Head]:
    """The head with each combination of the values of `space`; of an empty space, itself."""
    heads = []
    for values in itertools.product(*space.values()):
        combination = dict(zip(space, values, strict=True))
        heads.append(replace(head, **combination))
    return heads


def _best_trained(
    runs: Sequence[Run], space: Mapping[str, Sequence], largest: int
) -> list[Candidate]:
    """The best candidate of each run, over the product of `space`; all runs train together."""
    searched: list[Run] = []
    for head, episode in runs:
        searched += [Run(candidate, episode) for candidate in _heads(head, space)]
    fitted = fit_all(searched, largest, validate=True)
    n_candidate = len(fitted) // len(runs)
    best = []
    for number, (_, episode) in enumerate(runs):
        start = number * n_candidate
        best.append(_first_best(fitted[start : start + n_candidate], episode))
    return best


def _first_best(classifiers: Sequence[Classifier], episode: Episode) -> Candidate:
    """The best of a run's classifiers; of equally good ones the first."""
    best = _candidate(classifiers[0], episode)
    for classifier in classifiers[1:]:
        candidate = _candidate(classifier, episode)
        if candidate.beats(best):
            best = candidate
    return best


def _candidate(classifier: Classifier, episode: Episode) -> Candidate:
    """A classifier with its score on the episode's validation items."""
    x, y = validation(classifier.head, episode)
    logits = classifier.logits(x)  # (n_val, n_class)
    n_right = (logits.argmax(dim=-1) == y).sum()
    # All that is asked of the device at once: each question waits for all work before it.
    right, loss, failed = on_host(
        torch.stack(
            [
                n_right.to(logits),
                F.cross_entropy(logits, y),
                classifier.failed.to(logits),
            ]
        )
    )
    if failed or not math.isfinite(loss):
        return Candidate(classifier, right=-1.0, loss=math.inf)
    return Candidate(classifier, right=right, loss=loss)


def _bisect(
    runs: Sequence[Run], chosen: Sequence[Candidate], name: str, steps: int, largest: int
) -> list[Candidate]:
    """CoOp's search around each run's best value: bisection of [value / 10, 10 value] in the log.

    Each step keeps the better end, and moves the other one to the middle of the exponents. The
    value that the search began with stays where no end beats it. All runs step side by side.
    """

    def fit_values(values: Sequence[float]) -> list[Candidate]:
        """Each run fitted with its own value of `name`."""
        changed = []
        for (head, episode), value in zip(runs, values, strict=True):
            changed.append(Run(replace(head, **{name: value}), episode))
        fitted = fit_all(changed, largest, validate=True)
        return [_candidate(one, run.episode) for one, run in zip(fitted, changed, strict=True)]

    def value_of(candidate: Candidate) -> float:
        return getattr(candidate.classifier.head, name)

    low = fit_values([value_of(candidate) / 10 for candidate in chosen])
    high = fit_values([value_of(candidate) * 10 for candidate in chosen])
    for _ in range(steps):
        middles = []
        for run in range(len(runs)):
            product = value_of(low[run]) * value_of(high[run])
            middles.append(math.sqrt(product))  # the middle of the exponents
        for run, middle in enumerate(fit_values(middles)):
            if high[run].beats(low[run]):
                low[run] = middle
            else:
                high[run] = middle
    best = []
    for run, start in enumerate(chosen):
        end = high[run] if high[run].beats(low[run]) else low[run]
        best.append(end if end.beats(start) else start)
    return best


def _tune(classifier: Classifier, episode: Episode, space: Mapping[str, Sequence]) -> Classifier:
    """Search the fields that only logits read: the candidates lie along the run axis.

    The fitted parameters stay. Of equally good candidates the first wins; losses that differ by
    less than ROUNDING are equal, so that the last bit of a sum does not choose.
    """
    heads = _heads(classifier.head, space)
    x, y = validation(classifier.head, episode)
    x = rows_for(classifier.head, x)
    # As many rows at once as memory allows: a row takes n_class logits of each candidate or, with
    # keys, as many cosines as there are support items.
    floats_per_row = len(heads) * episode.n_class + len(episode.index)
    at_once = max(LEAST_ROWS, SWEEP_FLOATS // floats_per_row)
    rights = []
    losses = []
    for x_part, y_part in zip(x.split(at_once), y.split(at_once), strict=True):
        right, loss = _sweep(classifier, heads, x_part, y_part)
        rights.append(right)
        losses.append(loss)
    right = torch.stack(rights).sum(dim=0)  # (n_head,)
    loss = torch.stack(losses).sum(dim=0)  # (n_head,)
    # argmax takes "not a number" for the largest logit, so that it may count as right: a candidate
    # whose loss is not finite comes behind all others
    finite = torch.isfinite(loss)
    right = torch.where(finite, right, -1)
    loss = torch.where(finite & (right == right.max()), loss / len(y), math.inf)
    good = loss <= loss.min() + ROUNDING  # all of them where none is finite
    best = on_host(good.int().argmax())  # the first of them
    return replace(classifier, head=heads[best])


@torch.no_grad()
def _sweep(
    classifier: Classifier, heads: Sequence[Head], x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Right answers (n_head,) and summed loss (n_head,) of a classifier under other heads' fields.

    x (n, dim) as the heads take it, y (n,).
    """
    h = hypers(heads, x)
    right = y.new_zeros(len(heads))
    loss = x.new_zeros(len(heads))
    for part in classifier.head.candidates(classifier.p, classifier.c, h, x[None]):
        logits = part.logits  # (k, n, n_class)
        n_run = len(logits)
        losses = F.cross_entropy(logits.flatten(0, 1), y.repeat(n_run), reduction="none")
        right[part.runs] = (logits.argmax(dim=-1) == y).sum(dim=1)
        loss[part.runs] = losses.view(n_run, -1).sum(dim=1)
    return right, loss

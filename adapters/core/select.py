"""Choosing hyper-parameters, all candidates trained in one batch.

They are judged on validation items, or on items of the support by classifiers of its folds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from cliad.adapters.core.calibrate import Calibration
from cliad.adapters.core.classifier import Classifier, blocks, validation, width_of
from cliad.adapters.core.episode import Episode
from cliad.adapters.core.fit import Run, fit, group
from cliad.adapters.core.folds import (
    FEWEST_CLASSES,
    Judged,
    Trial,
    class_folds,
    classes_with_images,
    item_folds,
    n_fold_of,
)
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
    """A head that was tried, and how it does on items that it was not fitted on.

    judged: the classifier and its items; out of fold one for each fold. right: items that are
    classified rightly, or 0 where losses alone decide. loss: the mean cross-entropy in nats.
    A candidate that diverged, or whose loss is not finite, has right -1 and loss infinity.
    """

    head: Head
    judged: Sequence[Judged]
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


@dataclass(frozen=True, eq=False)
class _Search:
    """How candidates are tried.

    trials: of each episode, by its identity. by_loss: whether losses alone decide. largest: how
    many train at once.
    """

    trials: Mapping[int, Sequence[Trial]]
    by_loss: bool
    largest: int

    def try_out(self, runs: Sequence[Run]) -> list[Candidate]:
        """Fit each run in its trials, all side by side, and judge it."""
        parts = [self.trials[id(episode)] for _, episode in runs]
        tried = []
        for (head, _), trials in zip(runs, parts, strict=True):
            tried += [Run(head, trial.fitted_on) for trial in trials]
        # Out of fold, the step that does best on a fold's items would be chosen on them.
        fitted = iter(fit_all(tried, self.largest, validate=not self.by_loss))
        judged = [[trial.judge(next(fitted)) for trial in trials] for trials in parts]
        scores = _scores(judged)
        candidates = []
        for (head, _), of_run, (right, loss) in zip(runs, judged, scores, strict=True):
            counted = 0.0 if self.by_loss and right >= 0 else right
            candidates.append(Candidate(head, of_run, counted, loss))
        return candidates


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
            raise HeadError(
                "there are no validation images to select on; use --select cv or --select fixed"
            )
    trials = {id(episode): [Trial(episode, episode)] for _, episode in runs}
    chosen = _choose(runs, given, _Search(trials, by_loss=False, largest=largest))
    return [candidate.judged[0].classifier for candidate in chosen]


def fit_cross_validated(
    runs: Sequence[Run], given: Collection[str] = (), largest: int = WITHOUT_LIMIT
) -> list[Classifier]:
    """Fit runs with their hyper-parameters chosen on the support itself, out of fold.

    As `fit_selected`, but a candidate is fitted once for each fold without the fold's items, and
    these judge it, by their loss alone; validation items are never read. What was chosen is fitted
    on the whole support. Its folds also say how sure it may be: see `Calibration`.

    At one shot the folds are halves of the classes, and there is no calibration.

    Raises:
        HeadError: the head has parameters of each class, which need two images of it.
    """
    head, _ = runs[0]
    if head.cross_fits:
        return fit_all(runs, largest)
    by_items = all(n_fold_of(episode) > 1 for _, episode in runs)
    if by_items:
        trials = {id(one): item_folds(one, n_fold_of(one)) for _, one in runs}
    else:
        episodes = [episode for _, episode in runs]
        check_class_folds(head, episodes)
        trials = dict(zip(map(id, episodes), class_folds(episodes), strict=True))
    chosen = _choose(runs, given, _Search(trials, by_loss=True, largest=largest))
    final = [Run(one.head, episode) for one, (_, episode) in zip(chosen, runs, strict=True)]
    fitted = fit_all(final, largest)
    if not by_items:
        return fitted
    return [
        replace(classifier, calibration=_calibration(candidate))
        for classifier, candidate in zip(fitted, chosen, strict=True)
    ]


def check_class_folds(head: Head, episodes: Sequence[Episode]) -> None:
    """Check that a head can be judged at one shot, by classes that it has not seen.

    Raises:
        HeadError: it needs images of each class, or there are too few classes or no texts.
    """
    name = type(head).__name__
    if head.new_classes != "text":
        raise HeadError(
            f"{name} knows each class by its images, so that with one image per class nothing can"
            " be left out to select on; use --select val or fixed, or more shots"
        )
    n_class = len(classes_with_images(episodes))
    if n_class < FEWEST_CLASSES or episodes[0].text is None:
        raise HeadError(
            "with one image per class, --select cv leaves half of the classes out, for which at"
            f" least {FEWEST_CLASSES} classes with texts are needed; there are {n_class}"
        )


def _choose(runs: Sequence[Run], given: Collection[str], search: _Search) -> list[Candidate]:
    """The best candidate of each run, see `fit_selected`."""
    head, _ = runs[0]
    free = {name: values for name, values in head.searches().items() if name not in given}
    trained = {name: values for name, values in free.items() if name not in head.tuned}
    tuned = {name: values for name, values in free.items() if name in head.tuned}
    chosen = _best_trained(runs, trained, search)
    if trained and head.refine:
        name = next(iter(trained))  # a space that is refined has one field
        chosen = _bisect(runs, chosen, name, head.refine, search)
    if tuned:
        chosen = [_tune(candidate, tuned, by_loss=search.by_loss) for candidate in chosen]
    return chosen


def _heads(head: Head, space: Mapping[str, Sequence]) -> list[Head]:
    """The head with each combination of the values of `space`; of an empty space, itself."""
    heads = []
    for values in itertools.product(*space.values()):
        combination = dict(zip(space, values, strict=True))
        heads.append(replace(head, **combination))
    return heads


def _best_trained(
    runs: Sequence[Run], space: Mapping[str, Sequence], search: _Search
) -> list[Candidate]:
    """The best candidate of each run, over the product of `space`; all runs train together."""
    searched: list[Run] = []
    for head, episode in runs:
        searched += [Run(candidate, episode) for candidate in _heads(head, space)]
    candidates = search.try_out(searched)
    n_candidate = len(candidates) // len(runs)
    starts = range(0, len(candidates), n_candidate)
    return [_first_best(candidates[start : start + n_candidate]) for start in starts]


def _first_best(candidates: Sequence[Candidate]) -> Candidate:
    """The best of a run's candidates; of equally good ones the first."""
    best = candidates[0]
    for candidate in candidates[1:]:
        if candidate.beats(best):
            best = candidate
    return best


def _scores(candidates: Sequence[Sequence[Judged]]) -> list[tuple[float, float]]:
    """Right answers and mean loss of each candidate, over the items of all of its folds.

    A candidate that diverged, or whose loss is not finite, has -1 and infinity.
    """
    sums = []
    for judged in candidates:
        parts = torch.stack([_sums(classifier, episode) for classifier, episode in judged])
        sums.append(parts.sum(dim=0))  # (4,)
    # All that is asked of the device at once: each question waits for all work before it.
    scores = []
    for right, loss, n, failed in on_host(torch.stack(sums)):
        mean = loss / n if n else 0.0
        good = not failed and math.isfinite(mean)
        scores.append((right, mean) if good else (-1.0, math.inf))
    return scores


def _sums(classifier: Classifier, episode: Episode) -> Tensor:
    """Of the episode's validation items: right, summed loss, how many; and whether it failed."""
    x, y = validation(classifier.head, episode)
    logits = classifier.logits(x)  # (n_val, n_class)
    n_right = (logits.argmax(dim=-1) == y).sum()
    loss = F.cross_entropy(logits, y, reduction="sum")
    n = loss.new_tensor(float(len(y)))
    return torch.stack([n_right.to(loss), loss, n, classifier.failed.to(loss)])


def _bisect(
    runs: Sequence[Run], chosen: Sequence[Candidate], name: str, steps: int, search: _Search
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
        return search.try_out(changed)

    def value_of(candidate: Candidate) -> float:
        return getattr(candidate.head, name)

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


def _tune(candidate: Candidate, space: Mapping[str, Sequence], *, by_loss: bool) -> Candidate:
    """Search the fields that only logits read: the candidates lie along the run axis.

    The fitted parameters stay. Of equally good candidates the first wins; losses that differ by
    less than ROUNDING are equal, so that the last bit of a sum does not choose.
    """
    heads = _heads(candidate.head, space)
    rights = []
    losses = []
    n = 0
    for classifier, episode in candidate.judged:
        head = classifier.head
        x, y = validation(head, episode)
        n += len(y)
        # As many rows at once as memory allows: a row takes n_class logits of each candidate or,
        # with keys, as many cosines as there are support items.
        work = head.floats_per_item(episode.n_class, episode.features.shape[1], width_of(x))
        floats_per_row = len(heads) * (episode.n_class + work) + len(episode.index)
        at_once = max(LEAST_ROWS, SWEEP_FLOATS // floats_per_row)
        x_parts = blocks(head, x, at_once)
        for x_part, y_part in zip(x_parts, y.split(at_once), strict=True):
            right, loss = _sweep(classifier, heads, x_part, y_part)
            rights.append(right)
            losses.append(loss)
    right = torch.stack(rights).sum(dim=0)  # (n_head,)
    loss = torch.stack(losses).sum(dim=0)  # (n_head,)
    if by_loss:
        right = torch.zeros_like(right)
    # argmax takes "not a number" for the largest logit, so that it may count as right: a candidate
    # whose loss is not finite comes behind all others
    finite = torch.isfinite(loss)
    right = torch.where(finite, right, -1)
    loss = torch.where(finite & (right == right.max()), loss / n, math.inf)
    good = loss <= loss.min() + ROUNDING  # all of them where none is finite
    best = heads[on_host(good.int().argmax())]  # the first of them
    judged = [
        Judged(replace(classifier, head=best), episode) for classifier, episode in candidate.judged
    ]
    return replace(candidate, head=best, judged=judged)


def _calibration(candidate: Candidate) -> Calibration:
    """How sure the head may be, from the items of its folds."""
    logits = []
    labels = []
    for classifier, episode in candidate.judged:
        x, y = validation(classifier.head, episode)
        logits.append(classifier.logits(x))
        labels.append(y)
    y = torch.cat(labels)
    return Calibration.of(torch.cat(logits), y, torch.ones_like(y, dtype=logits[0].dtype))


@torch.no_grad()
def _sweep(
    classifier: Classifier, heads: Sequence[Head], x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Right answers (n_head,) and summed loss (n_head,) of a classifier under other heads' fields.

    x (1, n, dim) as the heads take it, y (n,).
    """
    h = hypers(heads, x)
    right = y.new_zeros(len(heads))
    loss = x.new_zeros(len(heads))
    for part in classifier.head.candidates(classifier.p, classifier.c, h, x):
        logits = part.logits  # (k, n, n_class)
        n_run = len(logits)
        losses = F.cross_entropy(logits.flatten(0, 1), y.repeat(n_run), reduction="none")
        right[part.runs] = (logits.argmax(dim=-1) == y).sum(dim=1)
        loss[part.runs] = losses.view(n_run, -1).sum(dim=1)
    return right, loss

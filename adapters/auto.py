"""Auto: a cross-fitted stack of heads, the best that is known of a support set by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor

from cliad.adapters.clip_adapter import ClipAdapter, width
from cliad.adapters.core.classifier import Classifier, linear_map, logits_of
from cliad.adapters.core.episode import Episode, Support, Tensors, stack_validation
from cliad.adapters.core.fit import Run
from cliad.adapters.core.folds import (
    FEWEST_CLASSES,
    Trial,
    class_folds,
    classes_with_images,
    images_per_class,
    item_folds,
)
from cliad.adapters.core.head import Head, Hypers, Plan, hyper
from cliad.adapters.core.lbfgs import FLOATS_PER_LOGIT
from cliad.adapters.core.ops import bottleneck, cosine_logits, unit
from cliad.adapters.core.select import fit_all
from cliad.adapters.core.stacking import Judgement, stacking_weights
from cliad.adapters.core.texts import zero_shot_constants, zero_shot_weights
from cliad.adapters.gda import Gda
from cliad.adapters.offset_lr import OffsetLr
from cliad.adapters.text_ridge import TextRidge
from cliad.adapters.whitened_lr import WhitenedLr
from cliad.adapters.zero_shot import ZeroShot


class Member(NamedTuple):
    """A head of the stack, the weight of its logits before any is seen, and whether it has texts.

    GDA's Gaussians stand alone here, without the zero-shot logits beside them.
    """

    head: Head
    prior: float
    takes_text: bool

    def sees(self, episode: Episode) -> Episode:
        """The episode as the member gets it."""
        return episode if self.takes_text else replace(episode, text=None)


BATCH = 256
EPOCHS = 30
MOST_STEPS = 120  # of the adapter: of more than a thousand items, fewer passes are enough
# In the stack fewer steps at a higher rate do as well as the default, which one shot needs.
ADAPTER = ClipAdapter(alpha=0.2, lr=3e-3, weight_decay=0.01, epochs=EPOCHS, batch=BATCH)
MEMBERS: Mapping[str, Member] = {
    "zero-shot": Member(ZeroShot(), 0.1, True),
    "clip-adapter": Member(ADAPTER, 0.5, True),
    "whitened-lr": Member(WhitenedLr(), 0.3, True),
    "gda": Member(Gda(), 0.08, False),
    "text-ridge": Member(TextRidge(), 4.0, True),
}
FEWEST_SHOTS_OF_GDA = 3  # below, its folds have one image a class: no scatter, another head
# At one shot, where members are judged by classes that they have not seen.
OF_ONE_SHOT: Mapping[str, Member] = {
    "zero-shot": Member(ZeroShot(), 0.1, True),
    "clip-adapter": Member(ClipAdapter(alpha=ADAPTER.alpha), 0.9, True),
    "text-ridge": Member(TextRidge(), 4.0, True),
}
WITHOUT_TEXT: Mapping[str, Member] = {
    "whitened-lr": Member(WhitenedLr(), 0.6, False),
    "gda": Member(Gda(), 0.4, False),
}
FLOATS_AT_ONCE = 2**28  # of all that train at once (1 GB)
PRIOR_DEVIATION = 1.0  # of a weight, in units of its prior


@dataclass(frozen=True)
class Auto(Head):
    """Auto: zero-shot, CLIP-Adapter, GDA, text ridge and whitened regression, stacked out of fold.

    logits = sum_m w_m z_m with w_m >= 0. The weights are the most probable ones on logits z_m of
    support images by members that were trained on the other folds (stacked generalisation, Wolpert,
    1992), so that their sum is the temperature, too; then all members are trained on the whole
    support. At one shot, members that know no class are judged by classes that they have not seen,
    and an offset regression shares the adapter's weight. It needs no validation images, and takes
    what class texts there are. All but the adapter add up to one linear map. The recipe is ours.
    """

    folds: int = hyper(4, "most parts that the support is cut in to find the weights", 2, 20)

    needs: ClassVar[frozenset[str]] = frozenset()
    optional_inputs: ClassVar[frozenset[str]] = frozenset({"text"})
    select: ClassVar[str] = "cv"
    cross_fits: ClassVar[bool] = True

    def plan(self, n: int, shots: float) -> Plan:
        return Plan(batch=n)  # no steps: `fit_parts` does all; runs of equal n share it

    def bind(self, support: Support, h: Hypers) -> Tensors:
        c = zero_shot_weights(support)
        return c if support.text is None else c | zero_shot_constants(support)

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        """Zero-shot: what the stack is before an image is seen."""
        n_run = len(generators)
        w = c["_zero_shot"].repeat(n_run, 1, 1)
        p = {"w": w, "b": w.new_zeros(w.shape[:2])}
        if "text" in c:
            dim = w.shape[-1]
            hidden = width(ADAPTER.hidden, dim)
            p["w1"] = w.new_zeros(n_run, dim, hidden)
            p["w2"] = w.new_zeros(n_run, hidden, dim)
            p["share"] = w.new_zeros(n_run)
        return p

    def fit_parts(self, episodes: Sequence[Episode]) -> Tensors:
        first = episodes[0]
        shots = min(images_per_class(episode) for episode in episodes)
        n_fold = min(shots, self.folds)
        members = _members(has_text=first.text is not None, shots=shots, n=len(first.index))
        largest = max(1, FLOATS_AT_ONCE // (FLOATS_PER_LOGIT * len(first.index) * first.n_class))
        weights, found = _weights(members, episodes, n_fold, largest)
        fitted = {
            name: fit_all([Run(member.head, member.sees(episode)) for episode in episodes], largest)
            for name, member in members.items()
        }
        shares = dict(zip(members, weights.unbind(dim=1), strict=True))
        if n_fold < 2 and "clip-adapter" in shares:
            # Two heads that err alike, and whose mean errs less.
            half = shares["clip-adapter"] / 2
            shares |= {"clip-adapter": half, "offset-lr": half}
            runs = [Run(OffsetLr(), episode) for episode in episodes]
            fitted["offset-lr"] = fit_all(runs, largest)
        dim = first.features.shape[1]
        axes = torch.eye(dim, device=first.features.device)
        return _summed(fitted, shares, axes) | found

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        linear = x @ p["w"].mT + p["b"][:, None]
        if "text" not in c:
            return linear
        adapted = bottleneck(x, p["w1"], p["w2"], final_relu=ADAPTER.final_relu)
        blended = torch.lerp(x, adapted, ADAPTER.alpha)
        adapter = cosine_logits(blended, c["text"], c["scale"])
        return linear + p["share"][:, None, None] * adapter


def _members(*, has_text: bool, shots: int, n: int) -> Mapping[str, Member]:
    """The heads of the stack, for so many whole shots and n items."""
    if not has_text:
        return WITHOUT_TEXT
    if shots < 2:
        return OF_ONE_SHOT
    per_epoch = math.ceil(n / BATCH)
    epochs = max(1, min(EPOCHS, MOST_STEPS // per_epoch))
    adapter = MEMBERS["clip-adapter"]
    members = {
        **MEMBERS,
        "clip-adapter": adapter._replace(head=replace(ADAPTER, epochs=epochs)),
    }
    if shots < FEWEST_SHOTS_OF_GDA:
        del members["gda"]
    return members


def _weights(
    members: Mapping[str, Member], episodes: Sequence[Episode], n_fold: int, largest: int
) -> tuple[Tensor, Tensors]:
    """Weights (n_run, n_member), and what the folds say of the stack, see `Head.fit_parts`."""
    first = episodes[0]
    prior = first.features.new_tensor([member.prior for member in members.values()])
    can_be_halved = len(classes_with_images(episodes)) >= FEWEST_CLASSES
    if n_fold > 1:
        trials = [item_folds(episode, n_fold) for episode in episodes]
    elif first.text is not None and can_be_halved:
        trials = class_folds(episodes)
    else:
        return prior.expand(len(episodes), -1), {}
    judgements = _judgements(members, trials, largest)
    weights = stacking_weights(judgements, prior, PRIOR_DEVIATION)
    if n_fold < 2:
        return weights, {}
    return weights, {
        "_logits": torch.cat([one.stacked(weights) for one in judgements], dim=1),
        "_y": torch.cat([one.y for one in judgements], dim=1),
        "_weight": torch.cat([one.weight for one in judgements], dim=1),
    }


def _judgements(
    members: Mapping[str, Member], trials: Sequence[Sequence[Trial]], largest: int
) -> list[Judgement]:
    """What all members say of the items of each fold, from the trials of each run."""
    first = trials[0][0].judged_on
    rows = unit(first.features)
    items = [
        stack_validation([trial.judged_on for trial in of_fold], rows)
        for of_fold in zip(*trials, strict=True)
    ]
    said: list[list[Tensor]] = [[] for _ in items]  # by fold, then by member
    for member in members.values():
        judged = _judged(member, trials, largest)
        for fold, of_fold in enumerate(zip(*judged, strict=True)):
            said[fold].append(logits_of(of_fold, items[fold].x))
    return [
        Judgement(torch.stack(logits, dim=1), y=of_fold.y, weight=of_fold.mask)
        for logits, of_fold in zip(said, items, strict=True)
    ]


def _judged(
    member: Member, trials: Sequence[Sequence[Trial]], largest: int
) -> list[list[Classifier]]:
    """The member's classifiers, fitted in all trials of all runs, at most `largest` at once."""
    runs: list[Run] = []
    for of_run in trials:
        runs += [Run(member.head, member.sees(trial.fitted_on)) for trial in of_run]
    fitted = iter(fit_all(runs, largest))
    return [[trial.judge(next(fitted)).classifier for trial in of_run] for of_run in trials]


def _summed(
    fitted: Mapping[str, Sequence[Classifier]], shares: Mapping[str, Tensor], axes: Tensor
) -> Tensors:
    """The parameters of the stack: one linear map, and the adapter beside it.

    axes (dim, dim): the identity.
    """
    p: Tensors = {}
    for name, classifiers in fitted.items():
        share = shares[name][:, None, None]  # (n_run, 1, 1)
        if name == "clip-adapter":
            p["share"] = shares[name]
            p["w1"] = torch.cat([classifier.p["visual_w1"] for classifier in classifiers])
            p["w2"] = torch.cat([classifier.p["visual_w2"] for classifier in classifiers])
            continue
        w, b = linear_map(classifiers, axes)
        p["w"] = share * w + p.get("w", 0.0)
        p["b"] = share[..., 0] * b + p.get("b", 0.0)
    return p

"""Fitting runs: which can train together, and the classifiers that come out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from cliad.adapters.core.batches import Batches
from cliad.adapters.core.calibrate import Calibration
from cliad.adapters.core.classifier import Classifier, inputs, lasting, support_of
from cliad.adapters.core.episode import Episode, Tensors
from cliad.adapters.core.head import Head, HeadError, Hypers, hypers, static_fields
from cliad.adapters.core.train import Best, train

# What a head may need beside features, and how a cache gets it.
REMEDIES = {
    "text": "text features; import them with --text",
    "views": "augmented views; extract with --views 10",
    "pre_projection": "features before the projection; extract with --pre-projection",
    "tokens": "patch tokens; extract with --tokens",
    "tower": "a text tower; extract with --text-tower",
}


class Run(NamedTuple):
    """A head and the episode that it is fitted on."""

    head: Head
    episode: Episode


def group_key(run: Run) -> Hashable:
    """Runs with equal keys have tensors of equal shapes, share their data, and train together."""
    head, episode = run
    return (
        type(head),
        static_fields(head),
        head.plan(len(episode.index), episode.shots),
        id(episode.features),
        id(episode.text),
        id(episode.tower),
        episode.names,
        episode.n_class,
        episode.logit_scale,
    )


def group(runs: Sequence[Run]) -> list[list[int]]:
    """Positions of the runs, those that can train together in one list."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for position, run in enumerate(runs):
        groups[group_key(run)].append(position)
    return list(groups.values())


def fit(runs: Sequence[Run], *, validate: bool = False) -> list[Classifier]:
    """Fit the runs of one group together.

    Args:
        runs: (head, episode) pairs with equal `group_key`; the heads may differ in `vary` fields,
            the episodes in all but their feature matrix and text.
        validate: a plan with keep "best" may look at the validation items.

    Raises:
        ValueError: the runs are not of one group.
        HeadError: the episode lacks what the head needs.
    """
    n_group = len(group(runs))
    if n_group != 1:
        raise ValueError(f"expected runs of one group, got {len(runs)} runs of {n_group} groups")
    heads = [head for head, _ in runs]
    episodes = [episode for _, episode in runs]
    require(heads[0], episodes[0])
    h = hypers(heads, episodes[0].features)
    fitted = _fit_group(heads[0], episodes, h, validate=validate)
    classifiers = []
    for run, (head, episode) in enumerate(runs):
        classifiers.append(
            Classifier(
                head=head,
                p=_own(fitted.p, run),
                c=_own(fitted.c, run),
                logit_scale=episode.logit_scale,
                failed=fitted.failed[run],
                calibration=_calibration(fitted.p, run),
            )
        )
    return classifiers


def require(head: Head, episode: Episode) -> None:
    """Check that an episode has all that a head cannot do without.

    Raises:
        HeadError: it lacks something; the message says how to get it.
    """
    for need in sorted(head.needs & REMEDIES.keys()):
        if getattr(episode, need) is None:
            raise HeadError(f"{type(head).__name__} needs a cache with {REMEDIES[need]}")


@dataclass(frozen=True, eq=False)
class _Fitted:
    """Parameters p and constants c of a group's runs, and which of them (n_run,) failed."""

    p: Tensors
    c: Tensors
    failed: Tensor


def _fit_group(head: Head, episodes: Sequence[Episode], h: Hypers, *, validate: bool) -> _Fitted:
    """Bind, start, train and finish: the contract of `Head` in its order.

    head: any of the group's; they differ in what h has.
    """
    matrix = inputs(head, episodes[0])
    support, rows = support_of(head, episodes)
    generators = [Generator().manual_seed(episode.seed) for episode in episodes]
    c = head.bind(support, h)
    p = head.fit_parts(episodes) if head.cross_fits else head.start(c, h, generators)
    plan = head.plan(len(episodes[0].index), episodes[0].shots)
    failed = torch.zeros(len(episodes), dtype=torch.bool, device=support.mask.device)
    if plan.steps:
        best = None
        if validate and plan.keep == "best" and len(episodes[0].val_index):
            best = Best(head, c, h, episodes, matrix)
        batches = Batches(matrix, support, rows, plan, generators)
        trained = train(head, plan, p, c, h, batches, best)
        p = trained.p
        failed = trained.diverged
    # without a graph: that of a text tower would be larger than all that training holds
    with torch.no_grad():
        finished = head.finish(p, c, h)
    p = {name: value.detach() for name, value in finished.items()}
    for value in lasting(p).values():
        failed = failed | ~torch.isfinite(value).reshape(len(value), -1).all(dim=1)
    return _Fitted(p, c, failed)


def _calibration(p: Tensors, run: int) -> Calibration | None:
    """What a head that judges its parts out of fold leaves of one run, see `Head.cross_fits`."""
    if "_logits" not in p:
        return None
    return Calibration.of(p["_logits"][run], p["_y"][run], p["_weight"][run])


def _own(tensors: Tensors, run: int) -> Tensors:
    """One run's part (1, ...) of what lasts, without copying; all of what the runs share."""
    own = {}
    for name, value in lasting(tensors).items():
        # a text tower is no tensor, and all share it
        shared = not isinstance(value, Tensor) or len(value) == 1
        own[name] = value if shared else value[run : run + 1]
    return own

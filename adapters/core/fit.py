"""The one training loop. It trains n_run runs at once; a single run is n_run = 1.

Nothing in a run depends on who else is in the batch: it has its own generator, minibatches over its own n items, and its own
terms of the loss, so a run alone and the same run among others differ only by the rounding of the matrix products.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import fields, replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from cliad.adapters.core.classifier import Classifier, hypers, inputs
from cliad.adapters.core.episode import Episode, Support, Tensors
from cliad.adapters.core.head import Head, HeadError, Plan
from cliad.adapters.core.ops import unit
from cliad.adapters.core.optimiser import Optimiser


class Run(NamedTuple):
    """A head and the episode that it is fitted on."""

    head: Head
    episode: Episode


def group_key(run: Run) -> Hashable:
    """Runs with equal keys have tensors of equal shapes and train together: head, static fields, plan, and the data they share."""
    head, episode = run
    static = tuple((f.name, getattr(head, f.name)) for f in fields(head) if f.name not in head.vary)
    return (
        type(head),
        static,
        head.plan(len(episode.index), episode.shots),
        id(episode.features),
        id(episode.text),
        episode.n_class,
        episode.logit_scale,
    )


def group(runs: Sequence[Run]) -> list[list[int]]:
    """Positions of the runs, those that can train together in one list."""
    groups = defaultdict(list)
    for i, run in enumerate(runs):
        groups[group_key(run)].append(i)
    return list(groups.values())


def fit(runs: Sequence[Run], *, validate: bool = False) -> list[Classifier]:
    """Fit the runs of one group together.

    Args:
        runs: (head, episode) pairs with equal `group_key`; the heads may differ in `vary` fields, the episodes in all but
            their feature matrix and text.
        validate: a plan with keep "best" may look at the validation items.
    Raises:
        ValueError: the runs are not of one group.
        HeadError: the episode lacks what the head needs.
    """
    if len(group(runs)) != 1:
        raise ValueError(f"the runs of one group are asked; however: {len(group(runs))=}")
    head, episode = runs[0]
    require(head, episode)
    heads, episodes = [head for head, _ in runs], [episode for _, episode in runs]
    h = hypers(heads, episode.features)
    features = inputs(head, episode)
    support, rows = stack(episodes, features)
    if "views" in head.needs | head.optional_inputs:
        support = replace(support, rows=rows, all_views=episode.views)
    generators = [Generator().manual_seed(episode.seed) for episode in episodes]
    c = head.bind(support, h)
    p = head.start(c, h, generators)
    plan, diverged = head.plan(len(episode.index), episode.shots), [False] * len(runs)
    if plan.steps:
        best = (
            _Best(head, c, h, episodes, features)
            if validate and plan.keep == "best" and len(episode.val_index)
            else None
        )
        p, diverged = _train(
            head, plan, p, c, h, _Batches(features, support, rows, plan, generators), best
        )
    p = {name: value.detach() for name, value in head.finish(p, c, h).items()}
    return [_slice(run, p, c, i, diverged[i]) for i, run in enumerate(runs)]


def require(head: Head, episode: Episode) -> None:
    """HeadError where an episode lacks something that the head cannot do without."""
    options = {
        "text": "text features; import them with --text",
        "views": "augmented views; extract with --views 10",
    }
    options |= {"pre_projection": "features before the projection; extract with --pre-projection"}
    for need in sorted(head.needs & options.keys()):
        if getattr(episode, need) is None:
            raise HeadError(f"{type(head).__name__} needs a cache with {options[need]}")


def _slice(run: Run, p: Tensors, c: Tensors, i: int, diverged: bool) -> Classifier:
    """Run i's own part of what was fitted; constants named _like_this served training only."""
    own = lambda tensors: {
        k: v[i : i + 1] if len(v) > 1 else v for k, v in tensors.items() if not k.startswith("_")
    }
    finite = all(bool(torch.isfinite(value).all()) for value in own(p).values())
    return Classifier(run[0], own(p), own(c), run[1].logit_scale, diverged or not finite)


def stack(episodes: Sequence[Episode], features: Tensor) -> tuple[Support, Tensor]:
    """The support of all runs, padded to the longest, and its row numbers (n_run, n) in the feature matrix."""
    first, n = episodes[0], max(len(episode.index) for episode in episodes)
    pad = lambda values: torch.stack([F.pad(value, (0, n - len(value))) for value in values])
    rows, y = pad([e.index for e in episodes]), pad([e.y for e in episodes])
    mask = pad([torch.ones_like(e.index, dtype=features.dtype) for e in episodes])
    x = features[rows] * mask[..., None]
    return Support(x, y, mask, first.text, first.logit_scale, first.n_class), rows


class _Batches:
    """Minibatches of all runs: step -> x (n_run, b, dim), y (n_run, b), and weights (n_run, b) that sum to 1 in each run.

    Where the support has views, an epoch shows each item in a view drawn for it, else in the plain one.
    """

    def __init__(
        self,
        features: Tensor,
        support: Support,
        rows: Tensor,
        plan: Plan,
        generators: Sequence[Generator],
    ):
        self.features, self.support, self.rows, self.plan = features, support, rows, plan
        self.counts = support.mask.sum(dim=1).long().tolist()
        self.generators = generators
        self.full = (support.x, support.y, support.mask / support.mask.sum(dim=1, keepdim=True))

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        views = self.support.all_views
        if views is None and (self.plan.batch is None or self.plan.per_epoch == 1):
            return self.full  # every item in every step: the order does not matter
        if step % self.plan.per_epoch == 0:
            self._shuffle(1 if views is None else len(views))
        at, view, weight = (
            part[:, step % self.plan.per_epoch] for part in (self.at, self.view, self.weight)
        )
        rows = self.rows.gather(1, at)
        x = (
            self.features.index_select(0, rows.flatten()).view(*rows.shape, -1)
            if views is None
            else unit(views[view, rows])
        )
        return x, self.support.y.gather(1, at), weight

    def _shuffle(self, n_view: int) -> None:
        """A new epoch: (n_run, per_epoch, b) positions in the support, each item once; what pads the shorter batches weighs nothing."""
        per_epoch, width = self.plan.per_epoch, -(-max(self.counts) // self.plan.per_epoch)
        at, view = (
            torch.zeros(len(self.counts), per_epoch, width, dtype=torch.long, device="cpu")
            for _ in range(2)
        )
        weight = torch.zeros(at.shape, device="cpu")
        for run, (n, generator) in enumerate(zip(self.counts, self.generators, strict=True)):
            for step, part in enumerate(
                torch.randperm(n, generator=generator, device="cpu").tensor_split(per_epoch)
            ):
                at[run, step, : len(part)], weight[run, step, : len(part)] = part, 1 / len(part)
                if n_view > 1:
                    view[run, step, : len(part)] = torch.randint(
                        n_view, part.shape, generator=generator, device="cpu"
                    )
        self.at, self.view, self.weight = (
            at.to(self.rows.device),
            view.to(self.rows.device),
            weight.to(self.features),
        )


def _train(
    head: Head,
    plan: Plan,
    p: Tensors,
    c: Tensors,
    h: Tensors,
    batches: _Batches,
    best: _Best | None,
) -> tuple[Tensors, list[bool]]:
    """The trained parameters, and which runs diverged: their last epoch's loss is above the first step's and above guessing's."""
    p = {
        name: value.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        for name, value in p.items()
    }
    optimiser = Optimiser(plan, p, h, head.rates(c, h))
    first, last = None, 0
    for step in range(plan.steps):
        x, y, weight = batches(step)
        logits = head.logits(p, c, h, x)
        loss = (
            F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y) * weight
        ).sum(dim=1)
        first = loss.detach() if first is None else first
        last = (
            last + loss.detach() / plan.per_epoch if step + plan.per_epoch >= plan.steps else last
        )
        if (penalty := head.penalty(p, c, h)) is not None:
            loss = loss + penalty
        for value, grad in zip(
            p.values(), torch.autograd.grad(loss.sum(), list(p.values())), strict=True
        ):
            value.grad = (
                grad.contiguous()
            )  # torch's fused steps read memory in the parameter's order, whatever the strides
        optimiser.step(step)
        if best and ((step + 1) % plan.look == 0 or step + 1 == plan.steps):
            best.look(p)
    fine = last <= first.clamp(min=math.log(logits.shape[-1]))  # NaN is not
    return best.p if best else p, (~fine).tolist()


class _Best:
    """The parameters of each run at its best validation accuracy so far; of equally good ones the last."""

    def __init__(
        self, head: Head, c: Tensors, h: Tensors, episodes: Sequence[Episode], features: Tensor
    ):
        self.head, self.c, self.h = head, c, h
        val = [replace(e, index=e.val_index, y=e.val_y) for e in episodes]
        support, _ = stack(val, features)
        self.x, self.y, self.mask = support.x, support.y, support.mask
        self.score, self.p = features.new_full((len(episodes),), -1.0), {}

    @torch.no_grad()
    def look(self, p: Tensors) -> None:
        right = self.head.logits(p, self.c, self.h, self.x).argmax(dim=-1) == self.y
        score = (right * self.mask).sum(dim=1)
        better = score >= self.score
        self.score = torch.where(better, score, self.score)
        keep = lambda name, new: torch.where(
            better.view(-1, *[1] * (new.dim() - 1)), new, self.p.get(name, new)
        )
        self.p = {name: keep(name, value.detach()).clone() for name, value in p.items()}

"""The one training loop. It trains n_run runs at once; a single run is n_run = 1.

Nothing in a run depends on who else is in the batch: it has its own generator, minibatches over its own n items, and its own
terms of the loss, so a run alone and the same run among others differ only by the rounding of the matrix products.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from types import EllipsisType

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from cliad.adapters.base import Episode, Head, HeadError, Plan, Support, Tensors, unit

Run = tuple[Head, Episode]
BETAS = 0.9, 0.999  # of Adam and AdamW
SCORED_AT_ONCE = 4096  # rows


@dataclass(frozen=True, eq=False)
class Classifier:
    """What fitting gives: a head with its parameters p and constants c, each (1, ...). `diverged`: they are not finite."""

    head: Head
    p: Tensors
    c: Tensors
    logit_scale: float
    diverged: bool = False

    def logits(self, x: Tensor) -> Tensor:
        """(n, n_class) float32 logits of raw or unit features x (n, dim); raw ones for a head that needs them."""
        x = x if "raw" in self.head.needs else unit(x)
        h = hypers([self.head], x)
        with torch.no_grad():
            return torch.cat([self.head.logits(self.p, self.c, h, part[None])[0] for part in x.split(SCORED_AT_ONCE)])

    def rebind(self, text: Tensor) -> Classifier:
        """The same parameters for other classes, text (n_template, n_class, dim); HeadError where they have a class axis."""
        if self.head.per_class:
            raise HeadError(f"{type(self.head).__name__} has parameters for each of its classes; it cannot serve others")
        none = text.new_zeros(1, 0, text.shape[-1])
        support = Support(none, none[..., 0].long(), none[..., 0], text, self.logit_scale, text.shape[1])
        c = self.head.bind(support, hypers([self.head], text))
        return replace(self, c={name: value for name, value in c.items() if not name.startswith("_")})


def logits_of(classifiers: Sequence[Classifier], x: Tensor) -> Tensor:
    """(n_run, n, n_class) logits of x (n, dim), or of x (n_run, n, dim) where each run sees its own; the runs are of one group.

    What is fitted is stacked again, so that all runs are scored by the products that trained them.
    """
    first = classifiers[0]
    join = lambda values: values[0] if all(value is values[0] for value in values) else torch.cat(values)
    p, c = ({name: join([getattr(one, part)[name] for one in classifiers]) for name in getattr(first, part)} for part in ("p", "c"))
    x = x if "raw" in first.head.needs else unit(x)
    h, x = hypers([one.head for one in classifiers], x), x if x.dim() == 3 else x[None]
    with torch.no_grad():
        logits = torch.cat([first.head.logits(p, c, h, part) for part in x.split(SCORED_AT_ONCE, dim=1)], dim=1)
    return logits.expand(len(classifiers), -1, -1)


def can_stack(classifiers: Sequence[Classifier]) -> bool:
    """Whether classifiers differ in `vary` fields and in the values of tensors only."""
    static = lambda one: [(f.name, getattr(one.head, f.name)) for f in fields(one.head) if f.name not in one.head.vary]
    shapes = lambda one: [(name, value.shape) for part in (one.p, one.c) for name, value in part.items()]
    key = lambda one: (type(one.head), static(one), shapes(one), one.logit_scale)
    return all(key(one) == key(classifiers[0]) for one in classifiers)


def group_key(run: Run) -> Hashable:
    """Runs with equal keys have tensors of equal shapes and train together: head, static fields, plan, and the data they share."""
    head, episode = run
    static = tuple((f.name, getattr(head, f.name)) for f in fields(head) if f.name not in head.vary)
    return (
        type(head),
        static,
        head.plan(len(episode.index), episode.n_class),
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


def hypers(heads: Sequence[Head], like: Tensor) -> Tensors:
    """h: each field of `vary` as a vector (n_run,)."""
    return {name: like.new_tensor([float(getattr(head, name)) for head in heads]) for name in sorted(heads[0].vary)}


def inputs(head: Head, episode: Episode) -> Tensor:
    """The feature matrix (n_row, dim) as the head takes it, see Head.needs."""
    if "pre_projection" in head.needs:
        return torch.cat([episode.features, episode.pre_projection], dim=-1)
    return episode.features if "raw" in head.needs else unit(episode.features)


def validation(head: Head, episode: Episode) -> tuple[Tensor, Tensor]:
    """Validation rows as `Classifier.logits` takes them, and labels (n_val,)."""
    columns = [episode.features[episode.val_index]]
    if "pre_projection" in head.needs:
        columns.append(episode.pre_projection[episode.val_index])
    return torch.cat(columns, dim=-1), episode.val_y


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
    if "views" in head.needs | head.likes:
        support = replace(support, rows=rows, all_views=episode.views)
    generators = [Generator().manual_seed(episode.seed) for episode in episodes]
    c = head.bind(support, h)
    p = head.start(c, h, generators)
    plan, diverged = head.plan(len(episode.index), episode.n_class), [False] * len(runs)
    if plan.steps:
        best = _Best(head, c, h, episodes, features) if validate and plan.keep == "best" and len(episode.val_index) else None
        p, diverged = _train(head, plan, p, c, h, _Batches(features, support, rows, plan, generators), best)
    p = {name: value.detach() for name, value in head.finish(p, c, h).items()}
    return [_slice(run, p, c, i, diverged[i]) for i, run in enumerate(runs)]


def require(head: Head, episode: Episode) -> None:
    """HeadError where an episode lacks something that the head cannot do without."""
    options = {"text": "text features; import them with --text", "views": "augmented views; extract with --views 10"}
    options |= {"pre_projection": "features before the projection; extract with --pre-projection"}
    for need in sorted(head.needs & options.keys()):
        if getattr(episode, need) is None:
            raise HeadError(f"{type(head).__name__} needs a cache with {options[need]}")


def _slice(run: Run, p: Tensors, c: Tensors, i: int, diverged: bool) -> Classifier:
    """Run i's own part of what was fitted; constants named _like_this served training only."""
    own = lambda tensors: {k: v[i : i + 1] if len(v) > 1 else v for k, v in tensors.items() if not k.startswith("_")}
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

    def __init__(self, features: Tensor, support: Support, rows: Tensor, plan: Plan, generators: Sequence[Generator]):
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
        at, view, weight = (part[:, step % self.plan.per_epoch] for part in (self.at, self.view, self.weight))
        rows = self.rows.gather(1, at)
        x = self.features.index_select(0, rows.flatten()).view(*rows.shape, -1) if views is None else unit(views[view, rows])
        return x, self.support.y.gather(1, at), weight

    def _shuffle(self, n_view: int) -> None:
        """A new epoch: (n_run, per_epoch, b) positions in the support, each item once; what pads the shorter batches weighs nothing."""
        per_epoch, width = self.plan.per_epoch, -(-max(self.counts) // self.plan.per_epoch)
        at, view = (torch.zeros(len(self.counts), per_epoch, width, dtype=torch.long, device="cpu") for _ in range(2))
        weight = torch.zeros(at.shape, device="cpu")
        for run, (n, generator) in enumerate(zip(self.counts, self.generators, strict=True)):
            for step, part in enumerate(torch.randperm(n, generator=generator, device="cpu").tensor_split(per_epoch)):
                at[run, step, : len(part)], weight[run, step, : len(part)] = part, 1 / len(part)
                if n_view > 1:
                    view[run, step, : len(part)] = torch.randint(n_view, part.shape, generator=generator, device="cpu")
        self.at, self.view, self.weight = at.to(self.rows.device), view.to(self.rows.device), weight.to(self.features)


def _train(head: Head, plan: Plan, p: Tensors, c: Tensors, h: Tensors, batches: _Batches, best: _Best | None) -> tuple[Tensors, list[bool]]:
    """The trained parameters, and which runs diverged: their last epoch's loss is above the first step's and above guessing's."""
    p = {name: value.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for name, value in p.items()}
    optimiser = Optimiser(plan, p, h, head.rates(c, h))
    first, last = None, 0
    for step in range(plan.steps):
        x, y, weight = batches(step)
        logits = head.logits(p, c, h, x)
        loss = (F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y) * weight).sum(dim=1)
        first = loss.detach() if first is None else first
        last = last + loss.detach() / plan.per_epoch if step + plan.per_epoch >= plan.steps else last
        if (penalty := head.penalty(p, c, h)) is not None:
            loss = loss + penalty
        for value, grad in zip(p.values(), torch.autograd.grad(loss.sum(), list(p.values())), strict=True):
            value.grad = grad.contiguous()  # torch's fused steps read memory in the parameter's order, whatever the strides
        optimiser.step(step)
        if best and ((step + 1) % plan.look == 0 or step + 1 == plan.steps):
            best.look(p)
    fine = last <= first.clamp(min=math.log(logits.shape[-1]))  # NaN is not
    return best.p if best else p, (~fine).tolist()


class _Best:
    """The parameters of each run at its best validation accuracy so far; of equally good ones the last."""

    def __init__(self, head: Head, c: Tensors, h: Tensors, episodes: Sequence[Episode], features: Tensor):
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
        keep = lambda name, new: torch.where(better.view(-1, *[1] * (new.dim() - 1)), new, self.p.get(name, new))
        self.p = {name: keep(name, value.detach()).clone() for name, value in p.items()}


def rate(plan: Plan, step: int, lr: float) -> float:
    """The learning rate at a step, from the highest one."""
    if step < plan.warmup:
        return plan.warmup_rate if plan.warmup_rate is not None else lr * ((step + 1) / (plan.warmup + 1))
    if plan.schedule == "constant":
        return lr
    if plan.schedule == "cosine-epoch":
        done = ((step - plan.warmup) // plan.per_epoch) / (plan.steps / plan.per_epoch)
        return lr * 0.5 * (1 + math.cos(math.pi * done))
    done = (step - plan.warmup) / max(plan.steps - plan.warmup, 1)
    return lr * 0.5 * (1 + math.cos(math.pi * done))


class Optimiser:
    """SGD with momentum, Adam and AdamW for stacked parameters, each run with its own learning rate and weight decay.

    torch's fused kernels do a step in one pass over memory, for tensors with one rate and one decay: the stacked parameters where
    all runs agree, else the slices of those runs that do. The kernels are called as functions: the optimiser classes take a second
    to load what only compilation needs, longer than a head trains.
    """

    def __init__(self, plan: Plan, p: Tensors, h: Tensors, rates: dict[str, tuple[Tensor, int]]):
        self.plan, self.p = plan, p
        self.plain = {name: of for name, of in rates.items() if of[1] > 1}
        self.parts: dict[tuple[float, float], list[_Moved]] = defaultdict(list)  # by (highest rate, decay)
        for name, value in p.items():
            if name in self.plain:
                continue
            lr = rates[name][0] if name in rates else h["lr"]
            pairs = list(zip(lr.tolist(), h.get("weight_decay", torch.zeros_like(lr)).tolist(), strict=True))
            places = {...: pairs[0]} if len(set(pairs)) == 1 else dict(enumerate(pairs))
            for at, pair in places.items():
                self.parts[pair].append(_Moved(name, at, value.detach()[at]))

    @torch.no_grad()
    def step(self, step: int) -> None:
        """One step, from the gradients in .grad."""
        for (lr, decay), moved in self.parts.items():
            self._fused_step(rate(self.plan, step, lr), decay, moved)
        for name, (lr, every) in self.plain.items():
            if (step + 1) % every == 0:
                value = self.p[name]
                value -= lr.view(-1, *[1] * (value.dim() - 1)) * value.grad

    def _fused_step(self, lr: float, decay: float, moved: list[_Moved]) -> None:
        values, mean, square, steps = ([getattr(one, part) for one in moved] for part in ("value", "mean", "square", "step"))
        grads = [self.p[one.name].grad[one.at] for one in moved]
        common = {"fused": True, "maximize": False, "lr": lr, "weight_decay": decay}
        if self.plan.optimiser == "sgd":
            return sgd(values, grads, mean, momentum=self.plan.momentum, dampening=0.0, nesterov=False, **common)
        common |= {"amsgrad": False, "beta1": BETAS[0], "beta2": BETAS[1], "eps": self.plan.eps}
        {"adamw": adamw, "adam": adam}[self.plan.optimiser](values, grads, mean, square, [], steps, **common)


class _Moved:
    """A parameter of some runs, a view into the stacked one, with what the optimiser keeps of it."""

    def __init__(self, name: str, at: int | EllipsisType, value: Tensor):
        self.name, self.at, self.value = name, at, value
        self.mean, self.square, self.step = torch.zeros_like(value), torch.zeros_like(value), torch.zeros((), device=value.device)

"""Minibatches of many runs at once, each run's from its own generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from cliad.adapters.core.episode import Batch, Support
from cliad.adapters.core.head import Plan
from cliad.adapters.core.ops import unit
from cliad.adapters.core.rows import WideRows


@dataclass(frozen=True, eq=False)
class Epoch:
    """Which items the minibatches of one epoch show, all (n_run, per_epoch, b).

    position: the item's place in the run's support. view: which of its views, 0 where there is one.
    weight: 1 / the items of the minibatch, 0 in the padding.
    """

    position: Tensor
    view: Tensor
    weight: Tensor


def draw_epoch(
    counts: Sequence[int], generators: Sequence[Generator], per_epoch: int, n_view: int
) -> Epoch:
    """A new epoch on the CPU, where the generators are: each item of each run once.

    counts: how many items each run has.
    """
    width = -(-max(counts) // per_epoch)  # the largest minibatch of the largest run
    shape = (len(counts), per_epoch, width)
    position = torch.zeros(shape, dtype=torch.long, device="cpu")
    view = torch.zeros(shape, dtype=torch.long, device="cpu")
    weight = torch.zeros(shape, device="cpu")
    for run, generator in enumerate(generators):
        order = torch.randperm(counts[run], generator=generator, device="cpu")
        # tensor_split makes parts of nearly equal size: they differ by one item at most
        for step, part in enumerate(order.tensor_split(per_epoch)):
            size = len(part)
            position[run, step, :size] = part
            weight[run, step, :size] = 1 / size
            if n_view > 1:
                drawn = torch.randint(n_view, part.shape, generator=generator, device="cpu")
                view[run, step, :size] = drawn
    return Epoch(position, view, weight)


class Batches:
    """The minibatch of all runs at a step; called with steps 0, 1, 2, ... in order.

    Where the support has views, an epoch shows each item in a view drawn for it, else in the plain
    one.

    Args:
        matrix: what the head takes; the rows of each minibatch are gathered for it alone.
        support: the runs' items.
        rows: (n_run, n), the items' row numbers in `matrix` and in the views.
        plan: how many minibatches an epoch has.
        generators: each run's own; they draw the order of the items and their views.
    """

    def __init__(
        self,
        matrix: Tensor | WideRows,
        support: Support,
        rows: Tensor,
        plan: Plan,
        generators: Sequence[Generator],
    ):
        self.matrix = WideRows(matrix) if isinstance(matrix, Tensor) else matrix
        self.support = support
        self.rows = rows
        self.per_epoch = plan.per_epoch
        self.generators = generators
        count = support.mask.sum(dim=1, keepdim=True)  # (n_run, 1)
        self.counts = support.counts
        places = torch.arange(support.y.shape[1], device=support.y.device)
        places = places.expand_as(support.y)
        # with every item in every step, the order does not matter: nothing is drawn
        is_full = support.all_views is None and (plan.batch is None or plan.per_epoch == 1)
        self.full = (
            Batch(support.x, support.y, support.mask / count, at=places) if is_full else None
        )
        self.epoch: Epoch | None = None

    def __call__(self, step: int) -> Batch:
        if self.full is not None:
            return self.full
        step_of_epoch = step % self.per_epoch
        if self.epoch is None or step_of_epoch == 0:
            self.epoch = self._next_epoch()
        position = self.epoch.position[:, step_of_epoch]  # (n_run, b)
        y = self.support.y.gather(1, position)
        rows = self.rows.gather(1, position)
        views = self.support.all_views
        if views is None:
            x = self.matrix.gather(rows)
        else:
            x = unit(views[self.epoch.view[:, step_of_epoch], rows])
        return Batch(x, y, self.epoch.weight[:, step_of_epoch], at=position)

    def _next_epoch(self) -> Epoch:
        views = self.support.all_views
        n_view = 1 if views is None else len(views)
        epoch = draw_epoch(self.counts, self.generators, self.per_epoch, n_view)
        # one copy to the device an epoch, not one a step
        return Epoch(
            position=epoch.position.to(self.rows.device),
            view=epoch.view.to(self.rows.device),
            weight=epoch.weight.to(self.matrix.features),
        )

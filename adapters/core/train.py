"""The one training loop. It trains n_run runs at once; a single run is n_run = 1.

Nothing in a run depends on the others of its batch: it has its own generator, minibatches over its
own n items, and its own terms of the loss. A run alone and the same run among others differ only by
the rounding of the matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cliad.adapters.core.batches import Batches
from cliad.adapters.core.episode import Episode, Tensors, stack_validation
from cliad.adapters.core.head import Head, Hypers, Plan
from cliad.adapters.core.ops import per_run
from cliad.adapters.core.optimiser import Optimiser
from cliad.adapters.core.progress import report
from cliad.adapters.core.rows import WideRows


@dataclass(frozen=True, eq=False)
class Trained:
    """The parameters p that training ended with, and which runs (n_run,) diverged."""

    p: Tensors
    diverged: Tensor


def train(
    head: Head, plan: Plan, p: Tensors, c: Tensors, h: Hypers, batches: Batches, best: Best | None
) -> Trained:
    """Train the parameters p by a plan of at least one step; with `best`, keep the best of them."""
    p = {name: _trainable(value) for name, value in p.items()}
    parameters = list(p.values())
    optimiser = Optimiser(plan, p, h, head.rates(c, h))
    watch = LossWatch(plan)
    for step in range(plan.steps):
        loss = head.loss(p, c, h, batches(step))  # (n_run,)
        watch.see(step, loss)
        # a run's parameters are in its own term only, so that the sum's gradient is each run's own
        grads = torch.autograd.grad(loss.sum(), parameters)
        for parameter, grad in zip(parameters, grads, strict=True):
            # torch's fused steps read memory in the parameter's order, whatever the strides
            parameter.grad = grad.contiguous()
        optimiser.step(step)
        last = step + 1 == plan.steps
        if best is not None and (last or (step + 1) % plan.look == 0):
            best.look(p)
        report(step + 1, plan.steps)
    diverged = watch.diverged(batches.support.n_class)
    return Trained(p if best is None else best.p, diverged)


def _trainable(value: Tensor) -> Tensor:
    """A copy of a first parameter, in the memory order of its axes, that gradients are taken of."""
    copy = value.detach().clone(memory_format=torch.contiguous_format)
    return copy.requires_grad_()


class LossWatch:
    """Each run's loss (n_run,) at its first step and, as a mean, over its last epoch.

    It stays on the device until training is over: no step waits for it.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self.first = torch.zeros(())
        self.last = torch.zeros(())

    def see(self, step: int, loss: Tensor) -> None:
        """Note the loss (n_run,) of a step."""
        if step == 0:
            self.first = loss.detach()
            self.last = torch.zeros_like(self.first)
        if step + self.plan.per_epoch >= self.plan.steps:
            self.last = self.last + loss.detach() / self.plan.per_epoch

    def diverged(self, n_class: int) -> Tensor:
        """Which runs (n_run,) ended above their first loss and above that of guessing.

        Guessing costs log n_class.
        """
        limit = self.first.clamp(min=math.log(n_class))
        converged = self.last <= limit  # false for a loss that is not a number
        return ~converged


class Best:
    """The parameters of each run at its best validation accuracy so far.

    Of equally good ones the last: they have trained for longer.
    """

    def __init__(
        self,
        head: Head,
        c: Tensors,
        h: Hypers,
        episodes: Sequence[Episode],
        matrix: Tensor | WideRows,
    ):
        self.head = head
        self.c = c
        self.h = h
        self.validation = stack_validation(episodes, matrix)
        self.right = self.validation.mask.new_full(
            (len(episodes),), -1.0
        )  # less than any: the first look wins
        self.p: Tensors = {}

    @torch.no_grad()
    def look(self, p: Tensors) -> None:
        """Score p (n_run, ...) on validation, and copy the runs that are at least as good."""
        at_once = self.head.scored
        parts = [
            self.head.logits(p, self.c, self.h, part).argmax(dim=-1)
            for part in self.validation.blocks(at_once)
        ]
        predicted = torch.cat(parts, dim=1)  # (n_run, n_val)
        right = ((predicted == self.validation.y) * self.validation.mask).sum(dim=1)
        better = right >= self.right  # (n_run,)
        self.right = torch.where(better, right, self.right)
        for name, parameter in p.items():
            new = parameter.detach()
            old = self.p.get(name, new)
            # where() makes a new tensor: training goes on to change `parameter` in place
            self.p[name] = torch.where(per_run(better, new), new, old)

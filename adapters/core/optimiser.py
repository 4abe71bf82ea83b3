"""The learning rate at each step, and the optimiser of stacked parameters."""

from __future__ import annotations

import math
from collections import defaultdict
from types import EllipsisType

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from cliad.adapters.core.episode import Tensors
from cliad.adapters.core.head import Plan

BETAS = 0.9, 0.999  # of Adam and AdamW


def rate(plan: Plan, step: int, lr: float) -> float:
    """The learning rate at a step, from the highest one."""
    if step < plan.warmup:
        return (
            plan.warmup_rate
            if plan.warmup_rate is not None
            else lr * ((step + 1) / (plan.warmup + 1))
        )
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
        self.parts: dict[tuple[float, float], list[_Moved]] = defaultdict(
            list
        )  # by (highest rate, decay)
        for name, value in p.items():
            if name in self.plain:
                continue
            lr = rates[name][0] if name in rates else h["lr"]
            pairs = list(
                zip(lr.tolist(), h.get("weight_decay", torch.zeros_like(lr)).tolist(), strict=True)
            )
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
        values, mean, square, steps = (
            [getattr(one, part) for one in moved] for part in ("value", "mean", "square", "step")
        )
        grads = [self.p[one.name].grad[one.at] for one in moved]
        common = {"fused": True, "maximize": False, "lr": lr, "weight_decay": decay}
        if self.plan.optimiser == "sgd":
            return sgd(
                values,
                grads,
                mean,
                momentum=self.plan.momentum,
                dampening=0.0,
                nesterov=False,
                **common,
            )
        common |= {"amsgrad": False, "beta1": BETAS[0], "beta2": BETAS[1], "eps": self.plan.eps}
        {"adamw": adamw, "adam": adam}[self.plan.optimiser](
            values, grads, mean, square, [], steps, **common
        )


class _Moved:
    """A parameter of some runs, a view into the stacked one, with what the optimiser keeps of it."""

    def __init__(self, name: str, at: int | EllipsisType, value: Tensor):
        self.name, self.at, self.value = name, at, value
        self.mean, self.square, self.step = (
            torch.zeros_like(value),
            torch.zeros_like(value),
            torch.zeros((), device=value.device),
        )

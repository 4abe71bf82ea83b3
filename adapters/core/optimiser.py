"""The learning rate at each step, and the optimiser of stacked parameters."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from cliad.adapters.core.episode import Tensors
from cliad.adapters.core.head import Hypers, Plan
from cliad.adapters.core.ops import per_run

BETA1 = 0.9  # of Adam and AdamW: decay of the mean of the gradient
BETA2 = 0.999  # decay of the mean of its square


# A learning rate: a number of the host, or () on the device where it follows from the data there.
Rate = float | Tensor


def rate(plan: Plan, step: int, lr: Rate) -> Rate:
    """The learning rate at a step, from the highest one."""
    if step < plan.warmup:
        if plan.warmup_rate is not None:
            return plan.warmup_rate
        return lr * ((step + 1) / (plan.warmup + 1))
    if plan.schedule == "constant":
        return lr
    if plan.schedule == "cosine-epoch":
        # Dassl counts all epochs, so that with a warm-up the cosine does not reach its end
        done = ((step - plan.warmup) // plan.per_epoch) / (plan.steps / plan.per_epoch)
    else:
        done = (step - plan.warmup) / max(plan.steps - plan.warmup, 1)
    return lr * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True, eq=False)
class _Slice:
    """A parameter of all runs, or of one, with what the optimiser remembers of it.

    run: the run's number; None for all. value: a view into the stacked parameter.
    mean, square: running means of the gradient (SGD's momentum) and of its square.
    count: how many steps were made, as torch's kernels take it.
    """

    name: str
    run: int | None
    value: Tensor
    mean: Tensor
    square: Tensor
    count: Tensor

    @classmethod
    def of(cls, name: str, parameter: Tensor, run: int | None) -> _Slice:
        """A slice before its first step."""
        value = parameter.detach()
        if run is not None:
            value = value[run]
        return cls(
            name=name,
            run=run,
            value=value,
            mean=torch.zeros_like(value),
            square=torch.zeros_like(value),
            count=torch.zeros((), device=value.device),
        )

    def grad(self, p: Tensors) -> Tensor:
        """The gradient of the slice, from the stacked parameter's .grad."""
        grad = _grad(self.name, p[self.name])
        return grad if self.run is None else grad[self.run]


def _grad(name: str, parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise ValueError(f"expected a gradient of {name}, got none")
    return parameter.grad


class _Fused:
    """Slices with one highest rate and one decay, which torch's fused kernels move together."""

    def __init__(self, lr: Rate, decay: float, slices: Sequence[_Slice]):
        self.lr = lr
        self.decay = decay
        self.slices = slices
        # as the kernels take them; made once, for all steps
        self.values = [one.value for one in slices]
        self.means = [one.mean for one in slices]
        self.momenta: list[Tensor | None] = [*self.means]  # the type that torch's sgd asks for
        self.squares = [one.square for one in slices]
        self.counts = [one.count for one in slices]


@dataclass(frozen=True, eq=False)
class _Plain:
    """A parameter that takes a plain gradient step at each `every`-th step; rates lr (n_run,)."""

    name: str
    parameter: Tensor
    lr: Tensor
    every: int


class Optimiser:
    """SGD with momentum, Adam and AdamW for stacked parameters.

    Each run has its own learning rate and weight decay.

    torch's fused kernels do a step in one pass over memory, for tensors with one rate and one
    decay: the stacked parameters where all runs agree, else the slices of those runs that do.
    The kernels are called as functions: the optimiser classes take a second to load what only
    compilation needs, longer than a head trains.
    """

    def __init__(self, plan: Plan, p: Tensors, h: Hypers, rates: dict[str, tuple[Tensor, int]]):
        self.plan = plan
        self.p = p
        self.plain: list[_Plain] = []
        # A rate that was computed on the device stays there: to ask for its value would be to wait.
        computed = {id(lr): lr.unbind() for lr, _ in rates.values()}
        n_run = len(next(iter(p.values())))
        decay = h.host.get("weight_decay", [0.0] * n_run)
        slices: dict[tuple[Rate, float], list[_Slice]] = defaultdict(list)  # by (rate, decay)
        for name, parameter in p.items():
            if name in rates and rates[name][1] > 1:
                self.plain.append(_Plain(name, parameter, *rates[name]))
                continue
            lr: Sequence[Rate] = h.host["lr"] if name not in rates else computed[id(rates[name][0])]
            settings = list(zip(lr, decay, strict=True))  # of each run
            if len(set(settings)) == 1:
                slices[settings[0]].append(_Slice.of(name, parameter, None))
                continue
            for run, setting in enumerate(settings):
                slices[setting].append(_Slice.of(name, parameter, run))
        self.fused = [_Fused(lr, decay, group) for (lr, decay), group in slices.items()]

    @torch.no_grad()
    def step(self, step: int) -> None:
        """One step, from the gradients in .grad."""
        for group in self.fused:
            self._fused_step(group, rate(self.plan, step, group.lr))
        for plain in self.plain:
            if (step + 1) % plain.every == 0:
                value = plain.parameter
                value -= per_run(plain.lr, value) * _grad(plain.name, value)

    def _fused_step(self, group: _Fused, lr: Rate) -> None:
        grads = [one.grad(self.p) for one in group.slices]
        if self.plan.optimiser == "sgd":
            sgd(
                group.values,
                grads,
                group.momenta,
                fused=True,
                lr=lr,
                weight_decay=group.decay,
                momentum=self.plan.momentum,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )
            return
        kernel = adamw if self.plan.optimiser == "adamw" else adam
        kernel(
            group.values,
            grads,
            group.means,
            group.squares,
            [],
            group.counts,
            fused=True,
            lr=lr,
            weight_decay=group.decay,
            beta1=BETA1,
            beta2=BETA2,
            eps=self.plan.eps,
            amsgrad=False,
            maximize=False,
        )

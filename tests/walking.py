"""A head of one number whose way is known by hand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from cliad.adapters.core.episode import Episode
from cliad.adapters.core.head import Head, Plan, hyper


@dataclass(frozen=True)
class Walker(Head):
    """A parameter that walks up by one a step; it solves validation where it is at `target`."""

    target: float = hyper(3.0, "where validation is right", 0)
    pull: float = hyper(0.0, "how much of the walk the loss decides")
    begin: float = hyper(0.0, "where it starts")
    push: float = hyper(1.0, "how far a step goes")
    keep: str = hyper("best", "which parameters stay")
    per_epoch: int = hyper(1, "steps to an epoch")
    steps: int = hyper(7, "steps")

    vary: ClassVar[frozenset[str]] = frozenset({"target", "pull", "begin", "push"})
    space: ClassVar[Mapping[str, tuple]] = {"target": (2.0, 3.0)}
    needs: ClassVar[frozenset[str]] = frozenset()

    def plan(self, n, n_class):
        return Plan(
            steps=self.steps,
            per_epoch=self.per_epoch,
            batch=-(-n // self.per_epoch),
            optimiser="sgd",
            momentum=0.0,
            schedule="constant",
            keep=self.keep,
            look=3,
        )

    def bind(self, support, h):
        return {"one": support.x.new_ones(1)}

    def start(self, c, h, generators):
        return {"a": h["begin"].clone()}

    def logits(self, p, c, h, x):
        # the first coordinate is 1 in validation items, the second in support items
        a = p["a"][:, None]
        near = 0.3 - (a - h["target"][:, None]) ** 2
        first = near * x[..., 0] + h["pull"][:, None] * a * x[..., 1]
        return torch.stack([first, torch.zeros_like(first)], dim=-1)

    def loss(self, p, c, h, batch):
        # what moves the parameter counts for nothing, so that the loss is still that of the logits
        push = -h["push"] * p["a"]
        return super().loss(p, c, h, batch) + (push - push.detach())

    def rates(self, c, h):
        return {"a": (torch.ones_like(h["push"]), 1)}


def walk(n=1):
    """An episode for the Walker: n support items and one validation item, all of class 0."""
    rows = torch.arange(n)
    labels = torch.zeros(n, dtype=torch.long)
    features = torch.tensor([[0.0, 1.0]] * n + [[1.0, 0.0]])
    return Episode(features, rows, labels, torch.tensor([n]), labels[:1], None, 1.0, 1, 2)

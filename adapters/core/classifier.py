"""What fitting gives: a classifier, and the logits of many at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from cliad.adapters.core.episode import Episode, Support, Tensors
from cliad.adapters.core.head import Head, HeadError
from cliad.adapters.core.ops import unit

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
            return torch.cat(
                [
                    self.head.logits(self.p, self.c, h, part[None])[0]
                    for part in x.split(SCORED_AT_ONCE)
                ]
            )

    def rebind(self, text: Tensor) -> Classifier:
        """The same parameters for other classes, text (n_template, n_class, dim); HeadError where they have a class axis."""
        if self.head.per_class:
            raise HeadError(
                f"{type(self.head).__name__} has parameters for each of its classes; it cannot serve others"
            )
        none = text.new_zeros(1, 0, text.shape[-1])
        support = Support(
            none, none[..., 0].long(), none[..., 0], text, self.logit_scale, text.shape[1]
        )
        c = self.head.bind(support, hypers([self.head], text))
        return replace(
            self, c={name: value for name, value in c.items() if not name.startswith("_")}
        )


def logits_of(classifiers: Sequence[Classifier], x: Tensor) -> Tensor:
    """(n_run, n, n_class) logits of x (n, dim), or of x (n_run, n, dim) where each run sees its own; the runs are of one group.

    What is fitted is stacked again, so that all runs are scored by the products that trained them.
    """
    first = classifiers[0]
    join = lambda values: (
        values[0] if all(value is values[0] for value in values) else torch.cat(values)
    )
    p, c = (
        {
            name: join([getattr(one, part)[name] for one in classifiers])
            for name in getattr(first, part)
        }
        for part in ("p", "c")
    )
    x = x if "raw" in first.head.needs else unit(x)
    h, x = hypers([one.head for one in classifiers], x), x if x.dim() == 3 else x[None]
    with torch.no_grad():
        logits = torch.cat(
            [first.head.logits(p, c, h, part) for part in x.split(SCORED_AT_ONCE, dim=1)], dim=1
        )
    return logits.expand(len(classifiers), -1, -1)


def can_stack(classifiers: Sequence[Classifier]) -> bool:
    """Whether classifiers differ in `vary` fields and in the values of tensors only."""
    static = lambda one: [
        (f.name, getattr(one.head, f.name)) for f in fields(one.head) if f.name not in one.head.vary
    ]
    shapes = lambda one: [
        (name, value.shape) for part in (one.p, one.c) for name, value in part.items()
    ]
    key = lambda one: (type(one.head), static(one), shapes(one), one.logit_scale)
    return all(key(one) == key(classifiers[0]) for one in classifiers)


def hypers(heads: Sequence[Head], like: Tensor) -> Tensors:
    """h: each field of `vary` as a vector (n_run,)."""
    return {
        name: like.new_tensor([float(getattr(head, name)) for head in heads])
        for name in sorted(heads[0].vary)
    }


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

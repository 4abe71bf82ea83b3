"""What fitting gives: a classifier, and the logits of many classifiers at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cliad.adapters.core.calibrate import Calibration
from cliad.adapters.core.episode import Episode, Support, Tensors, stack
from cliad.adapters.core.head import Head, HeadError, hypers, static_fields
from cliad.adapters.core.ops import on_host, unit
from cliad.adapters.core.rows import WideRows


def _trained_well() -> Tensor:
    """What `Classifier.failed` is where nothing was trained."""
    return torch.tensor(False)


@dataclass(frozen=True, eq=False)
class Classifier:
    """What fitting gives: a head with its parameters p and constants c, each (1, ...).

    failed (): true where its loss rose in training (see `train.LossWatch`), or parameters are not
    finite. It stays on the device until somebody asks for `diverged`.
    calibration: how sure it may be, where that was found out of fold.
    """

    head: Head
    p: Tensors
    c: Tensors
    logit_scale: float
    failed: Tensor = field(default_factory=_trained_well)
    calibration: Calibration | None = None

    @property
    def diverged(self) -> bool:
        """Whether training went wrong."""
        return bool(on_host(self.failed))

    def logits(self, x: Tensor | WideRows) -> Tensor:
        """(n, n_class) float32 logits of features x (n, dim).

        x: raw features for a head that needs them, raw or unit rows for others; wide rows for one
        with columns, which are gathered block by block.
        """
        parts = []
        with torch.no_grad():
            for part in blocks(self.head, x, self.head.scored):
                h = hypers([self.head], part)
                logits = self.head.logits(self.p, self.c, h, part)  # (1, n, n_class)
                parts.append(logits[0])
            return torch.cat(parts)

    def rebind(self, support: Support) -> Classifier:
        """The same parameters for other classes.

        support: of one run, with what the head needs of them (see `Head.new_classes`): their
            texts, as `Support.of_text` has them, and images of them, as `support_of` has those.

        Raises:
            HeadError: the parameters have a class axis, or there is no text tower where the head
                needs one.
        """
        if self.head.new_classes == "no":
            name = type(self.head).__name__
            raise HeadError(
                f"{name} has parameters for each of its classes; it cannot serve others"
            )
        if "tower" in self.head.needs and support.tower is None:
            name = type(self.head).__name__
            raise HeadError(f"{name} makes the texts of other classes by a text tower; give one")
        h = hypers([self.head], support.mask)
        with torch.no_grad():
            c = self.head.bind(support, h)
            p = self.head.finish(self.p, c, h)
        return replace(self, p=lasting(p), c=lasting(c), logit_scale=support.logit_scale)


def lasting(tensors: Tensors) -> Tensors:
    """Without those named _like_this, which served training only."""
    return {name: value for name, value in tensors.items() if not name.startswith("_")}


def logits_of(classifiers: Sequence[Classifier], x: Tensor | WideRows | Support) -> Tensor:
    """(n_run, n, n_class) logits of classifiers of one group, see `can_stack`.

    x (n, dim) for all runs, or (n_run, n, dim) where each run sees its own items, as it does of a
    support. What was fitted is stacked again, so that all runs are scored by the products that
    trained them.
    """
    head = classifiers[0].head
    p = _stacked([classifier.p for classifier in classifiers])
    c = _stacked([classifier.c for classifier in classifiers])
    heads = [classifier.head for classifier in classifiers]
    with torch.no_grad():
        parts = [
            head.logits(p, c, hypers(heads, part), part) for part in blocks(head, x, head.scored)
        ]
        logits = torch.cat(parts, dim=1)
    # without parameters or hyper-parameters of their own, all runs have the same logits, once
    return logits.expand(len(classifiers), -1, -1)


def _stacked(fitted: Sequence[Tensors]) -> Tensors:
    """The tensors (1, ...) of all classifiers as (n_run, ...); (1, ...) where all share one."""
    stacked = {}
    for name, first in fitted[0].items():
        values = [tensors[name] for tensors in fitted]
        shared = all(value is first for value in values)
        stacked[name] = first if shared else torch.cat(values)
    return stacked


def linear_map(classifiers: Sequence[Classifier], axes: Tensor) -> tuple[Tensor, Tensor]:
    """W (n_run, n_class, dim) and b (n_run, n_class) of linear heads, see `can_stack`.

    axes (dim, dim): the identity. Their logits of unit rows x (raw rows for a head that needs them)
    are W x + b. Of another head they are numbers without a meaning: compare its logits elsewhere.
    """
    # Axes: d feature dimensions, c classes, n rows. Where logits are W x + b, those at e_d and at
    # -e_d are W[:, d] + b and -W[:, d] + b. Half their difference is the column W[:, d], half
    # their sum is b, whatever d is. Opposite unit vectors stay unit vectors, so this also works
    # for a head that normalises what it gets.
    plus = logits_of(classifiers, axes).mT  # (n_run, c, d)
    minus = logits_of(classifiers, -axes).mT
    return (plus - minus) / 2, ((plus + minus) / 2).mean(dim=2)


def can_stack(classifiers: Sequence[Classifier]) -> bool:
    """Whether classifiers differ in `vary` fields and in the values of tensors only."""
    first = _stack_key(classifiers[0])
    return all(_stack_key(classifier) == first for classifier in classifiers)


def _stack_key(classifier: Classifier) -> tuple[object, ...]:
    return (
        type(classifier.head),
        static_fields(classifier.head),
        [(name, value.shape) for name, value in classifier.p.items()],
        [(name, _shape(value)) for name, value in classifier.c.items()],
        classifier.logit_scale,
    )


def _shape(constant: Tensor) -> object:
    """The shape of a constant; a text tower, which is no tensor, is the same or another."""
    return constant.shape if isinstance(constant, Tensor) else id(constant)


def rows_for(head: Head, x: Tensor) -> Tensor:
    """Features (..., dim) as a head takes them: raw where it needs "raw", else unit rows."""
    return x if "raw" in head.needs else unit(x)


def blocks(head: Head, x: Tensor | WideRows | Support, at_once: int) -> Iterator[Tensor]:
    """Rows in blocks (1 or n_run, at most at_once, width), each as the head takes it.

    x: (n, dim) or (n_run, n, dim), or what rows are gathered from. Of none there is one, empty.
    """
    if isinstance(x, WideRows):
        for block in x.blocks(at_once):
            yield rows_for(head, block)[None]
    elif isinstance(x, Support):
        for block in x.blocks(at_once):
            yield rows_for(head, block)
    else:
        x = rows_for(head, x)
        yield from (x[None] if x.dim() == 2 else x).split(at_once, dim=1)


def width_of(x: Tensor | WideRows) -> int:
    """The numbers of a row of x (n, width)."""
    return x.width if isinstance(x, WideRows) else x.shape[-1]


def inputs(head: Head, episode: Episode) -> Tensor | WideRows:
    """The feature matrix (n_row, dim) as the head takes it, see Head.needs."""
    if head.columns():
        return episode.with_columns(head.columns())
    return rows_for(head, episode.features)


def support_of(head: Head, episodes: Sequence[Episode]) -> tuple[Support, Tensor]:
    """The support of runs as the head takes it, and its row numbers (n_run, n).

    episodes: of one group, see `fit.group_key`.
    """
    support, rows = stack(episodes, inputs(head, episodes[0]))
    if "views" in head.needs | head.optional_inputs:
        support = replace(support, all_views=episodes[0].views)
    return support, rows


def validation(head: Head, episode: Episode) -> tuple[Tensor | WideRows, Tensor]:
    """Validation rows as `Classifier.logits` takes them, and labels (n_val,)."""
    x, y = episode.val
    if head.columns():
        return episode.with_columns(head.columns()).take(episode.val_index), y
    return x, y

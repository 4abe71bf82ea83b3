"""What a head is fitted on: one run's episode, and the stacked support of many runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from cliad.adapters.core.rows import HeldColumn, WideRows
from cliad.adapters.core.tower import TextTower

Tensors = dict[str, Tensor]  # every tensor (n_run, ...), or (1, ...) where all runs share it


@dataclass(frozen=True, eq=False)
class Episode:
    """One run's support and validation, as row numbers into one feature matrix.

    Many episodes share the matrix. An episode has no test data: a choice made on it cannot have
    seen the test set.

    Features, texts and views are on the device where heads train; row numbers and labels are on
    the host, where their counts are known without waiting for the device.

    features (n_row, dim): raw, float32.
    index (n,), y (n,): rows and labels of the support.
    val_index (n_val,), val_y (n_val,): rows and labels of validation.
    text (n_template, n_class, dim): raw, a zero row where a class has no such sentence; or None.
    logit_scale: what cosines are multiplied by.
    views (n_view, n_row, dim): raw augmented views of the rows; or None.
    pre_projection (n_row, dim_pre): what entered the encoder's last projection; or None.
    tokens (n_row, n_token, dim): the patches of each image in the space of features; or None.
        Both have the precision of the cache.
    names: of the classes, in the order of their labels; empty where nobody knows them.
    tower: the encoder's text tower, on the device; or None.
    """

    features: Tensor
    index: Tensor
    y: Tensor
    val_index: Tensor
    val_y: Tensor
    text: Tensor | None
    logit_scale: float
    seed: int
    n_class: int
    views: Tensor | None = None
    pre_projection: Tensor | None = None
    tokens: Tensor | None = None
    names: tuple[str, ...] = ()
    tower: TextTower | None = None

    @property
    def shots(self) -> float:
        """Support images per class, their mean where classes are uneven."""
        return len(self.index) / self.n_class

    @property
    def val(self) -> tuple[Tensor, Tensor]:
        """Validation rows (n_val, dim) and labels (n_val,)."""
        device = self.features.device
        return self.features[self.val_index.to(device)], self.val_y.to(device)

    def need_text(self) -> Tensor:
        """The class texts.

        Raises:
            ValueError: there are none; `fit.require` tells users so before.
        """
        if self.text is None:
            raise ValueError("expected class texts, got an episode without them")
        return self.text

    def with_columns(self, names: Sequence[str]) -> WideRows:
        """The feature matrix, raw, with these columns of it behind.

        Raises:
            ValueError: it lacks one of them; `fit.require` tells users so before.
        """
        columns = []
        for name in names:
            values = getattr(self, name)
            if values is None:
                raise ValueError(f"expected an episode with {name}, got one without")
            columns.append(HeldColumn(values))
        return WideRows(self.features, tuple(columns))


@dataclass(frozen=True, eq=False)
class Support:
    """The support sets of n_run runs, stacked; shorter ones are padded with rows of zeros to n.

    items: x (n_run, n, dim) itself, or the matrix that `rows` points into.
    y (n_run, n): labels, 0 in the padding.
    mask (n_run, n): 1.0 for an item, 0.0 for padding.
    text (n_template, n_class, dim): raw, or None.
    counts: how many items each run has; they come before its padding.
    largest_class: the most items that a class of any run has.
    rows (n_run, n): row numbers in the matrix and in `all_views`; None where there are neither.
    all_views (n_view, n_row, dim): raw views, which all runs share; or None.
    names, tower: as in `Episode`.
    """

    items: Tensor | WideRows
    y: Tensor
    mask: Tensor
    text: Tensor | None
    logit_scale: float
    n_class: int
    counts: Sequence[int] = field(kw_only=True)
    largest_class: int = field(kw_only=True)
    rows: Tensor | None = None
    all_views: Tensor | None = None
    names: tuple[str, ...] = ()
    tower: TextTower | None = None

    @cached_property
    def x(self) -> Tensor:
        """(n_run, n, width): unit rows, or raw ones where the head needs "raw".

        Gathered on first use, all at once: of wide rows that may be gigabytes.
        """
        if isinstance(self.items, Tensor):
            return self.items
        return self._gathered(self.items, slice(None))

    def blocks(self, at_once: int) -> Iterator[Tensor]:
        """All items in blocks (n_run, at most at_once, width); of no items there is one, empty."""
        for start in range(0, max(self.mask.shape[1], 1), at_once):
            items = slice(start, start + at_once)
            # Narrow rows are few numbers: they are kept.
            if isinstance(self.items, WideRows) and self.items.columns:
                yield self._gathered(self.items, items)
            else:
                yield self.x[:, items]

    def _gathered(self, matrix: WideRows, items: slice) -> Tensor:
        if self.rows is None:
            raise ValueError("expected the rows of the items in their matrix, got None")
        return matrix.gather(self.rows[:, items]) * self.mask[:, items, None]

    @property
    def width(self) -> int:
        """The numbers of an item, known before any is gathered."""
        return self.items.shape[-1] if isinstance(self.items, Tensor) else self.items.width

    @classmethod
    def of_text(
        cls,
        text: Tensor,
        logit_scale: float,
        names: tuple[str, ...] = (),
        tower: TextTower | None = None,
    ) -> Support:
        """The support of one run that has no items, but texts (n_template, n_class, dim).

        names, tower: as in `Episode`, for a head that makes its texts by itself.
        """
        no_items = text.new_zeros(1, 0, text.shape[-1])  # (n_run, n, dim)
        return cls(
            items=no_items,
            y=no_items[..., 0].long(),
            mask=no_items[..., 0],
            text=text,
            logit_scale=logit_scale,
            n_class=text.shape[1],
            counts=[0],
            largest_class=0,
            names=names,
            tower=tower,
        )

    def per_view(self, function: Callable[[Tensor], Tensor] | None = None) -> Tensor | None:
        """`function` of the views (n_view, n_row, dim), picked for the support.

        The function is computed once for all runs. Returns (n_run, ..., n, dim), zeros in the
        padding; None where there are no views. Without a function: the views themselves.
        """
        if self.all_views is None:
            return None
        values = self.all_views if function is None else function(self.all_views)
        picked = values[..., self.rows, :]  # (..., n_run, n, dim)
        picked = picked.movedim(-3, 0)  # (n_run, ..., n, dim)
        between = [1] * (picked.dim() - 3)
        return picked * self.mask.view(len(picked), *between, -1, 1)

    @property
    def shots(self) -> Tensor:
        """(n_run,) support images per class, their mean where classes are uneven.

        Not below 1 / n_class, so that it can be divided by.
        """
        return self.mask.sum(dim=1).clamp(min=1) / self.n_class

    def need_text(self) -> Tensor:
        """The class texts.

        Raises:
            ValueError: there are none; `fit.require` tells users so before.
        """
        if self.text is None:
            raise ValueError("expected class texts, got a support without them")
        return self.text

    def need_tower(self) -> TextTower:
        """The text tower.

        Raises:
            ValueError: there is none; `fit.require` tells users so before.
        """
        if self.tower is None:
            raise ValueError("expected a text tower, got a support without one")
        return self.tower

    @property
    def scale(self) -> Tensor:
        """The logit scale (1, 1, 1).

        It has a run axis as every constant has: those of several runs stack to (n_run, 1, 1).
        """
        return self.mask.new_full((1, 1, 1), self.logit_scale)

    @property
    def onehot(self) -> Tensor:
        """(n_run, n, n_class); padding is rows of zeros."""
        # Not F.one_hot, which looks for labels that are too large and so waits for the device.
        classes = torch.arange(self.n_class, device=self.y.device)
        return (self.y[..., None] == classes) * self.mask[..., None]


@dataclass(frozen=True, eq=False)
class Batch:
    """Items of all runs, from which a step of training takes its loss.

    x (n_run, b, dim): features as the head takes them; of an augmented view where there are views.
    y (n_run, b): labels.
    weight (n_run, b): they sum to 1 in each run; what pads a shorter batch has weight 0.
    at (n_run, b): the items' places in the support, 0 in the padding.
    """

    x: Tensor
    y: Tensor
    weight: Tensor
    at: Tensor


def without_validation(episode: Episode) -> Episode:
    """The episode without its validation items."""
    return replace(episode, val_index=episode.val_index[:0], val_y=episode.val_y[:0])


def of_classes(episode: Episode, classes: Tensor, text: Tensor) -> Episode:
    """The episode's items of some classes (k,) in ascending order, labelled 0 to k - 1.

    text (n_template, k, dim) is theirs.
    """
    in_support = torch.isin(episode.y, classes)
    in_validation = torch.isin(episode.val_y, classes)
    names = episode.names  # () where they are not known
    return replace(
        episode,
        index=episode.index[in_support],
        y=torch.searchsorted(classes, episode.y[in_support]),
        val_index=episode.val_index[in_validation],
        val_y=torch.searchsorted(classes, episode.val_y[in_validation]),
        text=text,
        names=tuple(names[label] for label in classes.tolist()) if names else (),
        n_class=len(classes),
    )


def stack(episodes: Sequence[Episode], features: Tensor | WideRows) -> tuple[Support, Tensor]:
    """The support of all runs, padded to the longest, and its row numbers (n_run, n).

    features (n_row, dim): the matrix that the row numbers point into, as the head takes it.
    """
    matrix = WideRows(features) if isinstance(features, Tensor) else features
    features = matrix.features
    counts = [len(episode.index) for episode in episodes]
    n = max(counts)
    # Padded on the host, and copied to the device once.
    rows = _padded([episode.index for episode in episodes], n).to(features.device)
    y = _padded([episode.y for episode in episodes], n).to(features.device)
    ones = [torch.ones_like(episode.index, dtype=features.dtype) for episode in episodes]
    mask = _padded(ones, n).to(features.device)
    first = episodes[0]
    support = Support(
        items=matrix,
        y=y,
        mask=mask,
        text=first.text,
        logit_scale=first.logit_scale,
        n_class=first.n_class,
        counts=counts,
        largest_class=max(_largest_class(episode.y) for episode in episodes),
        rows=rows,
        names=first.names,
        tower=first.tower,
    )
    return support, rows


def _largest_class(y: Tensor) -> int:
    """How many of the labels y (n,), on the host, are of the most frequent class."""
    return max(Counter(y.tolist()).values(), default=0)


def stack_validation(episodes: Sequence[Episode], features: Tensor | WideRows) -> Support:
    """The validation items of all runs, stacked and padded as `stack` does with the support."""
    as_support = [
        replace(episode, index=episode.val_index, y=episode.val_y) for episode in episodes
    ]
    validation, _ = stack(as_support, features)
    return validation


def _padded(values: Sequence[Tensor], n: int) -> Tensor:
    """Vectors of at most n numbers as rows (n_run, n), with zeros behind."""
    rows = [F.pad(value, (0, n - len(value))) for value in values]
    return torch.stack(rows)

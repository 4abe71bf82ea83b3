"""Wide rows: features, and behind them the columns of the cache that a head asks for.

A row may have tens of thousands of numbers then, of which a step needs those of one minibatch. So
columns stay where they are, and as they are stored, until rows of them are gathered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# The arrays of a cache that may stand behind a feature, in the order in which they stand there.
COLUMNS = ("pre_projection", "tokens")


class Column(Protocol):
    """An array (n_row, ...) of a cache, in its own precision."""

    def __len__(self) -> int: ...

    @property
    def width(self) -> int:
        """The numbers of a row."""

    def gather(self, rows: Tensor) -> Tensor:
        """(k, width) of the rows (k,)."""

    def take(self, rows: Tensor) -> Column:
        """The column of these rows (k,) alone."""


@dataclass(frozen=True, eq=False)
class HeldColumn:
    """A column in memory: values (n_row, ...), of any precision."""

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    @property
    def width(self) -> int:
        return self.values[:1].flatten(1).shape[1]

    def gather(self, rows: Tensor) -> Tensor:
        return self.values.index_select(0, rows.to(self.values.device)).flatten(1)

    def take(self, rows: Tensor) -> HeldColumn:
        return HeldColumn(self.values.index_select(0, rows.to(self.values.device)))


@dataclass(frozen=True, eq=False)
class WideRows:
    """Features (n_row, dim), and columns behind them: rows of `width` numbers.

    Gathered rows have the type and device of the features.
    """

    features: Tensor
    columns: tuple[Column, ...] = ()

    def __post_init__(self) -> None:
        for column in self.columns:
            if len(column) != len(self.features):
                raise ValueError(
                    f"expected columns of {len(self.features)} rows, got one of {len(column)}"
                )

    def __len__(self) -> int:
        return len(self.features)

    @property
    def width(self) -> int:
        """The numbers of a row."""
        return self.features.shape[1] + sum(column.width for column in self.columns)

    def gather(self, rows: Tensor) -> Tensor:
        """(..., width) of the rows (...)."""
        flat = rows.flatten()
        features = self.features.index_select(0, flat.to(self.features.device))
        behind = [column.gather(flat).to(self.features) for column in self.columns]
        return torch.cat([features, *behind], dim=1).view(*rows.shape, -1)

    def take(self, rows: Tensor) -> WideRows:
        """These rows (k,) alone, as wide and as narrow in memory."""
        features = self.features.index_select(0, rows.to(self.features.device))
        return WideRows(features, tuple(column.take(rows) for column in self.columns))

    def blocks(self, at_once: int) -> Iterator[Tensor]:
        """All rows in their order, (at most at_once, width) each."""
        for rows in torch.arange(len(self), device=self.features.device).split(at_once):
            yield self.gather(rows)

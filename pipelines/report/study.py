"""What a report is about: result rows, by block, data set, method and number of shots."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from cliad.pipelines.report.methods import Method, setting_of
from cliad.pipelines.report.statistics import Summary, summarise
from cliad.pipelines.report.zero_shot_settings import equals_zero_shot


@dataclass(frozen=True, order=True)
class Block:
    """What all rows of a table share.

    Rows of different blocks are never averaged, nor compared, save where `across_blocks.py` sets
    them side by side.

    source: the data set that heads were trained on, where they are scored on others; "" where they
    are scored on their own.
    """

    encoder: str
    prompts: str
    protocol: str
    source: str = ""

    def __str__(self) -> str:
        text = f"{self.encoder}, prompts {self.prompts}, protocol {self.protocol}"
        if self.source:
            text += f", trained on {self.source}, scored on others"
        return text


def block_of(row: Mapping) -> Block:
    """The block that a row belongs to."""
    return Block(row["encoder"], row["prompts"], row["protocol"], row["source"])


class CellKey(NamedTuple):
    """What the rows of one cell share; they differ in the seed only."""

    block: Block
    dataset: str
    method: Method
    shots: int


@dataclass(frozen=True)
class Study:
    """Rows, cleaned: each run once, each data set under a name of its own (see `study_of`).

    repeated: how many rows were left out, as a later row is of the same run.
    several_caches: whether a data set stands under several names, one for each of its caches.
    """

    rows: Sequence[dict]
    repeated: int = 0
    several_caches: bool = False

    @cached_property
    def varying(self) -> dict[str, list[str]]:
        """By head: hyper-parameters that were given different values, in any of its rows."""
        values: dict[tuple[str, str], set[object]] = defaultdict(set)
        for row in self.rows:
            for name, value in setting_of(row).items():
                values[row["head"], name].add(value)
        varying: dict[str, list[str]] = defaultdict(list)
        for head, name in sorted(values):
            if len(values[head, name]) > 1:
                varying[head].append(name)
        return dict(varying)

    def method(self, row: Mapping) -> Method:
        """The method of a row."""
        setting = setting_of(row)
        names = self.varying.get(row["head"], [])
        # Rows that other tools wrote may lack a hyper-parameter.
        shown = [(name, setting[name]) for name in names if name in setting]
        return Method(row["head"], row["selected_on"], tuple(shown))

    @cached_property
    def cells(self) -> dict[CellKey, list[dict]]:
        """The rows of each cell."""
        cells: dict[CellKey, list[dict]] = defaultdict(list)
        for row in self.rows:
            key = CellKey(block_of(row), row["dataset"], self.method(row), row["shots"])
            cells[key].append(row)
        return dict(cells)

    @cached_property
    def blocks(self) -> list[Block]:
        """All blocks, sorted."""
        return sorted({key.block for key in self.cells})

    def datasets(self, block: Block) -> list[str]:
        """The data sets of a block, sorted."""
        return sorted({key.dataset for key in self.cells if key.block == block})

    def methods(self, block: Block) -> list[Method]:
        """The methods of a block, in the order of a table's lines."""
        methods = {key.method for key in self.cells if key.block == block}
        return sorted(methods, key=Method.sort_key)

    def shots(self, block: Block) -> list[int]:
        """The numbers of shots of a block, sorted."""
        return sorted({key.shots for key in self.cells if key.block == block})

    @cached_property
    def zero_shot_settings(self) -> set[Method]:
        """The methods that are zero-shot under the name of another head, such as one of alpha 0."""
        settings: dict[Method, dict[str, object]] = {}
        for row in self.rows:
            # Rows of one method differ in no hyper-parameter that was set.
            settings.setdefault(self.method(row), setting_of(row))
        return {
            method for method, setting in settings.items() if equals_zero_shot(method.head, setting)
        }

    def own_methods(self, block: Block) -> list[Method]:
        """The methods of a block without those that are zero-shot under another name."""
        return [method for method in self.methods(block) if method not in self.zero_shot_settings]

    def leading(self, block: Block) -> list[Method]:
        """One method for each head and way of selecting: the one nearest to the head's defaults.

        A setting that is zero-shot under another name never stands for a head.
        """
        return first_of_each_head(sorted(self.own_methods(block), key=lambda m: m.distance))

    def rows_of(self, block: Block, method: Method, shots: int) -> list[dict]:
        """The rows of a method over all data sets of a block."""
        rows = []
        for key, cell in self.cells.items():
            if (key.block, key.method, key.shots) == (block, method, shots):
                rows += cell
        return rows

    def cell(self, block: Block, dataset: str | None, method: Method, shots: int) -> Summary | None:
        """Mean and interval over seeds; None where there is no run, or one of them diverged.

        Args:
            dataset: None is the average over all data sets of the block.
        """
        if dataset is None:
            return self.average(block, method, shots)
        rows = self.cells.get(CellKey(block, dataset, method, shots), [])
        accuracies = without_none([row.get("top1") for row in rows])
        return summarise(accuracies) if accuracies else None

    def line(
        self, block: Block, dataset: str | None, method: Method, shots: Sequence[int]
    ) -> list[Summary | None]:
        """The cells of a method at several numbers of shots; see `cell`."""
        return [self.cell(block, dataset, method, n) for n in shots]

    def average(self, block: Block, method: Method, shots: int) -> Summary | None:
        """Mean and interval of the average over all data sets of a block, taken seed by seed.

        None where a data set or a seed is missing, or a run diverged.
        """
        by_dataset: list[dict[int, float | None]] = []
        for dataset in self.datasets(block):
            rows = self.cells.get(CellKey(block, dataset, method, shots), [])
            by_dataset.append({row["seed"]: row["top1"] for row in rows})
        seeds = by_dataset[0].keys()
        for top1 in by_dataset:
            # Averages over different seeds would not differ by the method alone.
            if top1.keys() != seeds:
                return None
        means = []
        for seed in sorted(seeds):
            accuracies = without_none([top1[seed] for top1 in by_dataset])
            # A run that diverged has no accuracy.
            if accuracies is None:
                return None
            means.append(statistics.fmean(accuracies))
        return summarise(means) if means else None

    def zero_shot(self, block: Block, dataset: str | None) -> float | None:
        """Zero-shot accuracy on a data set; None where no row holds it.

        Args:
            dataset: None is the average over all data sets of the block.
        """
        if dataset is None:
            names = self.datasets(block)
            accuracies = without_none([self.zero_shot(block, name) for name in names])
            return statistics.fmean(accuracies) if accuracies else None
        # Zero-shot draws no images, so any row of the data set holds the same number. Rows of other
        # tools may lack it.
        for key, rows in self.cells.items():
            if (key.block, key.dataset) == (block, dataset):
                for row in rows:
                    if row.get("zero_shot_top1") is not None:
                        return row["zero_shot_top1"]
        return None


def values_of(rows: Iterable[Mapping], word: str) -> list:
    """The different values of a word of rows, sorted."""
    return sorted({row[word] for row in rows})


def without_none(values: Sequence[float | None]) -> list[float] | None:
    """The values, if none of them is None; else None."""
    numbers = [value for value in values if value is not None]
    return numbers if len(numbers) == len(values) else None


def first_of_each_head(methods: Sequence[Method]) -> list[Method]:
    """The first method of each head and way of selecting, in the order of a table's lines."""
    first: dict[tuple[str, str], Method] = {}
    for method in methods:
        first.setdefault((method.head, method.selected_on), method)
    return sorted(first.values(), key=Method.sort_key)


def best_of(cells: Sequence[Summary | None]) -> int | None:
    """The position of the highest mean, the first of equal ones; None where there is no mean."""
    best = None
    highest = -1.0  # below any accuracy
    for position, cell in enumerate(cells):
        if cell is not None and cell.mean > highest:
            best = position
            highest = cell.mean
    return best

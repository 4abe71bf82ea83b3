"""Tables of accuracy: method by shots for each data set, method by data set for each shots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cliad.pipelines.report.methods import Method, show_shots
from cliad.pipelines.report.statistics import Summary
from cliad.pipelines.report.study import Block, Study, best_of

TABLE_LEGEND = (
    "Test accuracy in %, mean ± standard deviation over seeds. Best in bold; ≈ lies within the"
    " best one's 95 % interval."
)

Mark = Literal["best", "tie", ""]


@dataclass(frozen=True)
class TableLine:
    """A method and its cells, one for each column."""

    method: Method
    cells: Sequence[Summary | None]


@dataclass(frozen=True)
class Table:
    """Accuracies: a line for each method.

    corner: what the column names are; dataset: the one that all cells are of, "" where the columns
    are data sets.
    """

    title: str
    corner: str
    columns: Sequence[str]
    lines: Sequence[TableLine]
    dataset: str = ""

    def marks(self, line: int) -> list[Mark]:
        """For each cell of a line: "best", "tie" (inside the best one's 95 % interval) or ""."""
        return [self._mark(line, column) for column in range(len(self.columns))]

    def _mark(self, line: int, column: int) -> Mark:
        # Marks compare methods, so they go down a column.
        cells = [other.cells[column] for other in self.lines]
        position = best_of(cells)
        cell = cells[line]
        # A method alone is the best of nothing.
        if cell is None or position is None or len(self.lines) < 2:
            return ""
        if line == position:
            return "best"
        best = cells[position]
        is_tie = best is not None and cell.within(best)
        return "tie" if is_tie else ""


def tables(study: Study) -> Iterator[Table]:
    """All tables of a study, block by block."""
    for block in study.blocks:
        yield from block_tables(study, block)


def block_tables(study: Study, block: Block) -> Iterator[Table]:
    """All tables of a block."""
    yield from by_shots(study, block)
    if len(study.datasets(block)) > 1:
        yield from by_dataset(study, block)


def by_shots(study: Study, block: Block) -> Iterator[Table]:
    """Method x shots: a table for each data set, and one for their average where several are."""
    datasets = study.datasets(block)
    for dataset in datasets:
        yield _shots_table(study, block, dataset, f"{dataset} ({block})")
    if len(datasets) > 1:
        yield _shots_table(study, block, None, f"Average over {len(datasets)} data sets ({block})")


def _shots_table(study: Study, block: Block, dataset: str | None, title: str) -> Table:
    shots = study.shots(block)
    methods = study.methods(block)
    lines = [TableLine(method, study.line(block, dataset, method, shots)) for method in methods]
    name = dataset
    if name is None:
        name = f"{block.source} -> average" if block.source else "average"
    return Table(title, "shots", list(map(str, shots)), _without_empty(lines), name)


def by_dataset(study: Study, block: Block) -> Iterator[Table]:
    """Method x data set and average: one table for each number of shots."""
    datasets = study.datasets(block)
    for shots in study.shots(block):
        lines = []
        for method in study.methods(block):
            cells = [study.cell(block, dataset, method, shots) for dataset in datasets]
            cells.append(study.average(block, method, shots))
            lines.append(TableLine(method, cells))
        title = f"{show_shots(shots)} ({block})"
        yield Table(title, "data set", [*datasets, "Average"], _without_empty(lines))


def _without_empty(lines: Sequence[TableLine]) -> list[TableLine]:
    # A method may have runs at other numbers of shots, or on other data sets, only.
    return [line for line in lines if any(line.cells)]


def percent(cell: Summary | None, plus: str = "±") -> str:
    """`95.1 ± 0.3`: mean and standard deviation in %."""
    if cell is None:
        return "–"
    mean = f"{100 * cell.mean:.1f}"
    if cell.std is None:
        return mean
    return f"{mean} {plus} {100 * cell.std:.1f}"

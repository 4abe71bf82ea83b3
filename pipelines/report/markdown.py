"""A study as Markdown: notes, comparisons, and a table for each data set and number of shots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cliad.pipelines.report.across_blocks import ACROSS_LEAD, ACROSS_TITLE, side_by_side
from cliad.pipelines.report.best_against_next import (
    BEST_LEAD,
    BEST_TITLE,
    Comparison,
    caution,
    comparison_tables,
)
from cliad.pipelines.report.methods import show_shots
from cliad.pipelines.report.notes import notes_of
from cliad.pipelines.report.study import Study
from cliad.pipelines.report.tables import TABLE_LEGEND, Table, percent, tables

# What begins a column, code, a link or picture, stress and a formula.
MARKS = "|`[]*$"
# Formats of one cell by its mark.
MARKED_CELL = {"best": "**{}**", "tie": "≈ {}", "": "{}"}


def markdown(study: Study) -> str:
    """The whole report."""
    notes = [f"- {_escape(note)}" for note in notes_of(study)]
    parts = [
        TABLE_LEGEND,
        "\n".join(notes),
        *_best_against_next(study),
        *_across_blocks(study),
    ]
    parts += map(_method_table, tables(study))
    return "\n\n".join(parts) + "\n"


def _escape(text: str) -> str:
    """Text that no Markdown reader takes for a column, a tag, a link, a formula or a new line."""
    # First of all, or it would double the backslashes of the next step.
    text = text.replace("\\", "\\\\")
    for mark in MARKS:
        text = text.replace(mark, f"\\{mark}")
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return " ".join(text.splitlines())


def _table(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]], *, n_name: int) -> str:
    """A table of ready cells; the first `n_name` columns are names, all others numbers."""
    header = list(map(_escape, heads))
    # A colon at the right sets a column of numbers to the right.
    rule = ["---"] * n_name + ["---:"] * (len(heads) - n_name)
    rows = [f"| {' | '.join(cells)} |" for cells in [header, rule, *lines]]
    return "\n".join([f"### {_escape(title)}", "", *rows])


def _method_table(table: Table) -> str:
    lines = []
    for number, line in enumerate(table.lines):
        cells = [_escape(line.method.label), _escape(line.method.selected_on)]
        for cell, mark in zip(line.cells, table.marks(number), strict=True):
            cells.append(MARKED_CELL[mark].format(percent(cell)))
        lines.append(cells)
    heads = [table.corner, "selected on", *table.columns]
    return _table(table.title, heads, lines, n_name=2)


def _best_against_next(study: Study) -> Iterator[str]:
    """Whether the best head is better than the next one."""
    comparisons = comparison_tables(study)
    if comparisons:
        yield f"## {BEST_TITLE}\n\n{BEST_LEAD} {caution(comparisons)}"
    for block, table in comparisons.items():
        heads = ["data set", *map(show_shots, study.shots(block))]
        lines = []
        for title, line in table.items():
            lines.append([_escape(title), *map(_comparison_cell, line)])
        yield _table(str(block), heads, lines, n_name=len(heads))


def _comparison_cell(comparison: Comparison | None) -> str:
    if comparison is None:
        return "–"
    text = f"{_escape(comparison.names)}: {comparison.points}"
    if comparison.verdict:
        text += f", {_escape(comparison.verdict)}"
    return text


def _across_blocks(study: Study) -> Iterator[str]:
    """Heads with several encoders, or several prompt sets, side by side."""
    found = list(side_by_side(study))
    if found:
        yield f"## {ACROSS_TITLE}\n\n{ACROSS_LEAD}"
    for table in found:
        lines = []
        for line in table.lines:
            cells = [_escape(line.head), _escape(line.value), _escape(line.selected_on)]
            for cell, is_best in zip(line.cells, line.best, strict=True):
                cells.append(MARKED_CELL["best" if is_best else ""].format(percent(cell)))
            lines.append(cells)
        heads = ["head", table.column, "selected on", *map(str, table.shots)]
        yield _table(table.title, heads, lines, n_name=3)

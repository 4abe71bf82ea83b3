"""The sections that compare: the best method, the best head against the next, and blocks."""

from __future__ import annotations

from html import escape

from cliad.pipelines.report.across_blocks import (
    ACROSS_LEAD,
    ACROSS_TITLE,
    SideBySide,
    side_by_side,
)
from cliad.pipelines.report.best_against_next import (
    BEST_LEAD,
    BEST_TITLE,
    Comparison,
    caution,
    comparison_tables,
)
from cliad.pipelines.report.elements import (
    folded,
    html_table,
    mean_and_deviation,
    mean_and_interval,
    section,
)
from cliad.pipelines.report.methods import show_shots
from cliad.pipelines.report.notes import notes_of
from cliad.pipelines.report.study import Block, Study, best_of

MOST_TABLES = 4  # of encoders or prompt sets side by side; the others fold away
LEAD = (
    "<p>The best method for each data set and number of shots: test accuracy in %, mean ± half its"
    " 95 % interval over seeds.</p>"
)


def summary(study: Study) -> str:
    """What matters first: the best method for each data set and number of shots."""
    tables = [_best_methods(study, block) for block in study.blocks]
    notes = "".join(f"<li>{escape(note)}</li>" for note in notes_of(study))
    note_list = f'<ul class="notes">{notes}</ul>'
    return section("summary", "Summary", LEAD, *tables, _best_against_next(study), note_list)


def _best_methods(study: Study, block: Block) -> str:
    """The best method of a block: a line for each data set, a column for each number of shots."""
    shots = study.shots(block)
    lines = []
    for dataset in study.datasets(block):
        zero_shot = study.zero_shot(block, dataset)
        level = "–" if zero_shot is None else f"{100 * zero_shot:.1f}"
        line = [escape(dataset), level]
        line += [_best_method(study, block, dataset, n) for n in shots]
        lines.append(line)
    heads = ["data set", "zero-shot", *map(show_shots, shots)]
    return html_table(heads, lines, caption=escape(str(block)), kind="best")


def _best_method(study: Study, block: Block, dataset: str, shots: int) -> str:
    """The accuracy and the name of the best method."""
    methods = study.own_methods(block)
    # All settings take part, so a note warns that the best is chosen on test.
    cells = [study.cell(block, dataset, method, shots) for method in methods]
    position = best_of(cells)
    if position is None:
        return "–"
    best = cells[position]
    accuracy = "–" if best is None else mean_and_interval(best)
    return f"<b>{accuracy}</b><br><small>{escape(methods[position].label)}</small>"


def _best_against_next(study: Study) -> str:
    """Whether the best head is better than the next one."""
    comparisons = comparison_tables(study)
    if not comparisons:
        return ""
    tables = []
    for block, table in comparisons.items():
        lines = []
        for title, line in table.items():
            lines.append([escape(title), *map(_comparison_cell, line)])
        heads = ["data set", *map(show_shots, study.shots(block))]
        tables.append(html_table(heads, lines, caption=escape(str(block)), kind="versus"))
    return (
        f"<h3>{BEST_TITLE}</h3><p>{BEST_LEAD}</p>{''.join(tables)}"
        f"<p><small>{caution(comparisons)}</small></p>"
    )


def _comparison_cell(comparison: Comparison | None) -> str:
    if comparison is None:
        return "–"
    # The second head on a line of its own, or the column becomes too wide.
    names = escape(comparison.names).replace(" over ", "<br>over ")
    verdict = ""
    if comparison.verdict:
        verdict = f"<br><em>{escape(comparison.verdict)}</em>"
    return f"<b>{comparison.points}</b><br><small>{names}{verdict}</small>"


def across_blocks(study: Study) -> str:
    """Heads with several encoders, or several prompt sets, side by side."""
    tables = list(map(_side_by_side, side_by_side(study)))
    if not tables:
        return ""
    parts = tables[:MOST_TABLES]
    hidden = tables[MOST_TABLES:]
    if hidden:
        parts.append(folded(len(hidden), "".join(hidden)))
    return section("across", ACROSS_TITLE, f"<p>{ACROSS_LEAD}</p>", *parts)


def _side_by_side(table: SideBySide) -> str:
    lines = []
    for line in table.lines:
        cells = [escape(line.head), escape(line.value), escape(line.selected_on)]
        for cell, is_best in zip(line.cells, line.best, strict=True):
            text = mean_and_deviation(cell)
            cells.append(f"<b>{text}</b>" if is_best else text)
        lines.append(cells)
    heads = ["head", table.column, "selected on", *map(show_shots, table.shots)]
    return html_table(heads, lines, caption=escape(table.title), n_name=3)

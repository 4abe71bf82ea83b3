"""The report page's first words: the best method of each data set, whether it is better than the next, and blocks side by side."""

from __future__ import annotations

from html import escape

from cliad.pipelines.report.across import ACROSS_LEAD, ACROSS_TITLE, across
from cliad.pipelines.report.elements import html_table, percent, section
from cliad.pipelines.report.study import Study, best_of, show_shots
from cliad.pipelines.report.versus import VERSUS_LEAD, VERSUS_TITLE, Versus, caution, versus_tables

MOST_TABLES = 4  # of encoders or prompt sets side by side; the others fold away


def summary(study: Study) -> str:
    """What matters first: the best method for each data set and number of shots."""
    parts = []
    for block in study.blocks:
        shots, methods = study.shots(block), study.methods(block)
        lines = []
        for dataset in study.datasets(block):
            zero = study.zero_shot(block, dataset)
            line = [escape(dataset), "–" if zero is None else f"{100 * zero:.1f}"]
            for n in shots:
                cells = [study.cell(block, dataset, method, n) for method in methods]
                best = best_of(cells)
                line.append(
                    "–"
                    if best is None
                    else f"<b>{percent(cells[best], interval=True)}</b><br><small>{escape(methods[best].label)}</small>"
                )
            lines.append(line)
        heads = ["data set", "zero-shot", *map(show_shots, shots)]
        parts.append(html_table(heads, lines, caption=escape(str(block)), kind="best"))
    notes = "".join(f"<li>{escape(note)}</li>" for note in study.notes)
    lead = "<p>The best method for each data set and number of shots: test accuracy in %, mean ± half its 95 % interval over seeds.</p>"
    return section(
        "summary",
        "Summary",
        lead,
        *parts,
        _versus(study),
        f"<ul class=notes>{notes}</ul>" if notes else "",
    )


def _versus(study: Study) -> str:
    """Whether the best head is better than the next one."""
    found = versus_tables(study)
    if not found:
        return ""
    tables = []
    for block, table in found.items():
        lines = [[escape(title), *map(_versus_cell, line)] for title, line in table.items()]
        heads = ["data set", *map(show_shots, study.shots(block))]
        tables.append(html_table(heads, lines, caption=escape(str(block)), kind="versus"))
    return f"<h3>{VERSUS_TITLE}</h3><p>{VERSUS_LEAD}</p>{''.join(tables)}<p><small>{caution(found)}</small></p>"


def _versus_cell(one: Versus | None) -> str:
    if one is None:
        return "–"
    names = escape(one.names).replace(" over ", "<br>over ")
    verdict = f"<br><em>{escape(one.verdict)}</em>" if one.verdict else ""
    return f"<b>{one.points}</b><br><small>{names}{verdict}</small>"


def across_blocks(study: Study) -> str:
    """Heads with several encoders, or several prompt sets, side by side."""
    parts = []
    for found in across(study):
        mark = lambda cell, best: f"<b>{percent(cell)}</b>" if best else percent(cell)
        lines = [
            [
                escape(line.head),
                escape(line.value),
                escape(line.selected_on),
                *map(mark, line.cells, line.best),
            ]
            for line in found.lines
        ]
        heads = ["head", found.column, "selected on", *map(show_shots, found.shots)]
        parts.append(html_table(heads, lines, caption=escape(found.title), names=3))
    shown, hidden = parts[:MOST_TABLES], parts[MOST_TABLES:]
    rest = (
        f"<details><summary>{len(hidden)} more</summary>{''.join(hidden)}</details>"
        if hidden
        else ""
    )
    return section("across", ACROSS_TITLE, f"<p>{ACROSS_LEAD}</p>", *shown, rest) if parts else ""

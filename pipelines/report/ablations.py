"""The section "Ablations": accuracy against one hyper-parameter, and against two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations

from cliad.pipelines.report.accuracy import measure_of, titled_datasets
from cliad.pipelines.report.charts import Measure, series
from cliad.pipelines.report.elements import figure, html_table, panel_group, section, selection
from cliad.pipelines.report.methods import Method, show, show_shots, size_of
from cliad.pipelines.report.statistics import Summary
from cliad.pipelines.report.study import Block, Study


@dataclass(frozen=True)
class Family:
    """Methods of a block that differ from the reference in some hyper-parameters alone."""

    block: Block
    reference: Method
    methods: Sequence[Method]


def ablations(study: Study) -> str:
    """For each head and hyper-parameter that varies: accuracy against its value.

    All other hyper-parameters are as in the reference, the setting nearest to the head's defaults.
    """
    parts = []
    for block in study.blocks:
        for reference in study.leading(block):
            names = list(reference.values)
            parts += [_curves(study, block, reference, name) for name in names]
            for row_name, column_name in combinations(names, 2):
                heat_map = _heat_map(study, block, reference, row_name, column_name)
                parts.append(heat_map)
    return section("ablations", "Ablations", *parts)


def _family(study: Study, block: Block, reference: Method, names: Sequence[str]) -> Family:
    """The methods that differ from the reference in the hyper-parameters `names` alone."""
    methods = []
    for method in study.methods(block):
        same_head = method.head == reference.head
        same_selection = method.selected_on == reference.selected_on
        if same_head and same_selection and _differ_only(method, reference, names):
            methods.append(method)
    return Family(block, reference, methods)


def _differ_only(method: Method, reference: Method, names: Sequence[str]) -> bool:
    # A method that lacks a hyper-parameter of the reference is a stranger to it.
    if method.values.keys() != reference.values.keys():
        return False
    for name, value in method.setting:
        if name not in names and value != reference.values[name]:
            return False
    return True


def _curves(study: Study, block: Block, reference: Method, name: str) -> str:
    """Accuracy against the values of one hyper-parameter, a line for each number of shots."""
    family = _family(study, block, reference, (name,))
    if len(family.methods) < 2:
        return ""
    methods = sorted(family.methods, key=lambda method: size_of(method.values[name]))
    panels = []
    for title, dataset in titled_datasets(study, family.block).items():
        lines = {}
        for n in study.shots(family.block):
            cells = [study.cell(family.block, dataset, method, n) for method in methods]
            lines[show_shots(n)] = _line(cells)
        if any(map(any, lines.values())):
            chart = series(
                [show(method.values[name]) for method in methods],
                lines,
                name=f"Accuracy against {name} of {family.reference.head}, {title}",
                x_title=name,
                y_title="accuracy (%)",
            )
            panels.append(figure(title, chart))
    names = list(map(show_shots, study.shots(family.block)))
    return panel_group(_curves_title(family, name), names, panels)


def _line(cells: Sequence[Summary | None]) -> list[Measure | None]:
    """The points of a line; none where there is but one, which no line can join."""
    measures = list(map(measure_of, cells))
    n_empty = measures.count(None)
    if len(measures) - n_empty > 1:
        return measures
    return [None] * len(measures)


def _curves_title(family: Family, name: str) -> str:
    reference = family.reference
    below = f"{escape(str(family.block))}; {selection(reference)}"
    others = [f"{key} {show(value)}" for key, value in reference.setting if key != name]
    if others:
        below += escape("; " + ", ".join(others))
    return f"{escape(name)} of {escape(reference.head)}<small> {below}</small>"


def _heat_map(
    study: Study, block: Block, reference: Method, row_name: str, column_name: str
) -> str:
    """Accuracy where two hyper-parameters vary, at the most shots, over all data sets."""
    family = _family(study, block, reference, (row_name, column_name))
    rows = _values(family, row_name)
    columns = _values(family, column_name)
    if len(rows) < 2 or len(columns) < 2:
        return ""
    # The most shots: there, methods differ least by chance.
    shots = study.shots(family.block)[-1]
    cells: dict[tuple[object, object], Summary | None] = {}
    for method in family.methods:
        place = (method.values[row_name], method.values[column_name])
        cells[place] = study.average(family.block, method, shots)
    means = [cell.mean for cell in cells.values() if cell is not None]
    # One cell alone has nothing to be darker than.
    if len(means) < 2:
        return ""
    low = min(means)
    high = max(means)
    lines = []
    for row in rows:
        line = [escape(show(row))]
        line += [_shaded(cells.get((row, column)), low, high) for column in columns]
        lines.append(line)
    heads = [f"{escape(row_name)} ↓ {escape(column_name)} →"]
    heads += map(escape, map(show, columns))
    title = escape(f"{row_name} and {column_name} of {family.reference.head}")
    below = _heat_map_words(study, family, shots)
    return f"<h3>{title}<small> {below}</small></h3>" + html_table(heads, lines, kind="heatmap")


def _values(family: Family, name: str) -> list[object]:
    """The values of a hyper-parameter, sorted."""
    values = {method.values[name] for method in family.methods}
    return sorted(values, key=size_of)


def _shaded(cell: Summary | None, low: float, high: float) -> str:
    """A mean; the darker, the nearer to the highest."""
    text = "–"
    share = 0.0
    if cell is not None:
        text = f"{100 * cell.mean:.1f}"
        if high > low:
            share = (cell.mean - low) / (high - low)
    return f'<span class="heat" style="--share:{share:.2f}">{text}</span>'


def _heat_map_words(study: Study, family: Family, shots: int) -> str:
    datasets = study.datasets(family.block)
    where = datasets[0]
    if len(datasets) > 1:
        where = f"average over {len(datasets)} data sets"
    text = escape(f"{show_shots(shots)}, {where}; {family.block}; ")
    return text + selection(family.reference)

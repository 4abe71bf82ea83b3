"""The section "Accuracy against shots": a chart for each data set, the average first."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from cliad.pipelines.report.charts import Measure, series
from cliad.pipelines.report.elements import distinct_names, figure, panel_group, section
from cliad.pipelines.report.methods import ZERO_SHOT, Method
from cliad.pipelines.report.statistics import Summary
from cliad.pipelines.report.study import Block, Study

NOTE = (
    "<p>Each head with the setting nearest to its defaults. Bars are 95 % intervals over seeds;"
    " zero-shot is the star at 0.</p>"
)


def accuracy(study: Study) -> str:
    """The whole section; zero-shot is the star at 0 shots."""
    groups = [_block_charts(study, block) for block in study.blocks]
    note = NOTE if any(groups) else ""
    return section("accuracy", "Accuracy against shots", note, *groups)


def _block_charts(study: Study, block: Block) -> str:
    methods = [method for method in study.leading(block) if method.head != ZERO_SHOT.head]
    if not methods:
        return ""
    panels = []
    for title, dataset in titled_datasets(study, block).items():
        chart = _chart(study, block, dataset, methods, title)
        if chart:
            panels.append(figure(title, chart))
    names = [ZERO_SHOT.label, *distinct_names(methods)]
    return panel_group(escape(str(block)), names, panels, first_is_dashed=True)


def titled_datasets(study: Study, block: Block) -> dict[str, str | None]:
    """The data sets of a block by the titles of their charts; None is the average over all."""
    datasets = study.datasets(block)
    titles: dict[str, str | None] = {}
    if len(datasets) > 1:
        titles[f"Average over {len(datasets)} data sets"] = None
    titles.update(zip(datasets, datasets, strict=True))
    return titles


def _chart(
    study: Study, block: Block, dataset: str | None, methods: Sequence[Method], title: str
) -> str:
    shots = study.shots(block)
    lines: dict[str, list[Measure | None]] = {}
    zero_shot = study.zero_shot(block, dataset)
    # The label 0 stands before all numbers of shots.
    lines[ZERO_SHOT.label] = [_level(zero_shot)] * (len(shots) + 1)
    for name, method in zip(distinct_names(methods), methods, strict=True):
        cells = study.line(block, dataset, method, shots)
        # No head was trained on 0 shots.
        lines[name] = [None, *map(measure_of, cells)]
    trained = list(lines.values())[1:]
    # Zero-shot alone makes no chart.
    if not any(map(any, trained)):
        return ""
    return series(
        ["0", *map(str, shots)],
        lines,
        name=f"Accuracy against shots, {title}",
        x_title="shots per class",
        y_title="accuracy (%)",
        star="" if zero_shot is None else ZERO_SHOT.label,
    )


def _level(zero_shot: float | None) -> Measure | None:
    if zero_shot is None:
        return None
    return Measure(100 * zero_shot, 100 * zero_shot, 100 * zero_shot)


def measure_of(cell: Summary | None) -> Measure | None:
    """A cell in %, its interval cut off at 0 and 100."""
    if cell is None:
        return None
    half = cell.half or 0
    low = max(cell.mean - half, 0)
    high = min(cell.mean + half, 1)
    return Measure(100 * cell.mean, 100 * low, 100 * high)

"""A study as one HTML page that needs nothing else.

No network, no fonts; light and dark; for phone, screen and paper.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from cliad import __version__
from cliad.pipelines.report.ablations import ablations
from cliad.pipelines.report.accuracy import accuracy
from cliad.pipelines.report.all_runs import all_runs, training_time
from cliad.pipelines.report.calibration import calibration
from cliad.pipelines.report.elements import NO_BREAK, html_table, mean_and_deviation, section
from cliad.pipelines.report.reproduce import reproduce
from cliad.pipelines.report.study import Block, Study
from cliad.pipelines.report.summary import across_blocks, summary
from cliad.pipelines.report.tables import TABLE_LEGEND, Table, block_tables

MOST_NAMES = 4  # of data sets in the title
MOST_LINES = 60  # of tables that are shown unfolded
# Formats of one cell by its mark.
MARKED_CELL = {"best": "<b>{}</b>", "tie": f"≈{NO_BREAK}{{}}", "": "{}"}


def page(study: Study) -> str:
    """The whole page."""
    sections = [
        summary(study),
        accuracy(study),
        across_blocks(study),
        ablations(study),
        _tables(study),
        calibration(study),
        training_time(study),
        reproduce(study),
        all_runs(study),
    ]
    # Both stand in the page itself, so that it can be sent as one file.
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    script = Path(__file__).with_name("report.js").read_text(encoding="utf-8")
    title = escape(_title(study))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>
{style}</style>
</head>
<body>
<main><h1>{title}</h1>
{"".join(sections)}<footer>{len(study.rows)} runs; made by cliad {__version__}.</footer></main>
<script>
{script}</script>
</body>
</html>
"""


def _title(study: Study) -> str:
    # Of heads that were scored on other data sets, the one they were trained on.
    datasets = sorted({row["source"] or row["dataset"] for row in study.rows})
    names = ", ".join(datasets[:MOST_NAMES])
    if len(datasets) > MOST_NAMES:
        names += " and more"
    return f"{names}: few-shot results"


def _tables(study: Study) -> str:
    """Method by shots and method by data set, all settings."""
    parts = [_block_tables(study, block) for block in study.blocks]
    return section("tables", "Tables", f"<p>{TABLE_LEGEND}</p>", *parts)


def _block_tables(study: Study, block: Block) -> str:
    tables = [table for table in block_tables(study, block) if table.lines]
    n_line = sum(len(table.lines) for table in tables)
    tag = "<details open>" if n_line <= MOST_LINES else "<details>"
    count = "1 table" if len(tables) == 1 else f"{len(tables)} tables"
    body = "".join(map(_method_table, tables))
    return f"{tag}<summary>{escape(str(block))}: {count}</summary>{body}</details>"


def _method_table(table: Table) -> str:
    lines = []
    for number, line in enumerate(table.lines):
        cells = [escape(line.method.label), escape(line.method.selected_on)]
        for cell, mark in zip(line.cells, table.marks(number), strict=True):
            cells.append(MARKED_CELL[mark].format(mean_and_deviation(cell)))
        lines.append(cells)
    heads = [escape(table.corner), "selected on"]
    # A long name may break after an underscore.
    heads += [escape(name).replace("_", "_<wbr>") for name in table.columns]
    return html_table(heads, lines, caption=escape(table.title), n_name=2)

"""The cells of a study as CSV, for spreadsheets and scripts; accuracies are fractions."""

from __future__ import annotations

import csv
import io

from cliad.pipelines.report.statistics import Summary
from cliad.pipelines.report.study import Block, Study
from cliad.pipelines.report.tables import Table, by_shots

COLUMNS = (
    "encoder",
    "prompts",
    "protocol",
    "dataset",
    "shots",
    "head",
    "setting",
    "selected_on",
    "n_seed",
    "top1_mean",
    "top1_std",
    "top1_ci95_half",
    "mark",
)


def as_csv(study: Study) -> str:
    """One line a cell, those of each data set first, then those of the average."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for block in study.blocks:
        # Tables by data set hold the same cells again.
        for table in by_shots(study, block):
            writer.writerows(_lines(block, table))
    return out.getvalue()


def _lines(block: Block, table: Table) -> list[list[object]]:
    """The lines of a table of method x shots."""
    lines = []
    for number, line in enumerate(table.lines):
        method = line.method
        setting = " ".join(f"{name}={value}" for name, value in method.setting)
        for shots, cell, mark in zip(table.columns, line.cells, table.marks(number), strict=True):
            if cell is not None:
                place = [block.encoder, block.prompts, block.protocol, table.dataset, shots]
                words = [method.head, setting, method.selected_on]
                lines.append([*place, *words, cell.n, *_numbers(cell), mark])
    return lines


def _numbers(cell: Summary) -> list[str]:
    """Mean, standard deviation, half the interval; empty where there is none."""
    values = (cell.mean, cell.std, cell.half)
    return ["" if value is None else f"{value:.6f}" for value in values]

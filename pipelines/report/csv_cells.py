"""The cells of a study as CSV, for spreadsheets and scripts; accuracies are fractions."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

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
    "stands_for_head",
)
# What a spreadsheet takes for the beginning of a formula, or leaves out before one.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def as_csv(study: Study) -> str:
    """One line a cell, those of each data set first, then those of the average.

    A text that a spreadsheet would compute as a formula has an apostrophe before it.
    """
    lines: list[Sequence[object]] = [COLUMNS]
    for block in study.blocks:
        # Tables by data set hold the same cells again.
        for table in by_shots(study, block):
            lines += _lines(study, block, table)
    return "".join(map(_line, lines))


def _line(cells: Sequence[object]) -> str:
    out = io.StringIO(newline="")
    # Of both characters of this end of a line, csv takes care inside of cells.
    csv.writer(out, lineterminator="\r\n").writerow(map(harmless, cells))
    return out.getvalue().removesuffix("\r\n") + "\n"


def harmless(cell: object) -> object:
    """A cell that is no formula: a text that begins like one gets an apostrophe (OWASP)."""
    if isinstance(cell, str) and cell.startswith(FORMULA):
        return "'" + cell
    return cell


def _lines(study: Study, block: Block, table: Table) -> list[Sequence[object]]:
    """The lines of a table of method x shots."""
    leading = set(study.leading(block))
    lines: list[Sequence[object]] = []
    for number, line in enumerate(table.lines):
        method = line.method
        setting = " ".join(f"{name}={value}" for name, value in method.setting)
        stands = "yes" if method in leading else ""
        for shots, cell, mark in zip(table.columns, line.cells, table.marks(number), strict=True):
            if cell is not None:
                place = [block.encoder, block.prompts, block.protocol, table.dataset, shots]
                words = [method.head, setting, method.selected_on]
                lines.append([*place, *words, cell.n, *_numbers(cell), mark, stands])
    return lines


def _numbers(cell: Summary) -> list[str]:
    """Mean, standard deviation, half the interval; empty where there is none."""
    values = (cell.mean, cell.std, cell.half)
    return ["" if value is None else f"{value:.6f}" for value in values]

"""`cliad report`: a results file becomes one HTML page, or tables for a paper."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cliad.cache.files import check_place, replace_text
from cliad.errors import CliadError, printable, unknown
from cliad.pipelines.experiments.results_file import read_rows
from cliad.pipelines.report.clean_rows import WORDS, study_of
from cliad.pipelines.report.csv_cells import as_csv
from cliad.pipelines.report.html import page
from cliad.pipelines.report.latex import latex
from cliad.pipelines.report.markdown import markdown
from cliad.pipelines.report.study import Study

FORMATS: dict[str, Callable[[Study], str]] = {
    "html": page,
    "md": markdown,
    "latex": latex,
    "csv": as_csv,
}


class ReportError(CliadError):
    """A report that cannot be made; the message says why."""


def report(
    results: Sequence[Path],
    *,
    form: str = "html",
    out: Path | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> str:
    """The report on results files as text, written to `out` where it is given.

    Args:
        form: html, md, latex or csv.

    Raises:
        ReportError: no rows, an unknown form, or `out` cannot be written or is one of the results.
        RowsError: a file cannot be read.
    """
    if form not in FORMATS:
        raise ReportError(unknown("format", form, FORMATS))
    if out is not None:
        _check_out(out, results)
    text = FORMATS[form](read_study(results, log))
    if out is not None:
        try:
            replace_text(out, text)
        except OSError as error:
            raise _cannot_write(out, error) from None
    return text


def _check_out(out: Path, results: Sequence[Path]) -> None:
    """ReportError where the report cannot be written to `out`, or must not."""
    try:
        check_place(out)
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # Hours of training may stand in that file. It may have several names.
        is_results = any(path.exists() and out.exists() and out.samefile(path) for path in results)
    except OSError as error:
        raise _cannot_write(out, error) from None
    if is_results:
        raise ReportError(
            f"{out} holds the results that the report is of; give another file with --out FILE"
        )


def _cannot_write(out: Path, error: OSError) -> ReportError:
    reason = error.strerror or error
    return ReportError(f"cannot write {out}: {reason}; give another file with --out FILE")


def read_study(results: Sequence[Path], log: Callable[[str], None]) -> Study:
    """The rows of some results files.

    Raises:
        ReportError: there is no row, or one cannot be shown.
        RowsError: a file cannot be read.
    """
    rows: list[dict] = []
    for path in results:
        stored = read_rows(path)
        if stored.incomplete:
            log(
                f"{path}: the last line is incomplete (a grid is running, or was killed);"
                " it is left out"
            )
        for row, line in zip(stored.rows, stored.lines, strict=True):
            _check_words(row, f"{path} line {line}")
        rows += map(_printable, stored.rows)
    if not rows:
        names = ", ".join(map(str, results))
        raise ReportError(f"{names} has no rows; `cliad grid --out {results[0]}` makes some")
    return study_of(rows)


def _check_words(row: dict, where: str) -> None:
    """ReportError unless the row has all fields that a report needs."""
    lacking = [word for word in WORDS if word not in row]
    if lacking:
        raise ReportError(
            f"{where} lacks {', '.join(lacking)}: it was not written by this version of cliad;"
            " delete the line"
        )


def _printable(row: dict) -> dict:
    """The row with names that a terminal and a page can show: control characters are escapes."""
    return {_shown(name): _shown(value) for name, value in row.items()}


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return _printable(value)
    return value

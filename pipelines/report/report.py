"""`cliad report`: a results file becomes one HTML page, or tables for a paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cliad.cache.files import replace_text
from cliad.errors import CliadError, unknown
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
    # Hours of training may stand in that file.
    if out is not None and out.resolve() in map(Path.resolve, results):
        raise ReportError(
            f"{out} holds the results that the report is of; give another file with --out FILE"
        )
    text = FORMATS[form](read_study(results, log))
    if out is not None:
        try:
            replace_text(out, text)
        except OSError as error:
            raise ReportError(
                f"cannot write {out}: {error.strerror}; give another file with --out FILE"
            ) from None
    return text


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
        for number, row in enumerate(stored.rows, 1):
            _check_row(row, f"{path} row {number}")
        rows += stored.rows
    if not rows:
        names = ", ".join(map(str, results))
        raise ReportError(f"{names} has no rows; `cliad grid --out {results[0]}` makes some")
    return study_of(rows)


def _check_row(row: dict, where: str) -> None:
    """ReportError unless the row has all that a report needs, of the right types."""
    lacking = [word for word in WORDS if word not in row]
    if lacking:
        raise ReportError(
            f"{where} lacks {', '.join(lacking)}: it was not written by this version of cliad;"
            " delete the line"
        )
    for word, is_valid in VALID.items():
        value = row.get(word)
        if not is_valid(value):
            text = str(value)[:40]  # a message is one short line
            raise ReportError(f"{where}: invalid {word} '{text}'; fix or delete the line")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_whole_number(value: object) -> bool:
    return isinstance(value, int)


def _is_accuracy(value: object) -> bool:
    """A fraction, or None for a run that diverged."""
    if value is None:
        return True
    # NaN, which Python's JSON may hold, is not within any bounds.
    return isinstance(value, (int, float)) and 0 <= value <= 1


def _is_setting(value: object) -> bool:
    """A table of hyper-parameters; each is one value."""
    if not isinstance(value, dict):
        return False
    # Values become keys of dictionaries, which lists and tables cannot be.
    return not any(isinstance(entry, (list, dict)) for entry in value.values())


def _is_setting_or_none(value: object) -> bool:
    return value is None or _is_setting(value)


# What a row's words may hold; in the order in which they are checked.
VALID: dict[str, Callable[[object], bool]] = {
    "dataset": _is_text,
    "encoder": _is_text,
    "prompts": _is_text,
    "head": _is_text,
    "protocol": _is_text,
    "selected_on": _is_text,
    "fingerprint": _is_text,
    "shots": _is_whole_number,
    "seed": _is_whole_number,
    "top1": _is_accuracy,
    "zero_shot_top1": _is_accuracy,
    "hyper": _is_setting,
    "found": _is_setting_or_none,
}

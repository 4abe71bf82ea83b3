"""`cliad report`: a results file becomes one HTML page, or tables for a paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cliad.cache.files import replace_text
from cliad.errors import CliadError, unknown
from cliad.pipelines.experiments.results_file import read_rows
from cliad.pipelines.report.html import page
from cliad.pipelines.report.study import WORDS, Study, study_of
from cliad.pipelines.report.tables import FORMATS

FITS: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(
        ("dataset", "encoder", "prompts", "head", "protocol", "selected_on"),
        lambda value: isinstance(value, str),
    ),
    **dict.fromkeys(("shots", "seed"), lambda value: isinstance(value, int)),
    "top1": lambda value: value is None or (isinstance(value, (int, float)) and 0 <= value <= 1),
    "hyper": lambda value: isinstance(value, dict) and _plain(value),
    "found": lambda value: value is None or (isinstance(value, dict) and _plain(value)),
}


def _plain(setting: dict) -> bool:
    return not any(isinstance(value, (list, dict)) for value in setting.values())


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
    makers = {"html": page, **FORMATS}
    if form not in makers:
        raise ReportError(unknown("format", form, makers))
    if out is not None and out.resolve() in [path.resolve() for path in results]:
        raise ReportError(
            f"{out} holds the results that the report is of; give another file with --out FILE"
        )
    text = makers[form](read_study(results, log))
    if out is not None:
        try:
            replace_text(out, text)
        except OSError as error:
            raise ReportError(
                f"cannot write {out}: {error.strerror}; give another file with --out FILE"
            ) from None
    return text


def read_study(results: Sequence[Path], log: Callable[[str], None]) -> Study:
    """The rows of some results files."""
    found = []
    for path in results:
        stored = read_rows(path)
        rows = stored.rows
        if stored.incomplete:
            log(
                f"{path}: the last line is incomplete (a grid is running, or was killed); it is left out"
            )
        for number, row in enumerate(rows, 1):
            if lack := [word for word in WORDS if word not in row]:
                raise ReportError(
                    f"{path} row {number} lacks {', '.join(lack)}: it was not written by this cliad; delete the line"
                )
            if wrong := [word for word, fits in FITS.items() if not fits(row.get(word))]:
                raise ReportError(
                    f"{path} row {number}: {wrong[0]} cannot be {str(row.get(wrong[0]))[:40]}; fix or delete the line"
                )
        found += rows
    if not found:
        raise ReportError(
            f"{', '.join(map(str, results))} has no rows; `cliad grid --out {results[0]}` makes some"
        )
    return study_of(found)

"""The page's last sections: how long training took, and a table of all runs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from html import escape

from cliad.pipelines.report.elements import html_table, section
from cliad.pipelines.report.methods import show, show_shots
from cliad.pipelines.report.study import Study

# Columns of the table of all runs and the words of a row; the column "setting" is made from many.
SETTING = "setting"
COLUMNS = {
    "data set": "dataset",
    "encoder": "encoder",
    "prompts": "prompts",
    "head": "head",
    SETTING: "hyper",
    "shots": "shots",
    "seed": "seed",
    "protocol": "protocol",
    "selected on": "selected_on",
    "top-1 %": "top1",
    "zero-shot %": "zero_shot_top1",
    "class mean %": "mean_class",
    "ECE %": "ece",
    "NLL": "nll",
    "seconds": "train_seconds",
    "fingerprint": "fingerprint",
}
FILTER = (
    '<p class="tool"><label>Filter <input type="search" id="filter"'
    ' placeholder="words, all must occur"></label> <span id="count"></span></p>'
)


def all_runs(study: Study) -> str:
    """Every row; the page's script sorts and filters it."""
    lines = [_line(study, row) for row in study.rows]
    table = html_table(list(COLUMNS), lines, n_name=5, kind="rows")
    return section("rows", "All runs", FILTER, table)


def _line(study: Study, row: Mapping) -> list[str]:
    return [escape(_cell(study, row, column)) for column in COLUMNS]


def _cell(study: Study, row: Mapping, column: str) -> str:
    if column == SETTING:
        # What varies, and what was given but does not vary.
        setting = {**study.method(row).values, **row["hyper"]}
        return ", ".join(f"{name} {show(value)}" for name, value in setting.items())
    value = row.get(COLUMNS[column])
    if value is None:
        return "–"
    if column.endswith("%"):
        return f"{100 * value:.2f}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def training_time(study: Study) -> str:
    """Training seconds per run, by head and shots.

    A run that is scored on other data sets too counts once.
    """
    # A row with a source is of a head that was trained for a row without one.
    runs = [row for row in study.rows if not row["source"]]
    means = _mean_seconds(runs)
    if not means:
        return ""
    shots = sorted({n for _, n in means})
    # All times may be 0 on a clock of low resolution.
    longest = max(means.values()) or 1
    lines = []
    for head in dict.fromkeys(head for head, _ in means):
        line = [escape(head)]
        line += [_bar(means.get((head, n)), longest) for n in shots]
        lines.append(line)
    total = 0.0
    devices = set()
    for row in runs:
        # Rows that other tools wrote may lack both.
        total += row.get("train_seconds") or 0
        devices.add(str(row.get("device", "?")))
    note = (
        "<p>Mean training time of a run; a run of a group has the group's time divided by its runs."
        f" All {len(runs)} runs: {_duration(total)} on {escape(', '.join(sorted(devices)))}.</p>"
    )
    return section("time", "Time", note, html_table(["head", *map(show_shots, shots)], lines))


def _mean_seconds(runs: list[dict]) -> dict[tuple[str, int], float]:
    """The mean training time by head and number of shots."""
    seconds = defaultdict(list)
    for row in runs:
        if row.get("train_seconds") is not None:
            seconds[row["head"], row["shots"]].append(row["train_seconds"])
    return {key: statistics.fmean(values) for key, values in seconds.items()}


def _bar(seconds: float | None, longest: float) -> str:
    """A time on a bar; the longest one fills the cell."""
    if seconds is None:
        return "–"
    share = seconds / longest
    return f'<span class="bar" style="--share:{share:.3f}">{_duration(seconds)}</span>'


def _duration(seconds: float) -> str:
    if seconds >= 120:
        return f"{seconds / 60:.1f} min"
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{1000 * seconds:.3g} ms"

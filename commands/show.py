"""What the commands print: tables, progress bars, result rows, predictions.

rich and csv are loaded where they are used, so that `cliad --help` does not wait for them.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cliad.errors import CliadError, printable

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn
    from rich.text import Text

    from cliad.cache.datasets.download import Fetching
    from cliad.cache.extract.filling import Progress as ExtractProgress
    from cliad.pipelines.experiments.grid import Progress as GridProgress
    from cliad.pipelines.runs.predict import Prediction

# The device /dev/full of Linux, by its number.
FULL_DEVICE = os.makedev(1, 7) if hasattr(os, "makedev") else -1
RESULT_BYTES = 4096  # more than the result of one run takes


class OutputError(CliadError):
    """The result of a command cannot be written to stdout."""


# --------------------------------------------------------------- lines, numbers, tables


def log(message: str) -> None:
    """A line for the user on stderr; stdout holds results only, so that it can be piped."""
    print(printable(message), file=sys.stderr, flush=True)


def line(text: object, *, flush: bool = False) -> None:
    """A line of the result on stdout.

    Names of files and classes come from anywhere: what a terminal would obey is shown as an escape.
    """
    print(printable(str(text)), flush=flush)


def check_stdout() -> None:
    """Check, before long work, that its result can be written to stdout.

    Raises:
        OutputError: stdout is a full disk, or Linux' device that is always full.
    """
    try:
        descriptor = sys.stdout.fileno()
        about = os.fstat(descriptor)
    # Closed, or not a file at all, as in a notebook.
    except (AttributeError, OSError, ValueError):
        return
    is_full = stat.S_ISCHR(about.st_mode) and about.st_rdev == FULL_DEVICE
    if stat.S_ISREG(about.st_mode) and hasattr(os, "fstatvfs"):
        disk = os.fstatvfs(descriptor)
        is_full = disk.f_bavail * disk.f_frsize < RESULT_BYTES
    if is_full:
        raise OutputError("cannot write the result to stdout: the disk is full; free some space")


def cells(*values: object) -> None:
    """A line of the result whose cells have tabs between them, as cut and awk take them."""
    print("\t".join(printable(str(value)) for value in values))


def print_json(document: object) -> None:
    print(json_text(document, indent=1))


def json_text(document: object, indent: int | None = None) -> str:
    """A document as JSON: names stay as they are written, in any alphabet, but for what a terminal
    would obey, which stands as JSON's escape."""
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    return _OBEYED.sub(_json_escape, text)


# JSON escapes what is below a space by itself; its own line breaks stay.
_OBEYED = re.compile(r"[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def _json_escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found.group()):04x}"


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table; the first column is text, the others are numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=_cell(title), title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*map(_cell, row))
    Console().print(table)


def _cell(text: str) -> Text:
    """Text as it stands: rich would take [red] in a class name for a colour."""
    from rich.text import Text

    return Text(printable(text))


def percent(fraction: float | None) -> str:
    """0.5 as `50.0 %`; a dash where there is no number."""
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


# --------------------------------------------------------------- progress bars


def _progress(*columns: ProgressColumn) -> Progress:
    """A progress bar on stderr that goes when it is done; none where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    return Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),  # log files would fill with redrawn bars
    )


@contextmanager
def image_bar() -> Iterator[Callable[[ExtractProgress], None]]:
    """Images done, rate, time left, and the share of the time spent waiting for images."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    with _progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.3g} images/s"),
        TimeRemainingColumn(),
        # A large share says that reading images is the limit, not the encoder: --workers may help.
        TextColumn("waited for data {task.fields[waiting]:.0%}"),
    ) as bar:
        task = bar.add_task("", total=None, rate=0, waiting=0)

        def show(state: ExtractProgress) -> None:
            bar.update(
                task,
                completed=state.done,
                total=state.total,
                rate=state.rate,
                waiting=state.waiting,
            )

        yield show


@contextmanager
def row_bar() -> Iterator[Callable[[GridProgress], None]]:
    """Rows of a grid done, rate, time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    with _progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.3g} rows/s"),
        TimeRemainingColumn(),
    ) as bar:
        task = bar.add_task("", total=None, rate=0)

        def show(state: GridProgress) -> None:
            bar.update(task, completed=state.done, total=state.total, rate=state.rate)

        yield show


FIRST_LINE = 10.0  # seconds of training without a word
BETWEEN_LINES = 60.0


def step_lines() -> Callable[[int, int], None]:
    """Takes how many steps of training are done; logs a line a minute where that takes so long."""
    began = last = time.monotonic()
    first = done_before = 0

    def show(done: int, total: int) -> None:
        nonlocal began, last, first, done_before
        now = time.monotonic()
        if done <= done_before or not done_before:  # another training
            began = last = now
            first = done
        done_before = done
        silent_for = FIRST_LINE if last == began else BETWEEN_LINES
        if now - last < silent_for or done == total:
            return
        last = now
        left = (now - began) / (done - first) * (total - done)
        log(f"step {done:,} of {total:,}, about {duration(left)} left")

    return show


def duration(seconds: float) -> str:
    """Seconds for people: `40 s`, `3 min`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def download_bar() -> Iterator[Callable[[Fetching], None]]:
    """A bar for each file that is downloaded: bytes, rate, time left."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with _progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def show(state: Fetching) -> None:
            if state.file not in tasks:
                tasks[state.file] = bar.add_task(state.file)
            # A server that does not say the size gives 0; rich then shows a bar without an end.
            bar.update(tasks[state.file], completed=state.done, total=state.total or None)

        yield show


# --------------------------------------------------------------- result rows


def print_run(row: Mapping[str, Any]) -> None:
    """The result row of one run: accuracy beside zero-shot, what was searched, the run folder.

    With the key `transfer` also a line for each other data set that the run was scored on.
    """
    accuracy = "diverged" if row["diverged"] else percent(row["top1"])
    seconds = f"{row['train_seconds']:.2f} s"
    title = _title_of(row)
    beside = ["zero-shot", percent(row["zero_shot_top1"]), "", ""]
    if row.get("transductive"):
        title += ", transductive"
        beside = ["image by image", percent(row["inductive_top1"]), "", ""]
    print_table(
        title,
        ["head", "test accuracy", "training", "selected on"],
        [beside, [row["head"], accuracy, seconds, row["selected_on"]]],
    )
    if row["found"]:
        line(", ".join(_setting(name, value) for name, value in row["found"].items()))
    if row["run"]:
        line(f"run folder: {row['run']}")
    for other in row.get("transfer", []):
        top1 = percent(other["top1"])
        zero_shot = percent(other["zero_shot_top1"])
        line(f"on {other['test_dataset']}: {top1}, zero-shot {zero_shot}")


def print_halves(row: Mapping[str, Any]) -> None:
    """The base-to-new row of one run: accuracy on both halves of the classes."""
    lines = [_halves_line("zero-shot", row, "zero_shot_", 0)]
    # What is made of the same images without training stands beside every head that has them.
    if row["new_shots"] and row["head"] != "prototype":
        lines.append(_halves_line("prototype", row, "prototype_", row["new_shots"]))
    lines.append(_halves_line(row["head"], row, "", row["new_shots"]))
    base = f"base ({row['n_base']} classes)"
    new = f"new ({row['n_new']})"
    print_table(
        f"{_title_of(row)}: base to new",
        ["head", base, new, "harmonic mean", "new shots"],
        lines,
    )
    if row["found"]:
        line(", ".join(_setting(name, value) for name, value in row["found"].items()))


def _halves_line(head: str, row: Mapping[str, Any], prefix: str, new_shots: int) -> list[str]:
    """A line of the table of both halves, of the row's words with this prefix."""
    words = ["base_top1", "new_top1", "harmonic"]
    return [head, *[percent(row[prefix + word]) for word in words], str(new_shots)]


def _title_of(row: Mapping[str, Any]) -> str:
    """Which run a row is of."""
    return f"{row['dataset']}, {row['encoder']}, {row['shots']} shots, seed {row['seed']}"


def _setting(name: str, value: object) -> str:
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


# --------------------------------------------------------------- predictions

# Each of these prints every prediction as soon as it is there, and returns how many images were
# classified.


def print_predictions(predictions: Iterable[Prediction]) -> int:
    """An image a paragraph on stdout; images that cannot be read on stderr."""
    classified = 0
    for prediction in predictions:
        if prediction.error is not None:
            log(f"cliad: {prediction.path}: {prediction.error}")
            continue
        lines = [prediction.path]
        for name, probability in prediction.top:
            lines.append(f"  {percent(probability):>8}  {name}")
        print("\n".join(map(printable, lines)), flush=True)
        classified += 1
    return classified


def print_predictions_as_json(predictions: Iterable[Prediction]) -> int:
    """One JSON list, an image a line."""
    classified = 0
    before = "["
    for prediction in predictions:
        print(before + json_text(prediction.json()), end="", flush=True)
        before = ",\n "
        if prediction.error is None:
            classified += 1
    # The bracket opens with the first prediction, so that an error before it leaves stdout empty.
    nothing_printed = before == "["
    print("[]" if nothing_printed else "]")
    return classified


def print_predictions_as_csv(predictions: Iterable[Prediction]) -> int:
    """A line for each class of each image, or one with the error."""
    import csv

    from cliad.pipelines.report.csv_cells import harmless

    # csv writes \r\n unless told otherwise, which cut and awk keep in the last field.
    table = csv.writer(sys.stdout, lineterminator="\n")

    def write(*cells: object) -> None:
        table.writerow([harmless(printable(str(cell))) for cell in cells])

    write("path", "rank", "class", "probability", "error")
    classified = 0
    for prediction in predictions:
        if prediction.error is not None:
            write(prediction.path, "", "", "", prediction.error)
        else:
            classified += 1
        for rank, (name, probability) in enumerate(prediction.top, 1):
            write(prediction.path, rank, name, f"{probability:.6f}", "")
        sys.stdout.flush()  # a pipe sees each image at once, not 8 kB later
    return classified

"""The command line: process settings, the errors that users see, and the table of commands.

Nothing here or in `commands` loads torch before a command runs, so `cliad --help` is quick.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from cliad import __version__
from cliad.commands import cache_files, experiments, stage_one, use
from cliad.errors import CliadError

# Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def set_up_process() -> None:
    """Two settings that make the CPU faster for what cliad does; call it before torch is loaded.

    They belong to the whole process, so the library leaves them alone and `main` sets them.
    """
    # Threads that spin for long while they wait for each other make a busy machine ten times
    # slower. GNU's OpenMP reads this when torch loads it.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    # glibc gives large blocks back to the system when they are freed, and each comes back page by
    # page: a fifth of an encoder's time.
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a C library other than glibc
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_THRESHOLD, 2**30)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def main() -> None:
    """Run the command line; an error that the user can mend is one line on stderr, exit code 1."""
    set_up_process()
    try:
        app()
    except CliadError as error:
        # On one line, for logs and scripts, though a message may quote text with line breaks.
        message = " ".join(str(error).split())
        print(f"cliad: {message}", file=sys.stderr)
        sys.exit(1)


app = typer.Typer(
    name="cliad",
    help="Few-shot adaptation of CLIP in two stages: extract features once, "
    "then train heads on them in about a second.",
    no_args_is_help=True,
    # A bug shows Python's own traceback; typer's would print the values of all variables, too.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(
    help="Look after the data sets on disk: check, download.",
    no_args_is_help=True,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cliad {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """What can be typed before a command; `_print_version` does the work."""


# Which commands there are: the name that users type and its function, in the order in which
# `cliad --help` lists them. typer lists groups, such as `data`, after commands.
app.command("extract")(stage_one.extract)
app.command("datasets")(stage_one.datasets)
app.command("models")(stage_one.models)
app.command("import")(stage_one.import_)
app.command("info")(cache_files.info)
app.command("verify")(cache_files.verify)
app.command("export")(cache_files.export)
app.command("train")(experiments.train)
app.command("predict")(use.predict)
app.command("serve")(use.serve)
app.command("grid")(experiments.grid)
app.command("report")(experiments.report)
app.command("demo")(experiments.demo)
app.command("heads")(experiments.heads)
app.command("shots")(experiments.shots)

app.add_typer(data_app, name="data")
data_app.command("check")(stage_one.check_data)
data_app.command("download")(stage_one.download_data)


if __name__ == "__main__":
    main()

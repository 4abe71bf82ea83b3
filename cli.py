"""The command line: process settings, the errors that users see, and the table of commands.

Nothing here or in `commands` loads torch before a command runs, so `cliad --help` is quick.
"""

from __future__ import annotations

import ctypes
import io
import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from cliad import __version__
from cliad.commands import cache_files, experiments, stage_one, use
from cliad.commands.experiments import INTERRUPTED
from cliad.errors import CliadError, printable

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
    """Run the command line; an error is one line on stderr, exit code 1.

    `--debug`, anywhere in the command, or `CLIAD_DEBUG=1` shows Python's traceback instead.
    """
    set_up_process()
    if "--debug" in sys.argv[1:]:
        sys.argv.remove("--debug")
        os.environ["CLIAD_DEBUG"] = "1"
    # A name may hold what the terminal's encoding lacks: it is shown as an escape.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            # Here, as an error of what Python writes when it ends would be nobody's to catch.
            if sys.stdout is not None:
                sys.stdout.flush()
    except SystemExit as ended:
        # typer turns Ctrl-C into this code without a word.
        if ended.code == INTERRUPTED:
            print("cliad: interrupted", file=sys.stderr)
        raise
    except BrokenPipeError:
        # `cliad ... | head -1`: whoever reads has seen enough.
        _drop_output()
        sys.exit(1)
    except Exception as error:
        if os.environ.get("CLIAD_DEBUG"):
            raise
        if _is_of_interrupt(error):
            print("cliad: interrupted", file=sys.stderr)
            _drop_output()
            sys.exit(INTERRUPTED)
        print(f"cliad: {_message_of(error)}", file=sys.stderr)
        _drop_output()
        sys.exit(1)


def _is_of_interrupt(error: BaseException) -> bool:
    """Whether Ctrl-C is behind an error: Python and libraries make other errors of it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _drop_output() -> None:
    """Leave unwritten what stdout could not take, so that Python does not try once more."""
    with suppress(OSError, AttributeError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _message_of(error: Exception) -> str:
    """One line that says what went wrong, and what to do where that is known."""
    # On one line, for logs and scripts, though a message may quote text with line breaks.
    text = printable(" ".join(str(error).split()))
    if isinstance(error, CliadError):
        return text
    # torch has a class of its own on a GPU, and a RuntimeError on the CPU.
    is_memory = isinstance(error, MemoryError) or "allocate memory" in text
    if is_memory or type(error).__name__ == "OutOfMemoryError":
        return f"there is not enough memory for this ({text[:80]})"
    if isinstance(error, OSError) and error.strerror:
        place = f": {printable(str(error.filename))}" if error.filename else ""
        return f"{error.strerror}{place}"
    return (
        f"this is a fault in cliad ({type(error).__name__}: {text[:200]}); "
        "please report what the same command prints with --debug"
    )


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
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Where a command fails, show Python's traceback (or CLIAD_DEBUG=1)."
        ),
    ] = False,
) -> None:
    """What can be typed before a command; `_print_version` and `main` do the work."""


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

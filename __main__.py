"""The program `cliad`, and `python -m cliad`: the command line, and Ctrl-C at any moment of it."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from contextlib import suppress

INTERRUPTED = 130  # as shells have it: 128 and the number of the signal


def main() -> None:
    """Run the command line; where it is interrupted, one line on stderr and exit code 130."""
    # A program that was started to ignore Ctrl-C, as by nohup, goes on to ignore it.
    is_heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_heeded:
        # The import takes a moment, in which Ctrl-C would show where Python was.
        signal.signal(signal.SIGINT, _leave)
    # At its end Python looks for garbage in all that was imported, which takes longer than a head.
    atexit.register(gc.freeze)
    from cliad.cli import main as run

    try:
        if is_heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:
        _leave()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            _end()
        raise
    finally:
        # Nothing is left to do but to end.
        if is_heeded:
            signal.signal(signal.SIGINT, _leave)


def _leave(*args: object) -> None:
    """End at once, with a line that says so."""
    with suppress(OSError):
        os.write(2, b"cliad: interrupted\n")
    _end()


def _end() -> None:
    """End as interrupted.

    Python itself may give another code: where Ctrl-C met an `exec`, as each dataclass has one, it
    ends by the signal, though the interruption was caught.
    """
    with suppress(OSError, ValueError, RuntimeError):
        sys.stdout.flush()
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()

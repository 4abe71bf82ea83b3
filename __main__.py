"""The program `cliad`, and `python -m cliad`: the command line, and Ctrl-C at any moment of it."""

from __future__ import annotations

import sys

INTERRUPTED = 130  # as shells have it: 128 and the number of the signal


def main() -> None:
    """Run the command line; where it is interrupted, one line on stderr and exit code 130."""
    # The import takes a moment, in which Ctrl-C would show where Python was.
    try:
        from cliad.cli import main as run

        run()
    except KeyboardInterrupt:
        print("cliad: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()

"""results.jsonl: one result row a line. Rows are appended whole and synced; a line that a crash tore is cut off."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cliad.cache.files import hold


class RowsError(ValueError):
    """A results file that cannot be read or written; the message says where and what to do."""


def read_rows(path: Path) -> tuple[list[dict], int, int]:
    """The rows of a results file, how many bytes hold them, and how many bytes of a torn last line follow.

    Raises:
        RowsError: it cannot be read, or a line (other than a torn last one) is no result row.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise RowsError(f"cannot read {path}: {error.strerror}") from None
    *lines, last = data.split(b"\n")
    rows = [_row(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    if last.strip():
        try:
            return [*rows, _row(last, path, len(lines) + 1)], len(data), 0
        except RowsError:
            return rows, len(data) - len(last), len(last)
    return rows, len(data), 0


def _row(line: bytes, path: Path, number: int) -> dict:
    try:
        row = json.loads(line)
        if not isinstance(row, dict) or not {"dataset", "head", "shots", "seed", "top1"} <= row.keys():
            raise ValueError("it is no result row")
        return row
    except (ValueError, RecursionError) as error:
        raise RowsError(f"{path} line {number}: {str(error)[:80]}; mend or delete the line") from None


class Ledger:
    """A results file that is open for appending: `rows` are those in it."""

    def __init__(self, path: Path, tell: Callable[[str], None]):
        self.path = path
        self.rows, size, torn = read_rows(path) if path.exists() else ([], 0, 0)
        try:
            self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
            if torn:
                tell(f"{path}: the last line is torn (an earlier grid was killed while writing it); {torn} bytes are cut off")
                os.ftruncate(self.fd, size)
            elif size and not path.read_bytes().endswith(b"\n"):
                os.write(self.fd, b"\n")
            os.fsync(self.fd)
        except OSError as error:
            raise _cannot(path, error) from None

    def append(self, rows: Sequence[dict]) -> None:
        """Add rows: all lines in one write, on the disk when this returns; where that fails the file is as it was."""
        data = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
        size = os.fstat(self.fd).st_size
        try:
            written = os.write(self.fd, data)
            if written < len(data):
                raise OSError(28, "the disk is full")
            os.fsync(self.fd)
        except OSError as error:
            os.ftruncate(self.fd, size)
            raise RowsError(f"cannot write {self.path}: {error.strerror}; the same command goes on from what is there") from None
        self.rows += rows


@contextmanager
def open_ledger(path: Path, tell: Callable[[str], None]) -> Iterator[Ledger]:
    """The results file `path` for this process alone; while another one writes it, say who and wait.

    Raises:
        RowsError: it cannot be made, or what is there is no results file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(13, "the folder may not be written")
    except OSError as error:
        raise _cannot(path, error) from None
    with hold(path, tell):
        ledger = Ledger(path, tell)
        try:
            yield ledger
        finally:
            os.close(ledger.fd)


def _cannot(path: Path, error: OSError) -> RowsError:
    return RowsError(f"cannot write {path}: {error.strerror or error}; give another file with --out FILE")

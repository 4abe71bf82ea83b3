"""results.jsonl: one result row a line.

Rows are appended whole and synced; a last line that a crash left incomplete is cut off.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cliad.cache.files import file_lock
from cliad.errors import CliadError

NEEDED_WORDS = {"dataset", "head", "shots", "seed", "top1"}


class RowsError(CliadError):
    """A results file that cannot be read or written; the message says where and what to do."""


@dataclass(frozen=True)
class StoredRows:
    """The rows of a results file, and how many of its bytes hold them."""

    rows: list[dict]
    size: int  # bytes of the file up to the end of its last whole line
    incomplete: int  # bytes behind them


def read_rows(path: Path) -> StoredRows:
    """The rows of a results file.

    Raises:
        RowsError: it cannot be read, or a line (other than an incomplete last one) is not a result
            row.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise RowsError(f"cannot read {path}: {error.strerror}") from None
    # Every whole line ends with a newline, so the last part is empty or incomplete.
    *lines, last = data.split(b"\n")
    rows = [_row(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not last.strip():
        return StoredRows(rows, len(data), 0)
    # Other tools may leave out the last newline: a last line that can be read is a row.
    try:
        rows.append(_row(last, path, len(lines) + 1))
    except RowsError:
        return StoredRows(rows, len(data) - len(last), len(last))
    return StoredRows(rows, len(data), 0)


def _row(line: bytes, path: Path, number: int) -> dict:
    try:
        row = json.loads(line)
        if not isinstance(row, dict) or not row.keys() >= NEEDED_WORDS:
            raise ValueError("it is not a result row")
        return row
    except (ValueError, RecursionError) as error:
        reason = str(error)[:80]
        raise RowsError(f"{path} line {number}: {reason}; fix or delete the line") from None


class ResultsFile:
    """A results file that is open for appending; `rows` are those in it."""

    def __init__(self, path: Path, log: Callable[[str], None]):
        stored = StoredRows([], 0, 0)
        if path.exists():
            stored = read_rows(path)
        self.path = path
        self.rows = stored.rows
        try:
            self._fd = _open_to_append(path)
            if stored.incomplete:
                log(
                    f"{path}: the last line is incomplete (an earlier grid was killed while"
                    f" writing it); {stored.incomplete} bytes are cut off"
                )
                os.ftruncate(self._fd, stored.size)
            elif stored.size and not path.read_bytes().endswith(b"\n"):
                os.write(self._fd, b"\n")
            os.fsync(self._fd)
        except OSError as error:
            raise _cannot_write(path, error) from None

    def append(self, rows: Sequence[dict]) -> None:
        """Add rows: all lines in one write, on the disk when this returns.

        Raises:
            RowsError: that failed; the file is as it was.
        """
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
        data = "".join(line + "\n" for line in lines).encode()
        size = os.fstat(self._fd).st_size
        try:
            # One call: a process that is killed leaves whole rows, or one incomplete last line.
            written = os.write(self._fd, data)
            # A full disk takes a part of the bytes without an error.
            if written < len(data):
                raise OSError(errno.ENOSPC, "the disk is full")
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, size)
            raise RowsError(
                f"cannot write {self.path}: {error.strerror}; the same command goes on from"
                " what is there"
            ) from None
        self.rows += rows

    def close(self) -> None:
        """Close the file; its rows stay readable here."""
        os.close(self._fd)


def _open_to_append(path: Path) -> int:
    binary = getattr(os, "O_BINARY", 0)  # Windows: a newline stays one byte
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | binary, 0o644)


@contextmanager
def open_results(path: Path, log: Callable[[str], None]) -> Iterator[ResultsFile]:
    """The results file `path` for this process alone; while another writes it, say who and wait.

    Raises:
        RowsError: it cannot be made, or what is there is not a results file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Before the lock, so that the message is about the results file and not about its lock.
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, "the folder may not be written")
    except OSError as error:
        raise _cannot_write(path, error) from None
    with file_lock(path, log):
        results = ResultsFile(path, log)
        try:
            yield results
        finally:
            results.close()


def _cannot_write(path: Path, error: OSError) -> RowsError:
    reason = error.strerror or error
    return RowsError(f"cannot write {path}: {reason}; give another file with --out FILE")

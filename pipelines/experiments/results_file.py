"""results.jsonl: one result row a line.

Rows are appended whole and synced; a last line that a crash left incomplete is cut off.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from cliad.cache.documents import LARGEST, UTF_16, has_half_letter, open_regular
from cliad.cache.files import check_place, file_lock
from cliad.errors import CliadError
from cliad.pipelines.experiments.row_fields import first_wrong_field

NEEDED_WORDS = {"dataset", "head", "shots", "seed", "top1"}
LONGEST_LINE = 2**20  # bytes; a row has some two thousand
DELETE_LINE = "fix or delete the line"
# How every row begins.
START_OF_ROW = b'{"dataset"'


class RowsError(CliadError):
    """A results file that cannot be read or written; the message says where and what to do."""


@dataclass(frozen=True)
class StoredRows:
    """The rows of a results file, and how many of its bytes hold them."""

    rows: list[dict]
    size: int  # bytes of the file up to the end of its last whole line
    incomplete: int  # bytes behind them
    lines: Sequence[int] = field(default=(), compare=False)  # the number of each row's line


def read_rows(path: Path) -> StoredRows:
    """The rows of a results file, each checked against `cliad.pipelines.experiments.row_fields`.

    A file with a line that is no row is not used at all: it is damaged, or another file.

    Raises:
        RowsError: it cannot be read, or a line (other than an incomplete last one) is not a result
            row; the message says which line and which field.
    """
    hint = "give a results file of `cliad grid`"
    rows: list[dict] = []
    numbers: list[int] = []
    size = 0
    with open_regular(path, RowsError, hint) as stream:
        length = os.fstat(stream.fileno()).st_size
        if length > LARGEST:
            raise RowsError(f"{path} has {length:,} bytes, more than the {LARGEST:,} allowed")
        # One line at a time, so that no file takes more memory than its rows.
        number = 0
        while line := _read_line(stream, path):
            number += 1
            content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            row = _row_of_line(content, path, number)
            if row is None and content.strip():
                return StoredRows(rows, size, len(line), numbers)
            if row is not None:
                rows.append(row)
                numbers.append(number)
            size += len(line)
    return StoredRows(rows, size, 0, numbers)


def _read_line(stream: BinaryIO, path: Path) -> bytes:
    try:
        return stream.readline(LONGEST_LINE + 1)
    except OSError as error:
        raise RowsError(f"cannot read {path}: {error.strerror}") from None


def _row_of_line(line: bytes, path: Path, number: int) -> dict | None:
    """The row of a line; None for an empty line, or a last one that is incomplete.

    Every whole line ends with a newline. Other tools may leave out the last one, so a last line
    that can be read is a row, too.
    """
    if number == 1:
        _check_format(line, path)
    if not line.strip():
        return None
    if len(line) > LONGEST_LINE:
        raise RowsError(f"{path} line {number} has more than {LONGEST_LINE:,} bytes; {DELETE_LINE}")
    try:
        return _row(line, path, number)
    except RowsError:
        # Only a row that was not written to its end is cut off; anything else is somebody's file.
        is_last = not line.endswith(b"\n")
        if is_last and _is_start_of_row(line) and not _is_json(line):
            return None
        raise


def _check_format(line: bytes, path: Path) -> None:
    """RowsError for a first line that cannot be one of a results file, and what it is instead."""
    if line.startswith(UTF_16) or b"\0" in line[:200]:
        raise RowsError(f"{path} is not UTF-8 text (UTF-16, or no text at all); save it as UTF-8")
    if line.lstrip().startswith(b"["):
        raise RowsError(
            f"{path} is a JSON list; a results file has one row a line (JSON Lines): write each"
            " entry of the list on a line of its own"
        )
    # What `train --json` prints, over many lines.
    if line.split() == [b"{"] and line.endswith(b"\n"):
        raise RowsError(
            f"{path} is one JSON table over many lines; a results file has one row a line"
        )


def _is_start_of_row(line: bytes) -> bool:
    """Whether a killed grid may have left this; after a power cut, zero bytes may stand there."""
    return START_OF_ROW.startswith(line[: len(START_OF_ROW)]) or not line.strip(b"\0")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _row(line: bytes, path: Path, number: int) -> dict:
    where = f"{path} line {number}"
    try:
        text = line.decode()
        row = DECODER.decode(text)
        has_half = has_half_letter(text, row)
    except RecursionError:
        raise RowsError(f"{where}: it is nested too deeply; {DELETE_LINE}") from None
    except ValueError as error:
        raise RowsError(f"{where}: {str(error)[:80]}; {DELETE_LINE}") from None
    if has_half:
        raise RowsError(f"{where}: it holds half a letter; {DELETE_LINE}")
    if not isinstance(row, dict) or not row.keys() >= NEEDED_WORDS:
        raise RowsError(f"{where}: it is not a result row; {DELETE_LINE}")
    wrong = first_wrong_field(row)
    if wrong is not None:
        raise RowsError(f"{where}: {wrong}; {DELETE_LINE}")
    return row


def _refuse_constant(word: str) -> None:
    # Python's JSON takes NaN and Infinity, which no row has: they are null there.
    raise ValueError(f"{word} is not a number")


DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


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
            elif stored.size and not _ends_with_newline(path):
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


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() == b"\n"


def _open_to_append(path: Path) -> int:
    binary = getattr(os, "O_BINARY", 0)  # Windows: a newline stays one byte
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | binary, 0o644)


@contextmanager
def open_results(path: Path, log: Callable[[str], None]) -> Iterator[ResultsFile]:
    """The results file `path` for this process alone; while another writes it, say who and wait.

    Raises:
        RowsError: it cannot be made, or what is there is not a results file.
    """
    # Before the lock, which stays: what cannot be used leaves nothing behind.
    try:
        check_place(path)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _cannot_write(path, error) from None
    if path.exists():
        read_rows(path)
    with file_lock(path, log):
        results = ResultsFile(path, log)
        try:
            yield results
        finally:
            results.close()


def _cannot_write(path: Path, error: OSError) -> RowsError:
    reason = error.strerror or error
    return RowsError(f"cannot write {path}: {reason}; give another file with --out FILE")

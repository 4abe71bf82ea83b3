"""Bytes on the disk, written past HDF5, and what a user can do when that fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cliad.cache.file.layout import CacheError, as_bytes


def open_for_writing(path: Path) -> int:
    """A file descriptor of an existing file, to be closed by the caller."""
    # Without O_BINARY, Windows would write two bytes for each byte 10.
    return os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))


def write_at(descriptor: int, data: np.ndarray, offset: int) -> None:
    """Write an array at an offset of the file, in bytes."""
    remaining = as_bytes(np.ascontiguousarray(data))
    while remaining:
        # A write may end early, for example when a signal comes in.
        written = _write(descriptor, remaining, offset)
        remaining = remaining[written:]
        offset += written


def _write(descriptor: int, data: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, offset)
    # Windows lacks it. Nobody else moves the position: there is one writer.
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.write(descriptor, data)


def disk_error(error: OSError, path: Path) -> CacheError:
    """What a user can do about an error of the operating system while `path` is written."""
    if error.errno == errno.ENOSPC:
        return CacheError(
            f"the disk of {path.parent} is full; free some space and run the same command again, "
            "or give --cache DIR"
        )
    reason = error.strerror or error
    return CacheError(f"cannot write {path}: {reason}; give another folder with --cache DIR")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """An OSError in the block becomes the `disk_error` of writing `path`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from None

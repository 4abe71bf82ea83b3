"""How files are written: beside their place, synced, renamed; and who may write."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from cliad.cache.file.layout import CacheError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file that takes the place of `path` when it is whole, and leaves no trace when it is not."""
    new = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield new
        os.replace(new, path)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_error(error, path) from None
    finally:
        with suppress(OSError):
            new.unlink()


def disk_error(error: OSError, path: Path) -> CacheError:
    if error.errno == errno.ENOSPC:
        return CacheError(f"the disk of {path.parent} is full; free some space and run the same command again, or give --cache DIR")
    return CacheError(f"cannot write {path}: {error.strerror or error}; give another folder with --cache DIR")


def sync_folder(folder: Path) -> None:
    if os.name == "posix":
        fd = os.open(folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


@contextmanager
def hold(path: Path, tell=lambda message: None) -> Iterator[None]:
    """Hold the right to write the cache `path`; while another process has it, say who (through `tell`) and wait."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock, owner = filelock.FileLock(path.with_name(path.name + ".lock")), path.with_name(path.name + ".owner")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            who = owner.read_text() if owner.exists() else "another process"
            tell(f"{path.name} is being written by {who}; waiting for it")
            lock.acquire()
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    except OSError as error:
        raise disk_error(error, path) from None
    try:
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()

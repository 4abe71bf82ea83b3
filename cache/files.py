"""How files are written: beside their place, synced, renamed; and who may write."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

LONGEST_NAME = 255  # bytes, in most file systems


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place for a new file or folder, which takes the place of `path` when the block ends.

    Nobody sees half of it: where the block raises, `path` is as it was and nothing else is left.
    Whether what is there may be replaced is for the caller to check; a file never takes the place
    of a folder. What a killed process left behind is removed.

    Raises:
        OSError: the disk is full, or `path` cannot be written.
    """
    _check_name(path)
    missing = missing_folders(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _renamed(path) as new:
            yield new
    except BaseException:
        remove_empty(missing)
        raise


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """`replacing`, in a folder that is there."""
    with beside(path) as new:
        yield new
        # Before the rename: after a power cut, the name must not stand for an empty file.
        _sync(new)
        _set_mode(new)
        # A rename replaces a file, but no folder that holds something. Where a file was written,
        # the rename fails and the folder stays: it is not what the user meant to lose.
        if path.is_dir() and new.is_dir():
            _swap(new, path)
        else:
            os.replace(new, path)
        sync_folder(path.parent)


def _swap(new: Path, path: Path) -> None:
    """Put the folder `new` in the place of the folder `path`, which is removed.

    The old one is moved away whole: to be killed while it is removed must not leave half of it.
    """
    old = new.with_suffix(".old")
    _remove(old)
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    _remove(old)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """The name of a file or folder that may be made in the folder of `path`, gone after the block.

    What a killed process left under such a name is removed.
    """
    _remove_leftovers(path)
    # In the same folder, as a rename does not lead from one disk to another.
    new = path.with_name(_name_beside(path))
    _remove(new)  # of an earlier process with this number
    try:
        yield new
    finally:
        _remove(new)


def missing_folders(folder: Path) -> list[Path]:
    """Those of a folder and the folders above it that are not there, the lowest first."""
    missing = []
    for candidate in (folder, *folder.parents):
        if os.path.lexists(candidate):
            break
        missing.append(candidate)
    return missing


def remove_empty(folders: list[Path]) -> None:
    """Remove folders that were made for nothing; others may have put something there since."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _set_mode(path: Path) -> None:
    """Let others read a file, or those of a folder, as the umask says.

    Some libraries write files for their owner alone.
    """
    if os.name != "posix":
        return
    umask = os.umask(0o077)  # it can only be read by setting it
    os.umask(umask)
    for file in _files_of(path):
        file.chmod(0o666 & ~umask)


def _files_of(path: Path) -> list[Path]:
    """The file at a path, or all files of the folder there."""
    if path.is_dir():
        return [entry for entry in path.rglob("*") if entry.is_file()]
    return [path]


def check_place(path: Path) -> None:
    """Check that something can be written at `path`, before the work that is to be written.

    The folders above it need not be there yet. Nothing stays on the disk.

    Raises:
        OSError: it has no name of its own, is a pipe or a device, or its folder cannot be written.
    """
    _check_name(path)
    folder = path.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is not a folder", str(path))
    # Only a trial shows it: root may write everywhere, but not on a disk that is read-only.
    Path(tempfile.mkdtemp(prefix=".cliad-", dir=folder)).rmdir()


def _check_name(path: Path) -> None:
    """OSError for a path that nothing can be written beside, or that stands for no file."""
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "a name cannot hold a zero byte", repr(str(path)))
    # ".", ".." and "/" have no name of their own.
    if path.name in ("", ".."):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    # The longest name is that of the file beside it.
    if len(os.fsencode(_name_beside(path))) > LONGEST_NAME:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path.name[:40])
    # A device would be replaced by a file, and a pipe never ends.
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))


def _name_beside(path: Path) -> str:
    """The name under which this process writes what is to be at `path`."""
    return f".{path.name}.{_host()}-{os.getpid()}.new"


def replace_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        OSError: see `replacing`.
    """
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")


def _host() -> str:
    """The name of this machine, fit for a file name."""
    return re.sub(r"[^A-Za-z0-9.]", "", socket.gethostname())


def _remove_leftovers(path: Path) -> None:
    """Remove what dead processes of this machine have left of writing `path`.

    A folder may be shared by machines; whether the processes of others run is not known here.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{_host()}-*"):
        process = leftover.stem.rpartition("-")[2]
        if leftover.suffix not in (".new", ".old") or not process.isdigit():
            continue
        if _is_running(int(process)):
            continue
        # Killed between the two renames of `_swap`: what was there comes back.
        if leftover.suffix == ".old" and not os.path.lexists(path):
            os.replace(leftover, path)
        else:
            _remove(leftover)


def _is_running(process: int) -> bool:
    """Whether a process with this number runs here; True where that is not known."""
    if os.name != "posix":
        return True  # there, signal 0 would end the process
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # It runs and is another user's, or the number is too large for a process.
    except (OSError, OverflowError):
        return True
    return True


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Put a file, or all files of a folder, on the disk."""
    for file in _files_of(path):
        with open(file, "rb+") as stream:
            os.fsync(stream.fileno())


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hex; large files are read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Put a folder's list of names on the disk."""
    # Elsewhere a folder cannot be opened as a file.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read_owner(note: Path) -> str:
    """Who holds a lock, by the note beside it."""
    # The owner may write or remove its note at this very moment.
    try:
        return note.read_text() or "another process"
    except FileNotFoundError:
        return "another process"


@contextmanager
def file_lock(path: Path, log: Callable[[str], None] = lambda message: None) -> Iterator[None]:
    """Hold the right to write `path`; while another process has it, say who and wait.

    The folders above it are made; those in which nothing was written are gone after the block.

    Raises:
        OSError: the lock beside `path` cannot be made.
    """
    missing = missing_folders(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _held(path, log):
            yield
    finally:
        remove_empty(missing)


@contextmanager
def _held(path: Path, log: Callable[[str], None]) -> Iterator[None]:
    """`file_lock`, in a folder that is there."""
    place = path.with_name(path.name + ".lock")
    lock = filelock.FileLock(place)
    owner = path.with_name(path.name + ".owner")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        log(f"{path.name} is being written by {_read_owner(owner)}; waiting for it")
        lock.acquire()
    try:
        # For the message of those who wait; the lock itself does not say who holds it.
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        # Before the lock is released, or the next owner's note and lock would be removed. Those who
        # wait for a lock that was removed make a new one. Windows keeps a file that is open.
        with suppress(OSError):
            owner.unlink(missing_ok=True)
            place.unlink(missing_ok=True)
        lock.release()

"""Unpacking what was fetched: tar and zip archives, whose members may say anything.

A member is used only where it lands: below the folder that is unpacked to.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from cliad.cache.documents import open_regular
from cliad.cache.files import beside, missing_folders
from cliad.errors import CliadError, printable

# Archives that a zip brings are unpacked in their place (Caltech-101's does), but no further.
INNER = (".tar.gz", ".tgz", ".tar")
# An archive of images hardly shrinks: ten times its size is text, a thousand times is a trap.
MOST_GROWTH = 200
SMALL = 2**28  # bytes that are unpacked whatever the archive's size
MOST_MEMBERS = 5_000_000  # ImageNet has 1.3 million images

ENCRYPTED = 1  # a flag of a zip's member


class DownloadError(CliadError):
    """A file that cannot be fetched, unpacked, or has another content; says what to do."""


def unpack(archive: Path, folder: Path, log: Callable[[str], None] = lambda line: None) -> None:
    """Unpack a tar or zip archive into a folder; a tar in a zip is unpacked in its own place.

    Links, devices and pipes are not what a data set consists of: they are refused, as are names
    that lead outside, and archives that would not fit on the disk. What was unpacked of an archive
    that is refused is removed again.

    Args:
        archive: a file.
        folder: made where it is missing.
        log: takes a line where files of one name stand in the archive.

    Raises:
        DownloadError: it is not a complete archive, or one of the above.
    """
    free = shutil.disk_usage(_lowest_there(folder)).free
    work = _Unpacking(archive, free)
    try:
        work.unpack(archive, folder)
    except BaseException as error:
        work.undo()
        if isinstance(error, DownloadError | MemoryError) or not isinstance(error, Exception):
            raise
        raise _as_one_line(error, archive, folder, free) from None
    if work.n_twice:
        log(
            f"{archive.name}: {work.n_twice:,} files stand in it more than once;"
            " the last of each is taken"
        )


def _as_one_line(error: Exception, archive: Path, folder: Path, free: int) -> DownloadError:
    if isinstance(error, OSError) and error.strerror:
        return DownloadError(
            f"cannot unpack {archive} into {folder}: {error.strerror} ({free / 1e6:,.0f} MB free)"
        )
    # A damaged archive makes the libraries raise almost anything: TarError, BadZipFile, EOFError,
    # zlib.error, NotImplementedError, ValueError, ...
    reason = printable(" ".join(str(error).split()))[:80]
    return DownloadError(
        f"{archive} cannot be unpacked ({reason}); remove it and run the same command again"
    )


class _Unpacking:
    """What unpacking an archive, and those in it, has taken so far."""

    def __init__(self, archive: Path, free: int):
        """`free`: bytes on the disk before anything is written."""
        self.n_twice = 0
        self._archive = archive
        self._free = free
        self._size = 0  # of the outer archive, which all that comes out of it is measured by
        self._total = 0
        self._n_member = 0
        self._made: list[str] = []  # files and folders that were not there before
        self._folders: set[str] = set()  # those that are there now
        self._names: set[str] = set()

    def unpack(self, archive: Path, folder: Path) -> None:
        """Unpack an archive, and those that a zip brings."""
        with open_regular(archive, DownloadError) as stream:
            self._size = os.fstat(stream.fileno()).st_size
            if zipfile.is_zipfile(stream):
                stream.seek(0)
                with zipfile.ZipFile(stream) as content:
                    self._unpack_zip(content, folder)
            else:
                self._unpack_tar(stream, folder)

    def undo(self) -> None:
        """Remove what was made."""
        for path in reversed(self._made):
            with suppress(OSError):
                if os.path.isdir(path):
                    os.rmdir(path)
                else:
                    os.unlink(path)

    def _unpack_zip(self, content: zipfile.ZipFile, folder: Path) -> None:
        members = content.infolist()
        self._count(len(members), sum(one.file_size for one in members))
        for member in members:
            self._check_zip_member(member)
        self._need_folder(folder)
        inner = []
        for member in members:
            if member.filename.endswith(INNER):
                inner.append(member)
            else:
                self._note(folder, member.filename, member.is_dir())
                content.extract(member, folder)
        # In a place of our own: a file of the same name in `folder` may be the user's.
        with beside(folder / "archive") as private:
            for member in inner:
                written = Path(content.extract(member, private))
                with open(written, "rb") as stream:
                    self._unpack_tar(stream, (folder / member.filename).parent)
                written.unlink()

    def _check_zip_member(self, member: zipfile.ZipInfo) -> None:
        self._check_name(member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)
        # 0: made on a system without kinds of files.
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise self._refused(member.filename, "is a link or a device")
        if member.flag_bits & ENCRYPTED:
            raise self._refused(member.filename, "has a password")

    def _unpack_tar(self, stream: BinaryIO, folder: Path) -> None:
        stream.seek(0)
        with tarfile.open(fileobj=stream) as tar:
            for member in tar:
                self._count(1, member.size)
                self._check_name(member.name)
                if not (member.isreg() or member.isdir()) or member.issparse():
                    raise self._refused(member.name, "is a link, a device or sparse")
                self._note(folder, member.name, member.isdir())
                # The filter "data" refuses what leads outside through a link that was there before.
                tar.extract(member, folder, filter="data")

    def _count(self, n_member: int, size: int) -> None:
        """Refuse what is far larger than its archive, or than the disk; before it is written.

        Raises:
            DownloadError: it is.
        """
        self._n_member += n_member
        self._total += size
        limit = max(SMALL, MOST_GROWTH * self._size)
        if self._n_member > MOST_MEMBERS or self._total > limit:
            raise DownloadError(
                f"{self._archive} ({self._size:,} bytes) says that it holds {self._n_member:,}"
                f" files or more of {self._total:,} bytes, too many for an archive of images;"
                " remove it"
            )
        if self._total > self._free:
            raise DownloadError(
                f"cannot unpack {self._archive}: it holds {self._total / 1e6:,.0f} MB or more,"
                f" and {self._free / 1e6:,.0f} MB are free"
            )

    def _note(self, folder: Path, name: str, is_folder: bool) -> None:
        """Remember what a member adds to the disk, to be able to remove it."""
        target = os.path.join(folder, name)
        if is_folder:
            self._need_folder(Path(target))
            return
        self._need_folder(Path(os.path.dirname(target)))
        self.n_twice += target in self._names
        self._names.add(target)
        if not os.path.lexists(target):
            self._made.append(target)

    def _need_folder(self, folder: Path) -> None:
        if str(folder) in self._folders:
            return
        self._made += [str(path) for path in reversed(missing_folders(folder))]
        folder.mkdir(parents=True, exist_ok=True)
        self._folders.add(str(folder))

    def _check_name(self, name: str) -> None:
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or ":" in parts[0]:
            raise self._refused(name, "leads outside of its folder")

    def _refused(self, name: str, why: str) -> DownloadError:
        return DownloadError(
            f"{self._archive} is not unpacked: its member {printable(name[:80])} {why};"
            " remove it, and fetch it from where it was published"
        )


def _lowest_there(folder: Path) -> Path:
    """The folder, or the lowest above it that is there."""
    while not folder.is_dir():
        folder = folder.parent
    return folder

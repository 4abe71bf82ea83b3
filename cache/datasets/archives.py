"""Unpacking what was fetched: tar and zip archives, whose members may say anything.

A member is used only where it lands: below the folder that is unpacked to.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

from cliad.cache.documents import open_regular
from cliad.errors import CliadError, printable

# Archives that a zip brings are unpacked in their place (Caltech-101's does), but no further.
INNER = (".tar.gz", ".tgz", ".tar")
# An archive of images hardly shrinks: ten times its size is text, a thousand times is a trap.
MOST_GROWTH = 200
SMALL = 2**28  # bytes that are unpacked whatever the archive's size
MOST_MEMBERS = 5_000_000  # ImageNet has 1.3 million images


class DownloadError(CliadError):
    """A file that cannot be fetched, unpacked, or has another content; says what to do."""


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip archive into a folder; a tar in a zip is unpacked in its own place.

    Links, devices and pipes are not what a data set consists of: they are refused, as are names
    that lead outside, and archives that would not fit on the disk.

    Raises:
        DownloadError: it is not a complete archive, or one of the above.
    """
    try:
        for inner in _unpack_one(archive, folder):
            _unpack_one(inner, inner.parent)
            # The archive would double the space on the disk.
            inner.unlink()
    except (DownloadError, MemoryError):
        raise
    except OSError as error:
        free = shutil.disk_usage(folder.parent if not folder.is_dir() else folder).free / 1e6
        raise DownloadError(
            f"cannot unpack {archive} into {folder}: {error.strerror or error}"
            f" ({free:,.0f} MB free)"
        ) from None
    # A damaged archive makes the libraries raise almost anything: TarError, BadZipFile, EOFError,
    # zlib.error, NotImplementedError, RuntimeError (encrypted), ValueError, ...
    except Exception as error:
        raise DownloadError(
            f"{archive} cannot be unpacked ({printable(str(error))[:80]});"
            " remove it and run the same command again"
        ) from None


def _unpack_one(archive: Path, folder: Path) -> list[Path]:
    """Unpack an archive; returns the tar archives that a zip brought."""
    with open_regular(archive, DownloadError) as stream:
        size = os.fstat(stream.fileno()).st_size
        if zipfile.is_zipfile(stream):
            stream.seek(0)
            with zipfile.ZipFile(stream) as content:
                return _unpack_zip(content, archive, folder, size)
        stream.seek(0)
        # The filter "data" refuses files outside `folder`, devices, and links that lead out of it.
        with tarfile.open(fileobj=stream) as tar:
            _unpack_tar(tar, archive, folder, size)
    return []


def _unpack_zip(content: zipfile.ZipFile, archive: Path, folder: Path, size: int) -> list[Path]:
    members = content.infolist()
    _check_size(archive, folder, size, len(members), sum(one.file_size for one in members))
    for member in members:
        _check_name(archive, member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)
        # 0: made on a system without kinds of files.
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(archive, member.filename, "is a link or a device")
    inner = []
    for member in members:
        # What is unpacked further is where zipfile says that it wrote it, not where a name leads.
        written = Path(content.extract(member, folder))
        if member.filename.endswith(INNER) and written.is_file():
            inner.append(written)
    # A name that is there twice is one file.
    return list(dict.fromkeys(inner))


def _unpack_tar(tar: tarfile.TarFile, archive: Path, folder: Path, size: int) -> None:
    total = 0
    for number, member in enumerate(tar):
        total += member.size
        _check_size(archive, folder, size, number, total)
        _check_name(archive, member.name)
        if not (member.isreg() or member.isdir()) or member.issparse():
            raise _refused(archive, member.name, "is a link, a device or sparse")
        tar.extract(member, folder, filter="data")


def _check_size(archive: Path, folder: Path, size: int, n_member: int, total: int) -> None:
    """Refuse what is far larger than its archive, or than the disk; before it is written.

    Raises:
        DownloadError: it is.
    """
    place = folder
    while not place.is_dir():
        place = place.parent
    free = shutil.disk_usage(place).free
    limit = max(SMALL, MOST_GROWTH * size)
    if n_member > MOST_MEMBERS or total > limit:
        raise DownloadError(
            f"{archive} ({size:,} bytes) says that it holds {n_member:,} files of"
            f" {total:,} bytes, too many for an archive of images; remove it"
        )
    if total > free:
        raise DownloadError(
            f"cannot unpack {archive} into {folder}: it holds {total / 1e6:,.0f} MB,"
            f" and {free / 1e6:,.0f} MB are free"
        )


def _check_name(archive: Path, name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or ":" in parts[0]:
        raise _refused(archive, name, "leads outside of its folder")


def _refused(archive: Path, name: str, why: str) -> DownloadError:
    return DownloadError(
        f"{archive} is not unpacked: its member {printable(name)[:80]} {why};"
        " remove it, and fetch it from where it was published"
    )

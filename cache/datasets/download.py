"""`cliad data download`: fetch a data set's files, with progress, checksums and resume."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cliad.cache.datasets import data_dir, default_data_dir, find_dataset
from cliad.cache.datasets.base import Dataset, Remote
from cliad.errors import CliadError

CHUNK = 1 << 20
TRIES = 5
PAUSE = 1.0  # seconds before the second try, doubled each time
TIMEOUT = 60.0


class DownloadError(CliadError):
    """A file that cannot be fetched, or is not what it should be; the message says what to do."""


@dataclass(frozen=True)
class Fetching:
    """How far a download is: the file's name, bytes done, bytes in all (0 where the server does not say)."""

    file: str
    done: int
    total: int


def download(
    name: str,
    *,
    data: Path | None = None,
    log: Callable[[str], None] = lambda line: None,
    progress: Callable[[Fetching], None] = lambda state: None,
) -> Path:
    """Fetch what is missing of a data set and unpack it.

    Args:
        name: the data set.
        data: the folder that holds the data sets; by default $CLIAD_DATA, else the user's data folder.
    Returns:
        The folder that holds the data sets.
    Raises:
        DatasetError: no such data set.
        DownloadError: nothing to fetch, or a file that cannot be had.
    """
    dataset, data = find_dataset(name), data_dir(data) or default_data_dir()
    if not dataset.remotes:
        raise DownloadError(
            f"{name} cannot be fetched by cliad"
            + (f"; fetch {dataset.by_hand} into {data / dataset.folder}" if dataset.by_hand else "")
        )
    folder = data / dataset.folder
    wanted = [remote for remote in dataset.remotes if not _done(folder, remote)]
    log(_plan(dataset, wanted, folder))
    for remote in wanted:
        file = fetch(remote, folder, log=log, progress=progress)
        if remote.unpack:
            log(f"unpacking {file.name}")
            unpack(file, folder)
            file.unlink()
        _mark(folder, remote)
    if dataset.by_hand:
        log(f"still to be fetched by hand: {dataset.by_hand}, into {folder}")
    return data


def _plan(dataset: Dataset, wanted: Sequence[Remote], folder: Path) -> str:
    if not wanted:
        return f"{dataset.name}: everything that can be fetched is in {folder}"
    files = ", ".join(
        f"{remote.url}" + (f" ({remote.megabytes:,.0f} MB)" if remote.megabytes else "")
        for remote in wanted
    )
    return f"{dataset.name}: fetching {files} into {folder}"


def _done(folder: Path, remote: Remote) -> bool:
    return _marker(folder, remote).exists() if remote.unpack else (folder / remote.file).is_file()


def _marker(folder: Path, remote: Remote) -> Path:
    return folder / f".{remote.file}.unpacked"


def _mark(folder: Path, remote: Remote) -> None:
    if remote.unpack:
        _marker(folder, remote).touch()


def fetch(
    remote: Remote,
    folder: Path,
    *,
    log: Callable[[str], None],
    progress: Callable[[Fetching], None],
) -> Path:
    """Fetch one file into a folder; what a cut connection or an earlier run left in `file.part` is continued.

    Raises:
        DownloadError: the server cannot be reached, refuses, or sends something else than expected.
    """
    target = folder / remote.file
    part = target.with_name(target.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _fetch_part(remote, part, log, progress)
        _check(remote, part)
        os.replace(part, target)
    except OSError as error:
        raise DownloadError(
            f"cannot write {target}: {error.strerror or error}; give another folder with --data DIR"
        ) from None
    return target


def _fetch_part(
    remote: Remote, part: Path, log: Callable[[str], None], progress: Callable[[Fetching], None]
) -> None:
    pause = PAUSE
    for tried in range(TRIES):
        try:
            return _receive(remote, part, progress)
        except urllib.error.HTTPError as error:
            error.close()  # it holds the connection
            if error.code < 500 and error.code not in (408, 429):
                raise DownloadError(
                    f"{remote.url} answers {error.code} {error.reason}; fetch it by hand into {part.parent}"
                ) from None
            reason = f"{error.code} {error.reason}"
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
        ) as error:
            reason = str(getattr(error, "reason", "") or error)[:100]
        if tried + 1 < TRIES:
            log(f"{remote.file}: {reason}; trying again")
            time.sleep(pause)
            pause *= 2
    raise DownloadError(
        f"{remote.url} cannot be fetched ({reason}); run the same command again, or fetch it by hand into {part.parent}"
    )


def _receive(remote: Remote, part: Path, progress: Callable[[Fetching], None]) -> None:
    """Receive what is missing of a file, appended to `part`; ConnectionError where less comes than was said."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(
        remote.url, headers={"Range": f"bytes={have}-"} if have else {}
    )
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if (
            error.code == 416 and have
        ):  # nothing is left to send: the check tells whether it is the right file
            return error.close()
        raise
    with answer:
        if answer.status != 206:  # the server cannot continue a file
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else 0
        with open(part, "ab" if have else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                progress(Fetching(remote.file, have, total))
        if total and have < total:
            raise ConnectionError(f"the connection was cut after {have:,} of {total:,} bytes")


def _check(remote: Remote, part: Path) -> None:
    if not remote.checksum:
        return
    kind, _, expected = remote.checksum.partition(":")
    digest = hashlib.new(kind)
    with open(part, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        part.unlink()
        raise DownloadError(
            f"{remote.url} sent another file than expected ({kind} {digest.hexdigest()[:12]}, not {expected[:12]}); it was removed, run the same command again"
        )


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip archive into a folder, and archives that lie in it beside themselves.

    Raises:
        DownloadError: it is no sound archive, or holds files that would land elsewhere.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as content:  # leaves out leading slashes and .. by itself
                content.extractall(folder)
                inner = [
                    folder / name
                    for name in content.namelist()
                    if name.endswith((".tar.gz", ".tgz"))
                ]
        else:
            with tarfile.open(archive) as content:
                content.extractall(folder, filter="data")
            inner = []
        for file in inner:
            unpack(file, file.parent)
            file.unlink()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DownloadError(
            f"{archive} cannot be unpacked ({str(error)[:80]}); remove it and run the same command again"
        ) from None
    except OSError as error:
        free = shutil.disk_usage(folder).free
        raise DownloadError(
            f"cannot unpack {archive} into {folder}: {error.strerror or error} ({free / 1e6:,.0f} MB free)"
        ) from None

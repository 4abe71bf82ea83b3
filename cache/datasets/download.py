"""`cliad data download`: fetch a data set's files, with progress, checksums and resume."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cliad.cache.datasets import data_dir, default_data_dir, find_dataset
from cliad.cache.datasets.archives import DownloadError, unpack
from cliad.cache.datasets.base import Dataset, Remote

CHUNK = 1 << 20  # bytes
TRIES = 5
PAUSE = 1.0  # seconds before the second try, doubled each time
TIMEOUT = 60.0  # seconds without an answer
# HTTP status codes
PARTIAL_CONTENT = 206
REQUEST_TIMEOUT = 408
RANGE_NOT_SATISFIABLE = 416
TOO_MANY_REQUESTS = 429


@dataclass(frozen=True)
class Fetching:
    """How far a download is: bytes done, and bytes in all (0 where the server does not say)."""

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
        data: the folder that holds the data sets; by default $CLIAD_DATA, else the user's data
            folder.

    Returns:
        The folder that holds the data sets.

    Raises:
        DatasetError: there is no such data set.
        DownloadError: nothing of it can be fetched, or a file could not be fetched or unpacked.
    """
    dataset = find_dataset(name)
    data = data_dir(data) or default_data_dir()
    folder = data / dataset.folder
    if not dataset.remotes:
        by_hand = f"; fetch {dataset.by_hand} into {folder}" if dataset.by_hand else ""
        raise DownloadError(f"{name} cannot be fetched by cliad{by_hand}")
    wanted = [remote for remote in dataset.remotes if not _is_done(folder, remote)]
    log(_plan(dataset, wanted, folder))
    for remote in wanted:
        file = fetch(remote, folder, log=log, progress=progress)
        if remote.unpack:
            log(f"unpacking {file.name}")
            unpack(file, folder, log)
            # The archive would double the space on the disk.
            file.unlink()
            _marker(folder, remote).touch()
    if dataset.by_hand:
        log(f"still to be fetched by hand: {dataset.by_hand}, into {folder}")
    return data


def _plan(dataset: Dataset, wanted: Sequence[Remote], folder: Path) -> str:
    """One line that says what will be fetched, and how large it is."""
    if not wanted:
        return f"{dataset.name}: everything that can be fetched is in {folder}"
    files = []
    for remote in wanted:
        size = f" ({remote.megabytes:,.0f} MB)" if remote.megabytes else ""
        files.append(f"{remote.url}{size}")
    return f"{dataset.name}: fetching {', '.join(files)} into {folder}"


def _is_done(folder: Path, remote: Remote) -> bool:
    if remote.unpack:
        return _marker(folder, remote).exists()
    return (folder / remote.file).is_file()


def _marker(folder: Path, remote: Remote) -> Path:
    """An empty file that is there once an archive, which is then removed, has been unpacked."""
    return folder / f".{remote.file}.unpacked"


def fetch(
    remote: Remote,
    folder: Path,
    *,
    log: Callable[[str], None],
    progress: Callable[[Fetching], None],
) -> Path:
    """Fetch one file into a folder.

    What a cut connection or an earlier run left in `file.part` is continued.

    Raises:
        DownloadError: the server cannot be reached, refuses, or sends something else than
            expected; or the folder cannot be written.
    """
    target = folder / remote.file
    part = target.with_name(target.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _fetch_part(remote, part, log, progress)
        # Checked before it gets its name: a file under its own name is complete.
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
    """Receive a file into `part`, with several tries where it may help."""
    pause = PAUSE
    for number in range(1, TRIES + 1):
        reason = _try_once(remote, part, progress)
        if reason is None:
            return
        if number < TRIES:
            log(f"{remote.file}: {reason}; trying again")
            time.sleep(pause)
            pause *= 2
    raise DownloadError(
        f"{remote.url} cannot be fetched ({reason});"
        f" run the same command again, or fetch it by hand into {part.parent}"
    )


def _try_once(remote: Remote, part: Path, progress: Callable[[Fetching], None]) -> str | None:
    """Receive a file; None where all of it came, else the reason why it did not, for now.

    Raises:
        DownloadError: the server refuses, so that another try would not help.
    """
    try:
        _receive(remote, part, progress)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        # A server that is busy or broken may answer in a moment.
        if error.code < 500 and error.code not in (REQUEST_TIMEOUT, TOO_MANY_REQUESTS):
            raise DownloadError(
                f"{remote.url} answers {error.code} {error.reason};"
                f" fetch it by hand into {part.parent}"
            ) from None
        return f"{error.code} {error.reason}"
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
    ) as error:
        return str(getattr(error, "reason", "") or error)[:100]
    return None


def _receive(remote: Remote, part: Path, progress: Callable[[Fetching], None]) -> None:
    """Receive what is missing of a file, appended to `part`.

    Raises:
        HTTPError: the server refuses.
        ConnectionError: less came than the server had announced.
    """
    done = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={done}-"} if done else {}
    request = urllib.request.Request(remote.url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != RANGE_NOT_SATISFIABLE or not done:
            raise
        error.close()
        return  # nothing is left to send: the checksum shows whether it is the right file
    with answer:
        if answer.status != PARTIAL_CONTENT:
            done = 0  # the server cannot continue a file and sends all of it
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length else 0
        with open(part, "ab" if done else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                progress(Fetching(remote.file, done, total))
        if total and done < total:
            raise ConnectionError(f"the connection was cut after {done:,} of {total:,} bytes")


def _check(remote: Remote, part: Path) -> None:
    """Remove the file and raise DownloadError where it has another checksum than it should have."""
    if not remote.checksum:
        return
    kind, _, expected = remote.checksum.partition(":")
    digest = hashlib.new(kind)
    with open(part, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    found = digest.hexdigest()
    if found != expected:
        part.unlink()
        raise DownloadError(
            f"{remote.url} sent another file than expected"
            f" ({kind} {found[:12]}, not {expected[:12]});"
            " it was removed, run the same command again"
        )

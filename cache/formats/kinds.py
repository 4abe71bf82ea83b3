"""What a file is, by its first bytes: people give the right file to the wrong reader."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import BinaryIO

from cliad.cache.documents import open_regular
from cliad.cache.file.layout import CacheError
from cliad.cache.tensor_files import NPZ, SAFETENSORS, TORCH, is_old_torch, is_torch_zip

# How files begin, and what to do with those that are none of the above.
_BEGINNINGS = (
    (b"\x93NUMPY", "a single array (npy)"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"PAR1", "a parquet file"),
    (b"\x1f\x8b", "a gzip file"),
)
_WAY_OUT = {
    NPZ: "import it with `cliad import npz`",
    SAFETENSORS: "import it with `cliad import safetensors`",
    TORCH: "import it with `cliad import pt`",
    "a single array (npy)": "save it with np.savez(file, train_x=..., train_y=...)",
    "an HDF5 file": "a cache of cliad needs no import: look at it with `cliad info FILE`",
    "a parquet file": "give the folder it is in to `cliad import clip-retrieval`",
    "a gzip file": "unpack it first",
}
# Files of one of our formats are at most so many times as large in memory as on the disk: floats
# hardly shrink, only text and zeros do. Below LEAST bytes it does not matter.
LARGEST_FACTOR = 8
LEAST = 2**29


def kind_of(stream: BinaryIO) -> str | None:
    """What an open file is, None where its first bytes say nothing; the position is kept.

    A pickle that is not torch's counts as torch's: one reader, without code, has to refuse both.
    """
    start = stream.tell()
    head = stream.read(16)
    stream.seek(start)
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    if head.startswith(b"PK"):
        return _kind_of_zip(stream)
    if is_old_torch(head) or (head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5"):
        return TORCH
    return SAFETENSORS if head[8:9] == b"{" else None


def _kind_of_zip(stream: BinaryIO) -> str | None:
    try:
        with zipfile.ZipFile(stream) as archive:
            return TORCH if is_torch_zip(archive.namelist()) else NPZ
    except Exception:  # a damaged file: the reader that it was given to says what is wrong
        return None
    finally:
        stream.seek(0)


def open_kind(file: Path, kind: str, hint: str) -> BinaryIO:
    """Open a file that should be of `kind`.

    Raises:
        CacheError: it cannot be opened, or is of another kind; the message says how to import it.
    """
    stream = open_regular(file, CacheError, hint)
    found = kind_of(stream)
    if found is not None and found != kind:
        stream.close()
        raise CacheError(f"{file} is {found}, not {kind}; {_WAY_OUT[found]}")
    return stream


def check_inflated(file: Path, stream: BinaryIO, n_byte: int) -> None:
    """CacheError where the arrays of a file, `n_byte` in all, are far larger than the file.

    Such a file holds nothing but one value again and again, and may be made to fill the memory.
    """
    on_disk = os.fstat(stream.fileno()).st_size
    if n_byte > LEAST and n_byte > LARGEST_FACTOR * on_disk:
        raise CacheError(
            f"{file} has {on_disk:,} bytes, but its arrays would take {n_byte:,};"
            " features do not shrink like that, make the file again"
        )

"""A file of weights from outside, looked at before it is loaded, and why it cannot be.

Open_clip chooses its reader by the ending of the name. Here a file is known by how it begins, so
that a file of another kind is told what it is. No code of a file is run.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open
from torch import nn

from cliad.cache.documents import open_regular
from cliad.cache.encoders.base import EncoderError
from cliad.cache.encoders.pickle_words import is_too_much
from cliad.cache.tensor_files import NPZ, SAFETENSORS, TORCH, is_old_torch, is_torch_zip
from cliad.errors import printable

# The endings by which open_clip takes a file for such a kind; all others are torch's.
ENDINGS = {SAFETENSORS: (".safetensors",), NPZ: (".npz", ".npy")}
HINT = "give a weights file (.safetensors, .pt, .pth, .bin)"
OTHERS = (
    (b"\x1f\x8b", "a gzip file; unpack it first"),
    (b"\x89HDF", "an HDF5 file"),
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself"),
    (b"<", "a web page or XML, perhaps an error of the site that it came from; fetch it again"),
    (b"{", "text (JSON)"),
)
OLD_PICKLES = 5  # that torch.save wrote one after another before version 1.6
MOST_MEMBERS = 2**16  # of an archive; the largest model has some thousands
LARGEST_HEADER = 2**24  # bytes of names and shapes in safetensors
MOST_UNPACKED = 16  # times the size of an npz file: weights can hardly be packed
LARGEST_PICKLE = 2**27  # bytes of names and shapes: those of the largest models take 1 MB


def check_weights_file(path: Path) -> None:
    """Refuse what is no file of weights, or would be taken for another kind than it is.

    Raises:
        EncoderError: a folder, a pipe, another kind of file, or one that asks for memory.
    """
    with open_regular(path, EncoderError, HINT) as stream:
        kind = _kind_of(path, stream)
        ending = path.suffix
        expected = next((k for k, endings in ENDINGS.items() if ending in endings), TORCH)
        if kind != expected:
            # Open_clip goes by the ending alone, in small letters.
            wanted = ENDINGS.get(kind, (".pt",))[0]
            raise EncoderError(
                f"{path} is {kind}, but its name ends in '{printable(ending)}';"
                f" rename it so that it ends in {wanted}"
            )
        if kind == TORCH:
            _check_pickle(path, stream)


def _kind_of(path: Path, stream: BinaryIO) -> str:
    head = stream.read(32)
    stream.seek(0)
    size = os.fstat(stream.fileno()).st_size
    if not head:
        raise EncoderError(f"{path} is empty; {HINT}")
    if head.startswith(b"PK"):
        return _kind_of_zip(path, stream)
    if head.startswith(b"\x93NUMPY"):
        return NPZ
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header <= size - 8:
        if header > LARGEST_HEADER:
            raise EncoderError(f"{path} has {header:,} bytes of names; {HINT}")
        return SAFETENSORS
    if is_old_torch(head):
        return TORCH
    if head[:1] == b"\x80":
        raise EncoderError(
            f"{path} is a pickle that torch.save did not write; it is not read, since that would"
            f" run code; {HINT}"
        )
    for beginning, what in OTHERS:
        if head.lstrip().startswith(beginning):
            raise EncoderError(f"{path} is {what}; {HINT}")
    raise EncoderError(f"{path} is no file of weights; {HINT}")


def _kind_of_zip(path: Path, stream: BinaryIO) -> str:
    try:
        with zipfile.ZipFile(stream) as archive:
            names = archive.namelist()
            unpacked = sum(member.file_size for member in archive.infolist())
    except Exception:  # a damaged archive may raise anything
        raise EncoderError(f"{path} is cut off or damaged; fetch it again") from None
    if len(names) > MOST_MEMBERS:
        raise EncoderError(f"{path} has {len(names):,} members, more than any weights; {HINT}")
    if is_torch_zip(names):
        return TORCH
    if unpacked > MOST_UNPACKED * os.fstat(stream.fileno()).st_size:
        raise EncoderError(f"{path} would unpack to {unpacked:,} bytes; {HINT}")
    if names and all(name.endswith(".npy") for name in names):
        return NPZ
    raise EncoderError(f"{path} is a zip archive without weights; unpack it first")


def _check_pickle(path: Path, stream: BinaryIO) -> None:
    """Refuse what would make torch's reader take any memory, or compute for ever."""
    stream.seek(0)
    # As torch decides it: an archive that stands behind something else is never looked at.
    is_archive = stream.read(2) == b"PK"
    if is_archive:
        content = _pickle_of_zip(path, stream)
        # The one name that torch's reader lets a file call for any memory.
        asks = b"bytearray" in content or is_too_much(io.BytesIO(content), 1)
    else:
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as old:
            asks = old.find(b"bytearray") >= 0
        stream.seek(0)
        asks = asks or is_too_much(stream, OLD_PICKLES)
    if asks:
        raise EncoderError(f"{path} holds what torch.save does not write for weights; {HINT}")


def _check_names(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse members of one name: what is looked at here might not be what torch reads."""
    names = archive.namelist()
    # Torch does not tell small letters from large ones.
    if len({name.lower() for name in names}) < len(names):
        raise EncoderError(f"{path} has two members of one name; save it again")


def _pickle_of_zip(path: Path, stream: BinaryIO) -> bytes:
    with zipfile.ZipFile(stream) as archive:
        _check_names(path, archive)
        for member in archive.infolist():
            # TorchScript packs its code, and no more.
            is_code = "/code/" in member.filename or member.filename.endswith(".debug_pkl")
            if member.compress_type != zipfile.ZIP_STORED and not is_code:
                raise EncoderError(f"{path} is packed, as torch.save does not; save it again")
            if member.filename.endswith("/data.pkl"):
                if member.file_size > LARGEST_PICKLE:
                    raise EncoderError(f"{path} has {member.file_size:,} bytes of names; {HINT}")
                pickle = member
        try:
            return archive.read(pickle)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError):
            raise EncoderError(f"{path} is cut off or damaged; fetch it again") from None


@dataclass(frozen=True)
class Stored:
    """Shape and type of a tensor in a file of weights."""

    shape: tuple[int, ...]
    dtype: str


def stored_tensors(path: Path) -> dict[str, Stored]:
    """What a checked file holds, by the names of the model; empty where it cannot be read.

    The values stay on the disk where the format allows it.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                return {
                    name: Stored(tuple(x.get_shape()), str(x.get_dtype()))
                    for name, x in slices.items()
                }
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
        state = content.get("state_dict", content)
        return {
            str(name).removeprefix("module."): Stored(tuple(x.shape), str(x.dtype))
            for name, x in state.items()
            if isinstance(x, torch.Tensor)
        }
    except Exception:  # what is wrong with it is said by the reader that counts
        return {}


def why_too_small(stored: dict[str, Stored], n_parameter: int) -> str | None:
    """In a few words, that a file cannot hold a model of so many parameters; None where it may.

    Said before the model is built, which takes its full size in memory. Half of it is enough to
    go on: some models use one tensor in two places.
    """
    n_stored = sum(math.prod(x.shape) for x in stored.values())
    if not stored or 2 * n_stored >= n_parameter:
        return None
    return f"it holds {n_stored:,} numbers, the model {n_parameter:,}"


def check_types(path: Path, stored: dict[str, Stored], network: nn.Module) -> None:
    """Refuse whole or complex numbers where the model has real ones: a copy would change them.

    Raises:
        EncoderError: the first such tensor is named.
    """
    for name, x in network.state_dict().items():
        if name not in stored or not x.is_floating_point():
            continue
        dtype = stored[name].dtype.removeprefix("torch.").lower()
        if not dtype.startswith(("f", "bf")):
            raise EncoderError(
                f"{path}: {printable(name)} is of type {dtype}; save the weights as float32 or"
                " float16, not quantised"
            )


def resized(stored: dict[str, Stored], network: nn.Module) -> list[str]:
    """A line for each table of positions that open_clip stretched to the model's size."""
    lines = []
    for name, x in network.state_dict().items():
        # Files of older models have the text tower's names without its own prefix.
        there = stored.get(name) or stored.get(name.removeprefix("text."))
        if name.endswith("positional_embedding") and there and there.shape != tuple(x.shape):
            lines.append(
                f"the weights file has {there.shape[0]} positions in {name}, the model"
                f" {x.shape[0]}: they were interpolated; the file is of another model or size"
            )
    return lines


def why_not_loaded(error: Exception, stored: dict[str, Stored], expected: nn.Module | None) -> str:
    """What torch or open_clip say of weights that do not fit, in one short line.

    The first tensor that differs is named, since the list may have hundreds.

    Args:
        error: what they raised.
        stored: what the file holds, as far as it can be read.
        expected: the model without the weights; None: not known.
    """
    if expected is not None and stored:
        names = dict(expected.state_dict())
        for name, x in names.items():
            if name in stored and stored[name].shape != tuple(x.shape):
                return (
                    f"{name} is {list(stored[name].shape)} in the file,"
                    f" {list(x.shape)} in the model"
                )
        if not set(names) & set(stored):
            shown = ", ".join(printable(name)[:40] for name in list(stored)[:3])
            return f"it holds {len(stored)} tensors ({shown} ...) and none of the model's"
    text = str(error)
    differs = re.search(
        r"size mismatch for (\S+): copying a param with shape (?:torch\.Size\()?(.*?)\)? from"
        r" checkpoint, the shape in current model is (?:torch\.Size\()?(.*?)\)?\.",
        text,
    )
    if differs:
        name, there, here = differs.groups()
        return f"{printable(name)[:80]} is {there} in the file, {here} in the model"
    for pattern, what in (("Missing key", "has no"), ("Unexpected key", "also holds")):
        first = re.search(rf'{pattern}\(s\) in state_dict: "([^"]*)"', text)
        if first:
            return f"it {what} {printable(first.group(1))[:80]}"
    if "weights_only" in text or "Weights only" in text or "WeightsUnpickler" in text:
        return "it holds Python objects, which would run code"
    if isinstance(error, StopIteration):
        return "it holds nothing"
    if isinstance(error, (AttributeError, TypeError, KeyError)):
        return "it holds no table of tensors by name"
    line = printable(" ".join(text.rpartition("Last error: ")[2].split()))
    return f"{line[:157]}..." if len(line) > 160 else line or type(error).__name__


def check_finite(network: nn.Module, what: str) -> None:
    """Refuse weights that are not numbers: every feature would be lost.

    Raises:
        EncoderError: the first tensor that holds NaN or infinity is named.
    """
    for name, x in network.state_dict().items():
        # Masks of attention are minus infinity on purpose; they are no weights.
        if x.is_floating_point() and not name.endswith("attn_mask"):
            # The sum of the extremes is finite only where all are, and takes no further memory.
            low, high = torch.aminmax(x) if x.numel() else (x.new_zeros(()), x.new_zeros(()))
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise EncoderError(
                    f"the weights of {what} are damaged: {name} holds NaN or infinity;"
                    " fetch or save them again"
                )

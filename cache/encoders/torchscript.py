"""OpenAI's weights files, which are TorchScript archives, read without TorchScript.

PyTorch's own reader compiles the code of an archive and runs parts of it while it reads. Here the
code is never opened. An archive is a zip file: `data.pkl` says which modules there are and which
tensors these have, `data/0`, `data/1` and so on are the bytes of the tensors. The pickle has a few
kinds of entries only; its words are taken one by one, nothing is called, and modules are tables
of names. All sizes are compared with the file before memory is asked for.
"""

from __future__ import annotations

import os
import pickletools
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cliad.cache.documents import open_regular
from cliad.cache.encoders.base import EncoderError
from cliad.cache.encoders.weights_file import HINT, Stored
from cliad.errors import CliadError, printable

MOST_WORDS = 2**19  # of the pickle: the largest of OpenAI's models has 60 thousand
LARGEST_PICKLE = 2**24  # bytes; that model has 300 kB
MOST_NAMES = 2**17  # of modules and tensors, together
DEEPEST = 64  # modules within modules
MOST_AXES = 8
MOST_NUMBERS = 2**40  # of one tensor, which may be spread over a smaller storage
CHUNK = 2**24  # bytes that are read at once
REAL = {
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch DoubleStorage": torch.float64,
}
WHOLE = {
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
DTYPES = REAL | WHOLE
TENSOR = "torch._utils _rebuild_tensor_v2"
# What stands for a list or a table of one type: `func(value)` or `func(value, type)`.
AS_IT_IS = (
    "torch.jit._pickle build_intlist",
    "torch.jit._pickle build_boollist",
    "torch.jit._pickle build_doublelist",
    "torch.jit._pickle build_tensorlist",
    "torch.jit._pickle restore_type_tag",
)
EMPTY_TABLE = "collections OrderedDict"  # the hooks of a tensor, of which an archive has none
KNOWN = (TENSOR, EMPTY_TABLE, *AS_IT_IS, *DTYPES)
# What OpenAI's models know of themselves beside their weights; open_clip leaves it out as well.
SETTINGS = ("input_resolution", "context_length", "vocab_size")


class _Odd(CliadError):
    """What no archive of a model holds; the message says what was found."""


@dataclass(frozen=True)
class _Named:
    """A name of the pickle that stands for a class or a function, and is never called."""

    name: str


@dataclass(eq=False)
class _Module:
    """A module: the names of what it holds."""

    holds: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Storage:
    """The numbers that one or more tensors lie in: a member of the archive."""

    key: str
    dtype: torch.dtype
    n_number: int


@dataclass(frozen=True)
class _View:
    """A tensor as a part of a storage; strides and offset are in numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def state_of(path: Path, check: Callable[[Mapping[str, Stored]], None]) -> dict[str, Tensor]:
    """The tensors of an archive by their names, as `torch.jit.load(path).state_dict()` has them.

    What OpenAI's models know of themselves, and masks, which open_clip computes, are left out.

    Args:
        path: a TorchScript archive.
        check: is shown the names, shapes and types before any value is read, and may raise.

    Raises:
        EncoderError: it is cut off or damaged, or holds what is no table of tensors.
    """
    with open_regular(path, EncoderError, HINT) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                members = _Members(archive, os.fstat(stream.fileno()).st_size)
                views = _views(_Pickle(members.pickle()).root())
                check({name: Stored(x.shape, str(x.storage.dtype)) for name, x in views.items()})
                return members.tensors(views)
        except EncoderError:
            raise
        except _Odd as odd:
            raise EncoderError(
                f"{path} holds {odd}; save the state_dict of the model with torch.save"
            ) from None
        except Exception:  # a damaged archive may raise anything
            raise EncoderError(f"{path} is cut off or damaged; fetch it again") from None


class _Members:
    """The members of an archive, of which all that is read together is no larger than the file."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        self._archive = archive
        self._room = size
        self._members = {member.filename: member for member in archive.infolist()}
        # The folder that all members lie in is named after the file as it was first saved.
        self._folder = next(iter(self._members)).partition("/")[0]

    def _member(self, name: str) -> zipfile.ZipInfo:
        member = self._members.get(f"{self._folder}/{name}")
        if member is None:
            raise _Odd(f"no {printable(name)[:40]}")
        # Members that are packed, or overlap, would take more memory than the file has bytes.
        if member.compress_type != zipfile.ZIP_STORED:
            raise _Odd("packed values, as PyTorch does not write them")
        self._room -= member.file_size
        if self._room < 0:
            raise _Odd("more bytes than the file has")
        return member

    def pickle(self) -> bytes:
        """What says which tensors there are."""
        member = self._member("data.pkl")
        if member.file_size > LARGEST_PICKLE:
            raise _Odd(f"{member.file_size:,} bytes of names")
        return self._archive.read(member)

    def tensors(self, views: Mapping[str, _View]) -> dict[str, Tensor]:
        """The tensors themselves; those of one storage share it."""
        is_swapped = self._byte_order() != sys.byteorder
        read: dict[_Storage, Tensor] = {}
        tensors = {}
        for name, view in views.items():
            storage = view.storage
            if storage not in read:
                read[storage] = self._numbers(storage, is_swapped)
            tensors[name] = read[storage].as_strided(view.shape, view.strides, view.offset)
        return tensors

    def _byte_order(self) -> str:
        if f"{self._folder}/byteorder" not in self._members:
            return "little"  # PyTorch before version 2.1 knew no other
        member = self._member("byteorder")
        written = self._archive.read(member) if member.file_size < 8 else b""
        if written not in (b"little", b"big"):
            raise _Odd("no byte order that there is")
        return written.decode()

    def _numbers(self, storage: _Storage, is_swapped: bool) -> Tensor:
        member = self._member(f"data/{storage.key}")
        width = storage.dtype.itemsize
        if member.file_size != storage.n_number * width:
            raise _Odd(
                f"{member.file_size:,} bytes for {storage.n_number:,} numbers of {width} bytes"
            )
        if not member.file_size:
            return torch.empty(0, dtype=storage.dtype)
        content = bytearray(member.file_size)
        n_read = 0
        with self._archive.open(member) as source:
            while piece := source.read(CHUNK):
                content[n_read : n_read + len(piece)] = piece
                n_read += len(piece)
        if n_read < len(content):
            raise _Odd("fewer bytes than it says")
        if is_swapped:
            np.frombuffer(content, f"u{width}").byteswap(inplace=True)
        return torch.frombuffer(content, dtype=storage.dtype)


def _views(root: _Module) -> dict[str, _View]:
    """All tensors by their full names."""
    views = {}
    waiting: list[tuple[str, _Module, int]] = [("", root, 0)]
    n_name = 0
    while waiting:
        prefix, module, depth = waiting.pop()
        n_name += len(module.holds)
        # A module may stand in two places; in itself, or in millions, only in a trap.
        if depth > DEEPEST or n_name > MOST_NAMES:
            raise _Odd("more modules than any model has")
        for name, value in module.holds.items():
            if isinstance(value, _Module):
                waiting.append((f"{prefix}{name}.", value, depth + 1))
            elif isinstance(value, _View) and not _is_beside(prefix, name):
                views[prefix + name] = value
    return views


def _is_beside(prefix: str, name: str) -> bool:
    return name == "attn_mask" or (not prefix and name in SETTINGS)


class _Pickle:
    """The words of a pickle, of the kinds that PyTorch writes for modules; none calls anything.

    Python's own reader would run what the file names. It can also be told, in a few bytes, to
    take any memory or to compute for ever, so a list of allowed names is not enough.
    """

    def __init__(self, content: bytes):
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        words = pickletools.genops(content)
        n_word = 0
        for word, value, _ in islice(words, MOST_WORDS):
            n_word += 1
            self._take(word.name, value)
        if n_word == MOST_WORDS:
            raise _Odd("more entries than any model has")

    def root(self) -> _Module:
        """What the pickle is of."""
        if len(self._stack) != 1 or not isinstance(self._stack[0], _Module):
            raise _Odd("no module")
        return self._stack[0]

    def _take(self, word: str, value: Any) -> None:
        if word in ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"):
            self._stack.append(value)
        elif word in CONSTANTS:
            self._stack.append(CONSTANTS[word])
        elif word in ("BINPUT", "LONG_BINPUT"):
            self._memo[value] = self._stack[-1]
        elif word in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[value])
        elif word == "EMPTY_DICT":
            self._stack.append({})
        elif word == "EMPTY_LIST":
            self._stack.append([])
        elif word == "MARK":
            self._marks.append(len(self._stack))
        elif word in TUPLES:
            self._stack.append(self._last(TUPLES[word]))
        elif word in BUILDERS:
            BUILDERS[word](self)
        elif word == "GLOBAL":
            self._stack.append(_named(value))
        elif word not in ("PROTO", "STOP"):
            raise _Odd(f"an entry ({word}) that PyTorch does not write")

    def _last(self, n_value: int | None) -> tuple:
        """Take the last values off the stack; None: those since the mark."""
        first = self._marks.pop() if n_value is None else len(self._stack) - n_value
        if not 0 <= first <= len(self._stack):
            raise _Odd("fewer entries than it says")
        values = tuple(self._stack[first:])
        del self._stack[first:]
        return values

    def _append(self) -> None:
        (value,) = self._last(1)
        self._extend_list((value,))

    def _appends(self) -> None:
        self._extend_list(self._last(None))

    def _extend_list(self, values: tuple) -> None:
        if not isinstance(self._stack[-1], list):
            raise _Odd("a list that is none")
        self._stack[-1].extend(values)

    def _set_item(self) -> None:
        self._extend_table(self._last(2))

    def _set_items(self) -> None:
        self._extend_table(self._last(None))

    def _extend_table(self, values: tuple) -> None:
        table = self._stack[-1]
        if not isinstance(table, dict):
            raise _Odd("a table that is none")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # To look up a tuple of tuples of tuples may take for ever.
            if not isinstance(key, (str, int, float)):
                raise _Odd("a table by other than names and numbers")
            table[key] = value

    def _new_module(self) -> None:
        kind, arguments = self._last(2)
        if not isinstance(kind, _Named) or kind.name in KNOWN or arguments != ():
            raise _Odd("an object that is no module")
        self._stack.append(_Module())

    def _fill_module(self) -> None:
        module, state = self._last(2)
        if not isinstance(module, _Module):
            raise _Odd("values for an object that is no module")
        # Such a module has code of its own that reads them.
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise _Odd("code that would run when it is read")
        module.holds = state
        self._stack.append(module)

    def _call(self) -> None:
        function, arguments = self._last(2)
        name = function.name if isinstance(function, _Named) else ""
        if not isinstance(arguments, tuple):
            raise _Odd("a call without a list")
        if name == TENSOR:
            self._stack.append(_view(*arguments[:4]))
        elif name == EMPTY_TABLE:
            self._stack.append({})
        elif name in AS_IT_IS:
            self._stack.append(arguments[0])
        else:
            raise _Odd(f"a call of {printable(name)[:60] or 'what has no name'}")

    def _storage(self) -> None:
        ((word, kind, key, place, n_number),) = self._last(1)
        dtype = DTYPES.get(kind.name) if isinstance(kind, _Named) else None
        if word != "storage" or dtype is None or not isinstance(key, str):
            raise _Odd("numbers of a type that no model has")
        # Where it lay when it was saved (cpu, cuda:0) does not matter: it is read here.
        if not isinstance(place, str) or type(n_number) is not int or n_number < 0:
            raise _Odd("numbers without a count")
        self._stack.append(_Storage(key, dtype, n_number))


def _named(name: str) -> _Named:
    is_own = name.startswith("__torch__.") or name.startswith("__torch__ ")
    if not is_own and name not in KNOWN:
        raise _Odd(f"{printable(name)[:60].replace(' ', '.')}, which no model needs")
    return _Named(name)


def _view(storage: object, offset: object, shape: object, strides: object) -> _View:
    """A tensor, if it lies in its storage."""
    if not isinstance(storage, _Storage):
        raise _Odd("a tensor without numbers")
    sides = _counts(shape)
    steps = _counts(strides)
    (first,) = _counts((offset,))
    n_number = 1
    last = first
    for side, step in zip(sides, steps, strict=True):
        n_number *= side
        last += (side - 1) * step
    if max(n_number, last, *sides, *steps, 0) > MOST_NUMBERS:
        raise _Odd("a tensor larger than any model's")
    if n_number and last >= storage.n_number:
        raise _Odd("a tensor that does not lie in its numbers")
    return _View(storage, first if n_number else 0, sides, steps)


def _counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MOST_AXES:
        raise _Odd("a tensor of no shape")
    if not all(type(value) is int and value >= 0 for value in values):
        raise _Odd("a tensor of no shape")
    return values


CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
BUILDERS = {
    "APPEND": _Pickle._append,
    "APPENDS": _Pickle._appends,
    "SETITEM": _Pickle._set_item,
    "SETITEMS": _Pickle._set_items,
    "NEWOBJ": _Pickle._new_module,
    "BUILD": _Pickle._fill_module,
    "REDUCE": _Pickle._call,
    "BINPERSID": _Pickle._storage,
}

"""Files of torch.save, `.pt` and `.pth`: tensors by the names of `named_arrays`. Read only.

No code of a file is ever run. Strings are lists of str beside the tensors.
"""

from __future__ import annotations

import math
import mmap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from cliad.cache.file.layout import CacheError
from cliad.cache.formats.base import reading
from cliad.cache.formats.kinds import check_inflated, open_kind
from cliad.cache.formats.named_arrays import ALIASES, KNOWN, Arrays, listing
from cliad.cache.tensor_files import TORCH, is_old_torch

if TYPE_CHECKING:
    import torch

EXPECTED = (
    "expected a dict of tensors called train_x and train_y, and the same for val and test,"
    " saved by torch.save"
)


def load_pt(file: Path) -> Arrays:
    """The tensors and lists of a dict as arrays by name.

    Raises:
        CacheError: the file needs code, is damaged, or holds something else than such a dict.
    """
    content = load_torch(file, EXPECTED)
    if not isinstance(content, Mapping):
        raise CacheError(f"{file} holds {_described(content)}; {EXPECTED}")
    names = [str(name) for name in content]
    nested = [str(name) for name, value in content.items() if isinstance(value, Mapping)]
    known = [name for name in names if ALIASES.get(name, name) in KNOWN]
    if nested or not known:
        inside = f"further dicts: {listing(nested)}" if nested else listing(names)
        raise CacheError(f"{file} holds a dict of {inside}; {EXPECTED}")
    arrays: Arrays = {}
    for name, value in content.items():
        arrays[str(name)] = _array(f"{file}: {str(name)[:60]}", value)
    return arrays


def load_torch(file: Path, hint: str) -> Any:
    """What a file of torch.save holds, read without running code of it.

    Raises:
        CacheError: it needs code, is damaged, or declares sizes that it does not have.
    """
    import torch  # takes a second or two, and no other format needs it

    with open_kind(file, TORCH, hint) as stream:
        what = "a file of tensors without code"
        with reading(file, what, hint):
            _check_contents(file, stream)
            try:
                content = torch.load(stream, map_location="cpu", weights_only=True)
            except Exception as error:
                # Torch's own advice is to run the code of the file.
                if "weights" in str(error).lower() and "only" in str(error).lower():
                    raise CacheError(
                        f"{file} cannot be read as {what}: it holds Python objects, which would"
                        f" run code; {hint}"
                    ) from None
                raise
            check_inflated(file, stream, _declared(content))
    return content


def _check_contents(file: Path, stream: BinaryIO) -> None:
    """CacheError for what torch.save never writes and what reading would cost much time and room.

    That is a packed zip, a pickle of others, and `bytearray`, the one name that the reader lets
    a file call and that takes as much memory as the file says.
    """
    if is_old_torch(stream.read(16)):
        is_torch = True
    else:
        stream.seek(0)
        with zipfile.ZipFile(stream) as archive:
            methods = {member.compress_type for member in archive.infolist()}
        is_torch = methods <= {zipfile.ZIP_STORED}
    stream.seek(0)
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        is_torch = is_torch and content.find(b"bytearray") < 0
    if not is_torch:
        raise CacheError(f"{file} is packed or holds what torch.save does not write; save it again")


def _declared(content: Any) -> int:
    """The bytes that the tensors of a file take as arrays: a tensor may repeat its values."""
    import torch

    values = list(content.values()) if isinstance(content, Mapping) else [content]
    total = 0
    for value in values:
        if isinstance(value, torch.Tensor):
            total += math.prod(value.shape) * value.element_size()
    return total


def _array(where: str, value: Any) -> np.ndarray:
    """A tensor, a number, a string or a list of them as an array."""
    import torch

    if isinstance(value, torch.Tensor):
        return tensor_array(where, value)
    if isinstance(value, (str, int, float)):
        return np.array(value)
    if isinstance(value, (list, tuple)) and value:
        kinds = {type(entry) for entry in value}
        if kinds == {str} or kinds <= {int, float}:
            return np.array(value)
    raise CacheError(f"{where} is {_described(value)}; save a tensor, or a list of str or numbers")


def tensor_array(where: str, tensor: torch.Tensor) -> np.ndarray:
    """A tensor as an array; types that NumPy does not have (bfloat16) as float32.

    Raises:
        CacheError: it is sparse, quantised, or has no values; the message starts with `where`.
    """
    import torch

    if tensor.is_nested or tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        raise CacheError(f"{where} is a {layout} tensor; save its .to_dense()")
    if tensor.is_quantized:
        raise CacheError(f"{where} is a quantised tensor; save its .dequantize()")
    if tensor.is_meta:
        raise CacheError(f"{where} is a tensor without values (on the device meta); save it again")
    tensor = tensor.detach()
    has_no_numpy = tensor.dtype == torch.bfloat16 or "float8" in str(tensor.dtype)
    try:
        array: np.ndarray = (tensor.float() if has_no_numpy else tensor.resolve_conj()).numpy()
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:80]
        raise CacheError(f"{where} cannot be read as an array ({reason}); save float32") from None
    return array


def _described(value: Any) -> str:
    """What a value of a file is, for messages."""
    import torch

    if isinstance(value, torch.Tensor):
        return f"a single tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict of {listing(str(name) for name in value)}"
    if isinstance(value, (list, tuple)):
        kinds = listing({type(entry).__name__ for entry in value})
        return f"a {type(value).__name__} of {len(value)} ({kinds})"
    return f"a value of type {type(value).__name__}"

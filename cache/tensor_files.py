"""What all readers of tensor files agree on: what the kinds are called, how torch.save writes."""

from __future__ import annotations

from collections.abc import Iterable

NPZ = "an npz file"
SAFETENSORS = "a safetensors file"
TORCH = "a file of torch.save"
# torch.save before version 1.6: a pickle of this number comes first.
_OLD_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def is_old_torch(head: bytes) -> bool:
    """Whether a file that begins so is one of torch.save before version 1.6, which is no zip."""
    return head[2:].startswith(_OLD_TORCH)


def is_torch_zip(names: Iterable[str]) -> bool:
    """Whether a zip of members with these names is one of torch.save."""
    return any(name.endswith("/data.pkl") for name in names)

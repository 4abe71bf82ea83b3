"""What an image tower holds besides its output.

That is the pooled feature before the last projection, and the patch tokens. This module knows
open_clip's towers by their parts alone: the vision transformer with a `proj` matrix, the CLIP
ResNet with an `attnpool`, and timm trunks (pooled feature only).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# torch types every attribute of a module as Tensor or Module. The protocols below say what the
# parts of open_clip's towers are.


class _Transformer(Protocol):
    """Parts of open_clip's VisionTransformer."""

    proj: Tensor  # (width, dim)
    attn_pool: nn.Module | None
    ln_post: nn.Module


class _ResNet(Protocol):
    """Parts of open_clip's ModifiedResNet."""

    stem: Callable[[Tensor], Tensor]
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module
    attnpool: _AttentionPool


class _AttentionPool(Protocol):
    """Parts of open_clip's AttentionPool2d."""

    positional_embedding: Tensor  # (1 + n_token, width)
    num_heads: int
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    c_proj: nn.Linear


class _TimmTower(Protocol):
    """Parts of open_clip's TimmModel."""

    trunk: nn.Module
    head: nn.Module


def all_parts(visual: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Every part that this tower gives for a batch (b, 3, height, width).

    Returns:
        "features" (b, dim), and where the tower has them "pre_projection" (b, dim_pre) and
        "tokens" (b, n_token, dim).
    """
    if getattr(visual, "proj", None) is not None and hasattr(visual, "transformer"):
        return _transformer_parts(visual, batch)
    if hasattr(visual, "attnpool"):
        return _resnet_parts(cast(_ResNet, visual), batch)
    if _is_timm_with_projection(visual):
        tower = cast(_TimmTower, visual)
        pooled = tower.trunk(batch)
        return {"features": tower.head(pooled), "pre_projection": pooled}
    return {"features": visual(batch)}


def _is_timm_with_projection(visual: nn.Module) -> bool:
    if not hasattr(visual, "trunk"):
        return False
    head = cast(_TimmTower, visual).head
    return isinstance(getattr(head, "proj", None), nn.Linear)


def _transformer_parts(visual: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    tower = cast(_Transformer, visual)
    projection = tower.proj
    with swapped(visual, proj=None, output_tokens=True):
        pooled, tokens = visual(batch)  # (b, width), (b, n_token, width)
    # Such a tower normalises its pooled feature only; tokens need it before they are projected.
    if getattr(visual, "final_ln_after_pool", False) and tower.attn_pool is None:
        tokens = tower.ln_post(tokens)
    return {
        "features": pooled @ projection,
        "pre_projection": pooled,
        "tokens": tokens @ projection,
    }


def _resnet_parts(tower: _ResNet, batch: Tensor) -> dict[str, Tensor]:
    grid = tower.stem(batch)
    for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
        grid = layer(grid)
    # (b, 1 + n_token, width): the pooled feature, then the places of the grid
    before = _attention_pool(tower.attnpool, grid)
    after = tower.attnpool.c_proj(before)
    return {"features": after[:, 0], "pre_projection": before[:, 0], "tokens": after[:, 1:]}


def _attention_pool(pool: _AttentionPool, grid: Tensor) -> Tensor:
    """CLIP's attention pool up to its last projection, with every place as a query.

    CLIP itself asks for the mean of all places alone, which comes first here.
    """
    x = grid.flatten(2).transpose(1, 2)  # (b, n_token, width)
    x = torch.cat([x.mean(1, keepdim=True), x], 1) + pool.positional_embedding
    q = _heads(pool.q_proj(x), pool.num_heads)
    k = _heads(pool.k_proj(x), pool.num_heads)
    v = _heads(pool.v_proj(x), pool.num_heads)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _heads(x: Tensor, n_head: int) -> Tensor:
    """(b, n_place, width) -> (b, n_head, n_place, width / n_head)."""
    return x.unflatten(-1, (n_head, -1)).transpose(1, 2)


class NormalisedTower(nn.Module):
    """The normalisation and the image tower of a CLIP: uint8 images -> raw features (b, dim)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, visual: nn.Module, scale: Tensor, shift: Tensor):
        super().__init__()
        self.visual = visual
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, pixels: Tensor) -> Tensor:
        """Raw features of images that are resized and cropped, but not yet normalised."""
        features = self.visual(pixels.float() * self.scale + self.shift)
        # CoCa's tower gives its tokens, too.
        return features[0] if isinstance(features, tuple) else features


@contextmanager
def swapped(module: nn.Module, **values: object) -> Iterator[None]:
    """Other values for some attributes of a module while the block runs."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)

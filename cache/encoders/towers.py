"""What an image tower holds besides its output: the pooled feature before the last projection, and the patch tokens.

Works on open_clip's towers by their parts (this module knows no open_clip): the vision transformer with a `proj` matrix, the
CLIP ResNet with an `attnpool`, and timm trunks (pooled feature only).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def all_parts(visual: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Every part that this tower gives for a batch (b, 3, height, width): "features", "pre_projection", "tokens"."""
    if getattr(visual, "proj", None) is not None and hasattr(visual, "transformer"):
        return _transformer_parts(visual, batch)
    if hasattr(visual, "attnpool"):
        return _resnet_parts(visual, batch)
    if hasattr(visual, "trunk") and isinstance(getattr(visual.head, "proj", None), nn.Linear):
        pooled = visual.trunk(batch)
        return {"features": visual.head(pooled), "pre_projection": pooled}
    return {"features": visual(batch)}


def _transformer_parts(visual: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    projection = visual.proj
    with swapped(visual, proj=None, output_tokens=True):
        pooled, tokens = visual(batch)  # (b, width), (b, n_token, width)
    if getattr(visual, "final_ln_after_pool", False) and visual.attn_pool is None:
        tokens = visual.ln_post(tokens)
    return {
        "features": pooled @ projection,
        "pre_projection": pooled,
        "tokens": tokens @ projection,
    }


def _resnet_parts(visual: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    grid = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(batch)))))
    before = _attention_pool(
        visual.attnpool, grid
    )  # (b, 1 + n_token, width): the pooled feature, then the grid's places
    after = visual.attnpool.c_proj(before)
    return {"features": after[:, 0], "pre_projection": before[:, 0], "tokens": after[:, 1:]}


def _attention_pool(pool: nn.Module, grid: Tensor) -> Tensor:
    """CLIP's attention pool with every place as a query, up to its last projection."""
    x = grid.flatten(2).transpose(1, 2)  # (b, n_token, width)
    x = torch.cat([x.mean(1, keepdim=True), x], 1) + pool.positional_embedding
    q, k, v = (
        layer(x).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
        for layer in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@contextmanager
def swapped(module: nn.Module, **values) -> Iterator[None]:
    """Other values for some attributes of a module while the block runs."""
    kept = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(module, name, value)

"""The text tower of a CLIP in plain torch, which takes token embeddings and gives gradients.

It is made of the tensors of open_clip's own tower alone, so that a tower that was kept in a file
needs no open_clip. See `cliad.adapters.core.tower.TextTower` for what the heads ask of it.

Axes: r runs, k classes, m tokens of the prefix, l tokens of a suffix, h attention heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cliad.cache.encoders.base import EncoderError

# Lines -> the numbers of their tokens, without start and end.
Tokenise = Callable[[Sequence[str]], list[list[int]]]
ACTIVATIONS = ("GELU", "QuickGELU")
# What each layer has, by the names that open_clip gives them.
LAYER_TENSORS = (
    "ln_1.weight",
    "ln_1.bias",
    "attn.in_proj_weight",
    "attn.in_proj_bias",
    "attn.out_proj.weight",
    "attn.out_proj.bias",
    "ln_2.weight",
    "ln_2.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
)
# Numbers kept for a gradient, per token, layer and unit of width: the normalised inputs, queries,
# keys, values, the attention's output, and the hidden layer (four times as wide) on both sides of
# its activation.
KEPT = 17


@dataclass(frozen=True)
class TowerForm:
    """What the shapes of a tower's tensors do not tell."""

    n_head: int
    activation: str  # of ACTIVATIONS
    eps: float  # of the layer norms
    start: int  # the number of the token that prompts begin with
    end: int  # of the one that ends them


@dataclass(frozen=True, eq=False)
class _Tokens:
    """Tokens on their way through the layers: prefix (r, m, width), suffix (r, k, l, width)."""

    prefix: Tensor
    suffix: Tensor


class CausalTower:
    """A frozen causal text tower; the shared prefix of many prompts is computed once.

    Args:
        tensors: "table" (n_token, width), "positions" (length, width), the layers as
            "layers.NUMBER.NAME" with the names of LAYER_TENSORS, "ln_final.weight", "ln_final.bias"
            and, where there is one, "projection" (width, dim) and "projection_bias" (dim,).
        form: what the shapes do not tell.
        tokenise: lines -> rows of `table`.
    """

    def __init__(self, tensors: Mapping[str, Tensor], form: TowerForm, tokenise: Tokenise):
        self.tensors = {name: value.detach() for name, value in tensors.items()}
        self.form = form
        self.tokenise = tokenise
        self.n_layer = len({name.split(".")[1] for name in tensors if name.startswith("layers.")})
        self.length = len(self.tensors["positions"])
        self.width = self.tensors["positions"].shape[1]
        self.floats = KEPT * self.n_layer * self.width
        self.start = self.tensors["table"][form.start][None]
        self.end = self.tensors["table"][form.end][None]

    def to(self, device: torch.device) -> CausalTower:
        """The same tower on a device; itself where it is there."""
        if self.start.device == device:
            return self
        moved = {name: value.to(device) for name, value in self.tensors.items()}
        return CausalTower(moved, self.form, self.tokenise)

    def words(self, lines: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Embeddings (n, longest, width) of lines, zeros behind shorter ones; their lengths.

        Raises:
            EncoderError: a tower from a file does not know a line.
        """
        numbers = self.tokenise(lines)
        counts = [len(row) for row in numbers]
        embeddings = self.start.new_zeros(len(lines), max(counts, default=0), self.width)
        for line, row in enumerate(numbers):
            place = torch.tensor(row, dtype=torch.long, device=self.start.device)
            embeddings[line, : len(row)] = self.tensors["table"][place]
        return embeddings, counts

    def __call__(self, prefix: Tensor, suffix: Tensor, last: Tensor) -> Tensor:
        """Raw features (r, k, dim) of prompts, see `TextTower`.

        prefix (r, m, width), suffix (r, k, l, width); last (k,): the end token's place in a suffix.
        """
        n_prefix = prefix.shape[-2]
        n_suffix = suffix.shape[-2]
        positions = self.tensors["positions"]
        prefix = prefix + positions[:n_prefix]
        suffix = suffix + positions[n_prefix : n_prefix + n_suffix]
        n_run = max(len(prefix), len(suffix))
        tokens = _Tokens(prefix.expand(n_run, -1, -1), suffix.expand(n_run, -1, -1, -1))
        last = last.to(suffix.device)
        every = torch.arange(n_suffix, device=suffix.device)
        for layer in range(self.n_layer - 1):
            tokens = self._layer(layer, tokens, every[None])
        # Of the last layer the end tokens alone are read.
        final = self._end_tokens(self.n_layer - 1, tokens, last)  # (r, k, width)
        return self._projected(self._norm("ln_final", final))

    def _layer(self, layer: int, tokens: _Tokens, asking: Tensor) -> _Tokens:
        """One layer; asking (1, l): the places of the suffix that look at those before them."""
        name = f"layers.{layer}"
        q, k, v = self._heads(name, tokens.prefix)  # (r, h, m, d) each
        qs, ks, vs = self._heads(name, tokens.suffix)  # (r, k, h, l, d) each
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        prefix = tokens.prefix + self._merged(name, seen)
        suffix = tokens.suffix + self._merged(name, _attend(qs, k, v, ks, vs, asking))
        return _Tokens(self._mixed(name, prefix), self._mixed(name, suffix))

    def _end_tokens(self, layer: int, tokens: _Tokens, last: Tensor) -> Tensor:
        """What one layer makes (r, k, width) of the tokens at the places last (k,)."""
        name = f"layers.{layer}"
        _, k, v = self._heads(name, tokens.prefix)
        qs, ks, vs = self._heads(name, tokens.suffix)
        n_class = len(last)
        classes = torch.arange(n_class, device=last.device)
        ends = tokens.suffix[:, classes, last][:, :, None]  # (r, k, 1, width)
        asked = qs.movedim(3, 2)[:, classes, last]  # (r, k, h, d)
        seen = _attend(asked[..., None, :], k, v, ks, vs, last[:, None])
        return self._mixed(name, ends + self._merged(name, seen))[:, :, 0]

    def _heads(self, name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (..., h, n, d) of tokens x (..., n, width)."""
        weight = self.tensors[f"{name}.attn.in_proj_weight"]
        bias = self.tensors[f"{name}.attn.in_proj_bias"]
        together = F.linear(self._norm(f"{name}.ln_1", x), weight, bias)  # (..., n, 3 * width)
        q, k, v = together.unflatten(-1, (3, self.form.n_head, -1)).movedim(-3, 0).movedim(-2, -3)
        return q, k, v

    def _merged(self, name: str, seen: Tensor) -> Tensor:
        """The attention's output (..., n, width) from that of its heads (..., h, n, d)."""
        flat = seen.movedim(-3, -2).flatten(-2)
        weight = self.tensors[f"{name}.attn.out_proj.weight"]
        return F.linear(flat, weight, self.tensors[f"{name}.attn.out_proj.bias"])

    def _mixed(self, name: str, x: Tensor) -> Tensor:
        """Tokens x (..., width) with the layer's two-layer network added to them."""
        first = self.tensors[f"{name}.mlp.c_fc.weight"]
        second = self.tensors[f"{name}.mlp.c_proj.weight"]
        hidden = F.linear(
            self._norm(f"{name}.ln_2", x), first, self.tensors[f"{name}.mlp.c_fc.bias"]
        )
        if self.form.activation == "QuickGELU":
            hidden = hidden * torch.sigmoid(1.702 * hidden)
        else:
            hidden = F.gelu(hidden)
        return x + F.linear(hidden, second, self.tensors[f"{name}.mlp.c_proj.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        bias = self.tensors[f"{name}.bias"]
        return F.layer_norm(x, (self.width,), weight, bias, self.form.eps)

    def _projected(self, x: Tensor) -> Tensor:
        if "projection" not in self.tensors:
            return x
        projected = x @ self.tensors["projection"]
        if "projection_bias" in self.tensors:
            projected = projected + self.tensors["projection_bias"]
        return projected


def _attend(
    q: Tensor, prefix_k: Tensor, prefix_v: Tensor, k: Tensor, v: Tensor, asking: Tensor
) -> Tensor:
    """Attention of places of the suffixes over the whole prefix and the suffix up to themselves.

    q (r, k, h, a, d) are of the places asking (k or 1, a); prefix_k, prefix_v (r, h, m, d), which
    all classes share; k, v (r, k, h, l, d). Returns (r, k, h, a, d).
    """
    q = q / math.sqrt(q.shape[-1])
    # The classes' queries of one head stand in one matrix, as the prefix is the same for all.
    by_head = q.transpose(1, 2)  # (r, h, k, a, d)
    flat = by_head.flatten(2, 3)  # (r, h, k * a, d)
    to_prefix = (flat @ prefix_k.mT).unflatten(2, by_head.shape[2:4]).transpose(1, 2)
    to_suffix = q @ k.mT  # (r, k, h, a, l)
    later = torch.arange(k.shape[-2], device=k.device) > asking[..., None]  # (k or 1, a, l)
    to_suffix = to_suffix.masked_fill(later[:, None], -math.inf)
    weights = torch.cat([to_prefix, to_suffix], dim=-1).softmax(dim=-1)  # (r, k, h, a, m + l)
    n_prefix = prefix_k.shape[-2]
    on_prefix = weights[..., :n_prefix].transpose(1, 2).flatten(2, 3)  # (r, h, k * a, m)
    from_prefix = (on_prefix @ prefix_v).unflatten(2, by_head.shape[2:4]).transpose(1, 2)
    return from_prefix + weights[..., n_prefix:] @ v


# ------------------------------------------------------------------------------- from open_clip


class Text(Protocol):
    """What is used of open_clip's text towers once `_check` has found them to be of this kind."""

    transformer: _Transformer
    ln_final: nn.LayerNorm

    def state_dict(self) -> Mapping[str, Tensor]:
        """The tensors by their names."""


class _Transformer(Protocol):
    resblocks: Sequence[_Block]


class _Block(Protocol):
    attn: nn.MultiheadAttention
    mlp: _Mlp


class _Mlp(Protocol):
    gelu: nn.Module


class Tokenizer(Protocol):
    """What is used of open_clip's tokenizers."""

    def __call__(self, texts: list[str]) -> Tensor:
        """Token numbers (n, context_length)."""


def take_apart(module: nn.Module, tokenizer: Tokenizer, name: str) -> CausalTower:
    """The tower of open_clip's module that holds it: a `TextTransformer`, or a `CLIP` itself.

    name: the encoder's, for messages.

    Raises:
        EncoderError: it is not a causal transformer of open_clip's own.
    """
    _check(module, name)
    text = cast(Text, module)
    block = text.transformer.resblocks[0]
    start, end = tokenizer([""])[0, :2].tolist()
    form = TowerForm(
        n_head=block.attn.num_heads,
        activation=type(block.mlp.gelu).__name__,
        eps=text.ln_final.eps,
        start=start,
        end=end,
    )
    tensors = _by_our_names(text.state_dict(), len(text.transformer.resblocks))
    # float32, as copies: the rest of the model need not stay in memory
    copies = {key: value.detach().float().clone() for key, value in tensors.items()}
    return CausalTower(copies, form, _between(tokenizer, end))


def _by_our_names(state: Mapping[str, Tensor], n_layer: int) -> dict[str, Tensor]:
    """The tensors of a `CausalTower` from those of open_clip's tower."""
    tensors = {
        "table": state["token_embedding.weight"],
        "positions": state["positional_embedding"],
        "ln_final.weight": state["ln_final.weight"],
        "ln_final.bias": state["ln_final.bias"],
    }
    for layer in range(n_layer):
        for part in LAYER_TENSORS:
            tensors[f"layers.{layer}.{part}"] = state[f"transformer.resblocks.{layer}.{part}"]
    if "text_projection" in state:
        tensors["projection"] = state["text_projection"]
    elif "text_projection.weight" in state:
        tensors["projection"] = state["text_projection.weight"].T
    if "text_projection.bias" in state:
        tensors["projection_bias"] = state["text_projection.bias"]
    return tensors


def _check(text: nn.Module, name: str) -> None:
    """EncoderError for a text tower whose prompts cannot be learnt here."""
    blocks = getattr(getattr(text, "transformer", None), "resblocks", ())
    known = hasattr(text, "token_embedding") and len(blocks) > 0
    for block in blocks:
        is_plain = isinstance(getattr(block, "attn", None), nn.MultiheadAttention)
        scaled = isinstance(getattr(block, "ls_1", None), nn.Identity)
        gelu = getattr(getattr(block, "mlp", None), "gelu", None)
        known = known and is_plain and scaled and type(gelu).__name__ in ACTIVATIONS
    if not known or getattr(text, "cls_emb", None) is not None:
        raise EncoderError(
            f"the text tower of {name} is not one of CLIP's own kind, so no prompts can be learnt"
            " for it; take an encoder such as ViT-B-32"
        )
    pool = getattr(text, "text_pool_type", getattr(text, "pool_type", ""))
    if getattr(text, "attn_mask", None) is None or pool not in ("argmax", "eos"):
        raise EncoderError(
            f"the text tower of {name} is not causal, so no prompts can be learnt for it here;"
            " take an encoder such as ViT-B-32"
        )


def _between(tokenizer: Tokenizer, end: int) -> Tokenise:
    """The tokens of lines between start and end, by a tokenizer of open_clip."""

    def tokenise(lines: Sequence[str]) -> list[list[int]]:
        rows = tokenizer(list(lines)).tolist()
        return [row[1 : row.index(end)] for row in rows]

    return tokenise

"""The text tower of an encoder, as heads see it that learn prompts: a callable of tensors.

Axes: r runs (or whatever else has prompts of its own), k classes, l tokens of a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class TextTower(Protocol):
    """A frozen causal text tower: gradients reach the token embeddings, and nothing of its own.

    In a causal tower a token sees those before it alone. So what all prompts begin with, the
    prefix, is computed once for all classes: to the result that makes no difference.
    """

    @property
    def width(self) -> int:
        """The length of a token's embedding."""

    @property
    def length(self) -> int:
        """The most tokens of a prompt, its start and its end included."""

    @property
    def floats(self) -> int:
        """About how many numbers are kept for each token until a gradient is taken."""

    @property
    def start(self) -> Tensor:
        """The embedding (1, width) of the token that prompts begin with."""

    @property
    def end(self) -> Tensor:
        """The embedding (1, width) of the token that ends a prompt; the feature is read there."""

    def words(self, lines: Sequence[str]) -> tuple[Tensor, list[int]]:
        """The embeddings (n, longest, width) of lines, and how many tokens each of them has.

        Neither start nor end is among them; behind a shorter line stand zeros.
        """

    def __call__(self, prefix: Tensor, suffix: Tensor, last: Tensor) -> Tensor:
        """Raw features (r, k, dim) of r times k prompts.

        prefix (r, m, width): what the prompts of all classes begin with, the start token first.
        suffix (r, k, l, width): the rest of them, the end token at the place last (k,) of it; what
        stands behind that place does not matter. One of the two may have r = 1 for all.
        """

"""Prompts of learned words: what of them every class has, and what it has for itself.

Axes: n_run runs, k classes, m learned words, l tokens of a class, width numbers a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import HeadError
from cliad.adapters.core.tower import TextTower

# Where the name of the class stands: behind the learned words, among them, or in front of them.
POSITIONS = ("end", "middle", "front")


@dataclass(frozen=True, eq=False)
class _Rest:
    """What a class has for itself: the name, a full stop, the end token.

    tokens (k, l, width); for each class n_name: how many of them are the name's; last: the place of
    the end token, which is at most l - 1.
    """

    tokens: Tensor
    n_name: Sequence[int]
    last: Sequence[int]

    @classmethod
    def of(cls, tower: TextTower, names: Sequence[str], n_word: int) -> _Rest:
        """The rests of prompts of n_word learned words.

        Raises:
            HeadError: the prompt of a class is too long.
        """
        # Name and full stop are read as one text, as a tokenizer would find them in a prompt.
        words, counts = tower.words([f"{name}." for name in names])
        _check_length(tower, names, counts, n_word)
        _, n_name = tower.words(names)
        tokens = torch.cat([words, torch.zeros_like(words[:, :1])], dim=1)
        classes = torch.arange(len(tokens), device=tokens.device)
        tokens[classes, torch.tensor(counts, device=tokens.device)] = tower.end
        return cls(tokens, n_name, counts)


def prompt_constants(support: Support, *, n_word: int, position: str, per_class: bool) -> Tensors:
    """What `prompt_features` needs, for prompts of n_word learned words.

    The prompt of a class is [start, words, name, ".", end], with the name among the words or in
    front of them where `position` says so. What stands in front of all that differs between classes
    is computed once for all of them.

    Raises:
        HeadError: the prompt of a class is longer than the tower takes; or classes have no names.
    """
    tower = support.need_tower()
    if len(support.names) != support.n_class:
        raise HeadError("learned prompts need the names of the classes, which are not known here")
    rest = _Rest.of(tower, support.names, n_word)
    n_shared = _n_shared(n_word, position, per_class=per_class)
    # (k, n_word - n_shared + l): where each token of a suffix stands in [words, rest]
    order = _order(rest, n_word, position, n_shared)
    last = [place + n_word - n_shared for place in rest.last]
    device = rest.tokens.device
    return {
        "tower": cast(Tensor, tower),  # no tensor, but a constant like the others
        "rest": rest.tokens[None],
        "order": torch.tensor(order, device=device)[None],
        "last": torch.tensor(last, device=device)[None],
    }


def n_prompt_token(
    tower: TextTower, names: Sequence[str], *, n_word: int, position: str, per_class: bool
) -> int:
    """How many tokens of the prompts of all classes go through the tower, see `prompt_constants`.

    Raises:
        HeadError: the prompt of a class is too long.
    """
    rest = _Rest.of(tower, names, n_word)
    n_shared = _n_shared(n_word, position, per_class=per_class)
    return 1 + n_shared + len(names) * (n_word - n_shared + rest.tokens.shape[1])


def prompt_features(c: Tensors, words: Tensor) -> Tensor:
    """Raw features (n_run, k, dim) of the prompts of all classes.

    words (n_run, m, width), or (n_run, k, m, width) where each class has its own.
    """
    tower = cast(TextTower, c["tower"])
    rest = c["rest"]  # (1, k, l, width)
    order = c["order"][0]
    n_run = len(words)
    n_class = rest.shape[1]
    n_word = words.shape[-2]
    n_shared = n_word + rest.shape[2] - order.shape[1]
    start = tower.start.expand(n_run, 1, -1)
    if n_shared == n_word:
        return tower(torch.cat([start, words], dim=1), rest, c["last"][0])
    per_class = words if words.dim() == 4 else words[:, None].expand(-1, n_class, -1, -1)
    tokens = torch.cat([per_class, rest.expand(n_run, -1, -1, -1)], dim=2)
    classes = torch.arange(n_class, device=order.device)[:, None]
    prefix = start
    if n_shared:
        prefix = torch.cat([start, words[:, :n_shared]], dim=1)
    return tower(prefix, tokens[:, classes, order], c["last"][0])


def _n_shared(n_word: int, position: str, *, per_class: bool) -> int:
    """How many learned words come before all that differs between classes."""
    if per_class or position == "front":
        return 0
    return n_word if position == "end" else n_word // 2


def _order(rest: _Rest, n_word: int, position: str, n_shared: int) -> list[list[int]]:
    """For each class the places in [words, rest] of what follows the shared words, in order."""
    n_before = {"end": n_word, "middle": n_word // 2, "front": 0}[position]
    rows = []
    for n_name in rest.n_name:
        own = list(range(n_word, n_word + rest.tokens.shape[1]))
        words = list(range(n_word))
        whole = words[:n_before] + own[:n_name] + words[n_before:] + own[n_name:]
        rows.append(whole[n_shared:])
    return rows


def _check_length(tower: TextTower, names: Sequence[str], last: Sequence[int], n_word: int) -> None:
    """HeadError where the longest prompt, with its start and its end, is too long."""
    longest = last.index(max(last))
    length = last[longest] + n_word + 2
    if length > tower.length:
        raise HeadError(
            f"the prompt of class '{names[longest][:60]}' has {length} tokens with {n_word} learned"
            f" words, the text tower takes {tower.length}; give fewer words, or shorten the name"
        )

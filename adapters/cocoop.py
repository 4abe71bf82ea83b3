"""CoCoOp (Zhou et al., 2022): learned words that a small network shifts for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, Hypers, Plan, hyper
from cliad.adapters.core.ops import unit
from cliad.adapters.core.tower import TextTower
from cliad.adapters.prompts import n_prompt_token, prompt_constants, prompt_features

PROMPTS_AT_ONCE = 2048  # of all runs, where no gradient is taken


@dataclass(frozen=True)
class CoCoOp(Head):
    """CoCoOp (Zhou et al., 2022): learned words, shifted by a network on the image feature.

    m(f) = L2 ReLU(L1 f) (width,), L1 (dim, dim / 16) and L2 (dim / 16, width) with biases, of the
    unit feature f. The words of the prompt [v_1] ... [v_M] [name_k] . are v_j + m(f), so that each
    image has class weights t_k(f) of its own; logits = s cos(f, t_k(f)) (arXiv 2203.05557, Section
    3.2). The tower is asked for each image that is scored, so a run is not saved.
    The released recipe: SGD, momentum 0.9, a cosine per epoch after one epoch at 1e-5, one image a
    step, for 10 epochs; the words start as "a photo of a", the layers as torch makes them.
    """

    init: str = hyper("a photo of a", "the first words")
    lr: float = hyper(2e-3, "highest learning rate", 0)
    weight_decay: float = hyper(5e-4, "weight decay", 0)
    epochs: int = hyper(10, "passes over the support set", 1)
    batch: int = hyper(1, "largest minibatch", 1)

    vary: ClassVar[frozenset[str]] = frozenset({"lr", "weight_decay"})
    needs: ClassVar[frozenset[str]] = frozenset({"text", "tower"})
    optional_inputs: ClassVar[frozenset[str]] = frozenset({"views"})
    new_classes: ClassVar[str] = "text"

    def plan(self, n: int, shots: float) -> Plan:
        return Plan.dassl(n, epochs=self.epochs, batch=self.batch, optimiser="sgd")

    def prompt_tokens(self, tower: TextTower, names: Sequence[str], batch: int) -> int:
        n_word = tower.words([self.init])[1][0]
        each = n_prompt_token(tower, names, n_word=n_word, position="end", per_class=False)
        return batch * each

    def bind(self, support: Support, h: Hypers) -> Tensors:
        first, _ = support.need_tower().words([self.init])  # (1, m, width)
        prompts = prompt_constants(support, n_word=first.shape[1], position="end", per_class=False)
        # an image as it comes, of which `start` needs the length
        image = support.x.new_zeros(1, support.x.shape[-1])
        return {"scale": support.scale, "_init": first, "_image": image} | prompts

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        dim = c["_image"].shape[-1]
        width = c["_init"].shape[-1]
        hidden = max(dim // 16, 1)
        return {
            "words": c["_init"].repeat(len(generators), 1, 1),
            "w1": _uniform((dim, hidden), dim, generators, c["_init"]),
            "b1": _uniform((hidden,), dim, generators, c["_init"]),
            "w2": _uniform((hidden, width), hidden, generators, c["_init"]),
            "b2": _uniform((width,), hidden, generators, c["_init"]),
        }

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        n_run = len(p["words"])
        x = x.expand(n_run, -1, -1)
        if torch.is_grad_enabled():
            return self._logits(p, c, x)
        n_class = c["rest"].shape[1]
        at_once = max(1, PROMPTS_AT_ONCE // (n_run * n_class))
        return torch.cat([self._logits(p, c, part) for part in x.split(at_once, dim=1)], dim=1)

    def _logits(self, p: Tensors, c: Tensors, x: Tensor) -> Tensor:
        """Logits (n_run, b, n_class) of images x (n_run, b, dim), each by its own prompts."""
        return c["scale"] * (self.texts(p, c, x) @ x[..., None])[..., 0]

    def texts(self, p: Tensors, c: Tensors, x: Tensor) -> Tensor:
        """Class weights (n_run, b, n_class, dim), unit rows, for each image x (n_run, b, dim)."""
        hidden = (x @ p["w1"] + p["b1"][:, None]).relu()
        shift = hidden @ p["w2"] + p["b2"][:, None]  # (n_run, b, width)
        words = p["words"][:, None] + shift[:, :, None]  # (n_run, b, m, width)
        text = prompt_features(c, words.flatten(0, 1))  # (n_run * b, n_class, dim)
        return unit(text).unflatten(0, x.shape[:2])


def _uniform(
    shape: tuple[int, ...], n_in: int, generators: Sequence[Generator], like: Tensor
) -> Tensor:
    """Weights or biases (n_run, ...) of a layer of n_in inputs, as torch's `Linear` begins."""
    bound = n_in**-0.5
    # On the CPU, where the runs' generators are.
    drawn = [torch.rand(shape, generator=one, device="cpu") for one in generators]
    return ((2 * torch.stack(drawn) - 1) * bound).to(like)

"""CoOp (Zhou et al., 2022): the words around a class name are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, HeadError, Hypers, Plan, fill_in, hyper
from cliad.adapters.core.ops import cosine_logits, unit
from cliad.adapters.core.tower import TextTower
from cliad.adapters.prompts import (
    POSITIONS,
    n_prompt_token,
    prompt_constants,
    prompt_features,
)

RANDOM = "random"  # in place of first words
SPREAD = 0.02  # of random first words


@dataclass(frozen=True)
class Preset:
    """A training recipe."""

    lr: float
    weight_decay: float
    batch: int


PRESETS = {
    "fast": Preset(lr=2e-3, weight_decay=5e-4, batch=4096),
    "paper": Preset(lr=2e-3, weight_decay=5e-4, batch=32),
}
FAST_STEPS = 100


@dataclass(frozen=True)
class CoOp(Head):
    """CoOp (Zhou et al., 2022): learned words in front of the class names.

    The prompt of class k is [v_1] ... [v_M] [name_k] . with v_m (width,) in the space of token
    embeddings, shared by all classes or one set for each (`csc`); t_k is the text tower's feature
    of it, logits = s cos(f, t_k) (arXiv 2109.01134, Section 3.2, Eq. 3). The tower is frozen; once
    training is over the class weights alone are kept beside the words, and new classes ask for it
    again.
    preset "paper" is the released recipe: SGD, momentum 0.9, a cosine per epoch after one epoch at
    1e-5, in minibatches of 32, for 50, 100 and 200 epochs at 1, 2 to 4, and more shots.
    NOTE[DIFF] preset "fast", the default: Adam for 100 steps on the whole support set (up to 4,096
    images at once). A step costs the text tower the same for 32 cached images as for all of them.
    NOTE[DIFF] the words start as "a photo of a"; the paper's main runs use 16 random ones, which
    are `--init random`.
    """

    init: str = hyper("a photo of a", "the first words; random: drawn from N(0, 0.02)")
    words: int = hyper(16, "number of words, where they are random", 1, 1000)
    csc: bool = hyper(False, "words of its own for each class", choices=(True, False))
    position: str = hyper("end", "where the class name stands among the words", choices=POSITIONS)
    preset: str = hyper(
        "fast",
        "training recipe: lr, weight_decay, epochs and batch where they are not given",
        choices=tuple(PRESETS),
    )
    lr: float | None = hyper(None, "highest learning rate", 0)
    weight_decay: float | None = hyper(None, "weight decay", 0)
    epochs: int | None = hyper(None, "passes over the support set", 1)
    batch: int | None = hyper(None, "largest minibatch", 1)

    vary: ClassVar[frozenset[str]] = frozenset({"lr", "weight_decay"})
    needs: ClassVar[frozenset[str]] = frozenset({"text", "tower"})
    optional_inputs: ClassVar[frozenset[str]] = frozenset({"views"})
    new_classes: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.init.strip():
            raise HeadError(f"expected init to be words, or {RANDOM}; got none")
        # Not the epochs, which depend on the shots.
        fill_in(self, PRESETS[self.preset], "lr", "weight_decay", "batch")
        if self.csc:
            # words of one class say nothing of another
            object.__setattr__(self, "new_classes", "no")

    def plan(self, n: int, shots: float) -> Plan:
        batch = cast(int, self.batch)  # filled in by __post_init__
        if self.preset == "paper":
            epochs = self.epochs or _published_epochs(shots)
            return Plan.dassl(n, epochs=epochs, batch=batch, optimiser="sgd")
        if self.epochs:
            return Plan.epochs(n, epochs=self.epochs, batch=batch, optimiser="adam")
        return Plan.counted(n, steps=FAST_STEPS, batch=batch, optimiser="adam")

    def prompt_tokens(self, tower: TextTower, names: Sequence[str], batch: int) -> int:
        # The same for one image as for all: they meet the prompts behind the tower.
        n_word = self.words if self.init == RANDOM else tower.words([self.init])[1][0]
        return n_prompt_token(
            tower, names, n_word=n_word, position=self.position, per_class=self.csc
        )

    def bind(self, support: Support, h: Hypers) -> Tensors:
        c: Tensors = {"scale": support.scale}
        n_word = self.words
        if self.init != RANDOM:
            first, _ = support.need_tower().words([self.init])  # (1, m, width)
            c["_init"] = first
            n_word = first.shape[1]
        prompts = prompt_constants(
            support, n_word=n_word, position=self.position, per_class=self.csc
        )
        # Needed until `finish` has folded them into the class weights.
        return c | {f"_{name}": value for name, value in prompts.items()}

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        n_run = len(generators)
        n_class, _, width = c["_rest"].shape[1:]
        if self.init == RANDOM:
            shape = (n_class, self.words, width) if self.csc else (self.words, width)
            # On the CPU, where the runs' generators are.
            drawn = [torch.randn(shape, generator=one, device="cpu") for one in generators]
            return {"words": SPREAD * torch.stack(drawn).to(c["_rest"])}
        words = c["_init"].repeat(n_run, 1, 1)  # (n_run, m, width)
        if self.csc:
            words = words[:, None].repeat(1, n_class, 1, 1)
        return {"words": words}

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        weights = p["weights"] if "weights" in p else _weights(p, c)
        return cosine_logits(x, weights, c["scale"])

    def finish(self, p: Tensors, c: Tensors, h: Hypers) -> Tensors:
        # From here on no tower is needed, but for other classes.
        return {"words": p["words"], "weights": _weights(p, c)}


def _weights(p: Tensors, c: Tensors) -> Tensor:
    """The class weights (n_run, n_class, dim), unit rows: the features of the prompts."""
    prompts = {name.removeprefix("_"): value for name, value in c.items()}
    return unit(prompt_features(prompts, p["words"]))


def _published_epochs(shots: float) -> int:
    """Passes over a support set of so many shots of each class."""
    if shots <= 1:
        return 50
    return 100 if shots <= 4 else 200

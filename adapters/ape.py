"""APE (Zhu et al., 2023): Tip-Adapter on the feature channels that tell classes apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Candidates, Head, Hypers, hyper
from cliad.adapters.core.keys import KEY_ALPHAS, KEY_BETAS, Votes, keys_by_class, nearness
from cliad.adapters.core.ops import cosine_logits, unit
from cliad.adapters.core.texts import zero_shot_constants

EPS = 1e-6  # the released code's, beside both sides of the divergence


@dataclass(frozen=True)
class Ape(Head):
    """APE (Zhu et al., 2023): no training, Tip-Adapter on the channels that tell classes apart.

    logits = s f T^T + alpha exp(-beta (1 - f' F'^T)) diag(exp(gamma KL)) L. A dash means: only the
    chosen channels, made unit again. f (n, dim) are the queries, F (n_support, dim) the keys with
    one-hot labels L (n_support, n_class), T (n_class, dim) the class texts.
    KL_i = sum_k L_ik log2(L_ik / softmax(F' T'^T)_ik) (ICCV 2023, Eq. 8 and Section 4.2).
    Chosen are the channels c with the highest (1 - w) Var_k(T_kc) - w S_c, see `channels`.
    NOTE[DIFF] the class texts are those of the cache; the paper adds sentences of a language model.
    One share, one w and one grid for all data sets, where the released code has its own for each.
    """

    alpha: float = hyper(1.0, "weight of the support images' labels; 0 is zero-shot", 0, 1000)
    beta: float = hyper(5.5, "sharpness: larger = only very similar support images count", 0, 1000)
    gamma: float = hyper(
        0.1, "extra weight for support images that zero-shot misclassifies", 0, 100
    )
    share: float = hyper(0.7, "share of the feature channels that are used", 0, 1)
    w: float = hyper(
        0.5,
        "how channels are chosen: 1 by low similarity between classes, 0 by high variance of texts",
        0,
        1,
    )

    vary: ClassVar[frozenset[str]] = frozenset({"alpha", "beta", "gamma", "share", "w"})
    tuned: ClassVar[frozenset[str]] = frozenset({"alpha", "beta", "gamma"})
    space: ClassVar[dict[str, tuple]] = {
        "alpha": KEY_ALPHAS,
        "beta": KEY_BETAS,
        "gamma": (0.0, 0.1, 0.3, 0.6, 1.0),
    }
    optional_inputs: ClassVar[frozenset[str]] = frozenset({"views"})
    select: ClassVar[str] = "val"
    new_classes: ClassVar[str] = "support"

    def bind(self, support: Support, h: Hypers) -> Tensors:
        c = zero_shot_constants(support)
        keys, values = keys_by_class(support)
        by_class = keys.unflatten(1, values.shape[1:])  # (n_run, n_class, n_slot, dim)
        chosen = channels(c["text"][0], by_class, values, h["share"], h["w"])
        chosen = chosen[:, None]  # (n_run, 1, dim)
        keys = unit(keys * chosen)
        text = unit(c["text"] * chosen)  # (n_run, n_class, dim)
        return c | {
            "keys": keys,
            "values": values,
            "surprise": surprise(keys, text, values),
            "channels": chosen,
        }

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        values = c["values"] * (h["gamma"][:, None, None] * c["surprise"]).exp()
        near = nearness(unit(x * c["channels"]), c["keys"], values, h["beta"])
        return cosine_logits(x, c["text"], c["scale"]) + h["alpha"][:, None, None] * near

    def candidates(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Iterator[Candidates]:
        def values_at(gamma: float) -> Tensor:
            return c["values"] * (gamma * c["surprise"]).exp()

        affinity = unit(x * c["channels"]) @ c["keys"].mT
        votes = Votes(cosine_logits(x, c["text"], c["scale"]), affinity)
        return votes.candidates(h, values_at, "gamma")


def surprise(keys: Tensor, text: Tensor, values: Tensor) -> Tensor:
    """KL (n_run, n_class, n_slot) of each key's label from zero-shot's answer; 0 in empty slots.

    keys (n_run, n_class * n_slot, dim) and text (n_run, n_class, dim) are unit rows of the chosen
    channels, values (n_run, n_class, n_slot) is 1, or 0 in an empty slot.
    """
    # A label is one-hot: of the sum over classes only the term of the key's own class is not 0,
    #   KL = 1 log2(1 / probability of the own class).
    probability = (keys @ text.mT).softmax(dim=-1)  # (n_run, n_class * n_slot, n_class)
    probability = probability.unflatten(1, values.shape[1:])  # (n_run, n_class, n_slot, n_class)
    # The diagonal of both class axes is behind the others: (n_run, n_slot, n_class).
    own = probability.diagonal(dim1=1, dim2=3).mT  # (n_run, n_class, n_slot)
    return torch.log2((1 + EPS) / (own + EPS)) * values


def channels(text: Tensor, keys: Tensor, values: Tensor, share: Tensor, w: Tensor) -> Tensor:
    """Which channels are used: 1.0, or 0.0 for the others, (n_run, dim).

    Args:
        text: (n_class, dim) unit class weights.
        keys: (n_run, n_class, n_slot, dim) unit keys, zeros in empty slots.
        values: (n_run, n_class, n_slot) 1, or 0 in an empty slot.
        share: (n_run,) how many channels, as a share of dim.
        w: (n_run,) weight of the similarity, against the variance of the texts.
    """
    # The samples of class k are its text and its keys: n_k of them, of sum s_k (dim,).
    class_sum = text + keys.sum(dim=2)  # (n_run, n_class, dim)
    class_count = 1 + values.sum(dim=2)  # (n_run, n_class)

    # S_c, the similarity between classes in channel c, is the mean of x_ic x_jc over all ordered
    # pairs (i, j) of samples of different classes. The released code loops over them. In each
    # channel the products over ALL pairs sum to (sum_k s_k)^2, those over pairs within class k to
    # s_k^2, so what remains is
    #   sum over pairs of different classes = (sum_k s_k)^2 - sum_k s_k^2
    similar = class_sum.sum(dim=1).square() - class_sum.square().sum(dim=1)  # (n_run, dim)
    # and, with 1 in place of each sample,
    #   number of such pairs = (sum_k n_k)^2 - sum_k n_k^2
    pairs = class_count.sum(dim=1).square() - class_count.square().sum(dim=1)  # (n_run,)
    similarity = similar / pairs[:, None]

    # Texts that differ much in a channel, and classes that are unlike in it, make a good channel.
    score = (1 - w[:, None]) * text.var(dim=0) - w[:, None] * similarity  # (n_run, dim)

    # argsort gives the channels from best to worst, argsort of that each channel's rank, 0 the
    # best; stable, so that the first of equally good channels is taken on every device.
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    n_chosen = (share * score.shape[1]).round()
    return (rank < n_chosen[:, None]).to(text)

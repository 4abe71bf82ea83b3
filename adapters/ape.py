"""APE (Zhu et al., 2023): Tip-Adapter on the feature channels that tell classes apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, hyper
from cliad.adapters.core.keys import KEY_ALPHAS, KEY_BETAS, distinct, keys_by_class, nearness
from cliad.adapters.core.ops import class_weights, cosine_logits, unit


@dataclass(frozen=True)
class Ape(Head):
    """APE (Zhu et al., 2023): no training, Tip-Adapter on the channels that tell classes apart.

    logits = s f T^T + alpha exp(-beta (1 - f' F'^T)) diag(exp(gamma KL)) L, ' the chosen channels of f, F, T, unit again;
    KL_i = sum_k L_ik log2(L_ik / softmax(F' T'^T)_ik) (ICCV 2023, Eq. 8 and Section 4.2). Chosen are the share of channels with the
    highest -w S_c + (1 - w) Var_k(T_kc), S_c the mean over pairs of samples of different classes of their product in channel c.
    NOTE[DIFF] the class texts are those of the cache; the paper adds sentences of a language model. One share, one w and one grid
    for all data sets, where the released code has its own for each.
    """

    alpha: float = hyper(1.0, "weight of the cache's logits; 0 is zero-shot", 0, 1000)
    beta: float = hyper(5.5, "sharpness: how fast a key's say falls with distance", 0, 1000)
    gamma: float = hyper(0.1, "how much more a key says that zero-shot would get wrong", 0, 100)
    share: float = hyper(0.7, "share of the channels that are kept", 0, 1)
    w: float = hyper(
        0.5, "weight of similarity between classes, against the variance of the texts", 0, 1
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

    def bind(self, support: Support, h: Tensors) -> Tensors:
        keys, values = keys_by_class(support)
        text = class_weights(support.need_text())[None]
        chosen = channels(text[0], keys.unflatten(1, values.shape[1:]), values, h["share"], h["w"])[
            :, None
        ]  # (n_run, 1, dim)
        keys, text_chosen = unit(keys * chosen), unit(text * chosen)
        probability = (
            (keys @ text_chosen.mT).softmax(dim=-1).unflatten(1, values.shape[1:])
        )  # (n_run, n_class, n_slot, n_class)
        own = probability.diagonal(
            dim1=1, dim2=3
        ).mT  # (n_run, n_class, n_slot): of each key's own class
        surprise = torch.log2((1 + 1e-6) / (own + 1e-6)) * values
        scale = support.scale
        return {
            "text": text,
            "scale": scale,
            "keys": keys,
            "values": values,
            "surprise": surprise,
            "channels": chosen,
        }

    def logits(self, p: Tensors, c: Tensors, h: Tensors, x: Tensor) -> Tensor:
        rows, which = distinct(c["keys"], h["beta"], h["gamma"])
        values = c["values"] * (rows[:, 1, None, None] * c["surprise"]).exp()
        near = nearness(unit(x * c["channels"]), c["keys"], values, rows[:, 0])[which]
        return cosine_logits(x, c["text"], c["scale"]) + h["alpha"][:, None, None] * near


def channels(text: Tensor, keys: Tensor, values: Tensor, share: Tensor, w: Tensor) -> Tensor:
    """1.0 for a channel that is kept, else 0.0: (n_run, dim); the samples of a class are its text and its keys."""
    own = text + keys.sum(dim=2)  # (n_run, n_class, dim): the sum over a class's samples
    count = 1 + values.sum(dim=2)  # (n_run, n_class)
    pairs = count.sum(dim=1).square() - count.square().sum(dim=1)
    # sum over pairs of different classes of s_i s_j = (sum_k s_k)^2 - sum_k s_k^2, in each channel
    similarity = (own.sum(dim=1).square() - own.square().sum(dim=1)) / pairs[:, None]
    score = (1 - w[:, None]) * text.var(dim=0) - w[:, None] * similarity
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < (share * score.shape[1]).round()[:, None]).to(text)

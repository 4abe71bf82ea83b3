"""CLIP-Adapter (Gao et al., 2021): a bottleneck network whose output is blended into the image feature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, HeadError, Plan, hyper
from cliad.adapters.core.ops import bottleneck, bottleneck_start, class_weights, cosine_logits, unit


@dataclass(frozen=True)
class Preset:
    """A training recipe; epochs at up to 1, 2, 4, 8 and more shots."""

    lr: float
    weight_decay: float
    batch: int
    epochs: tuple[int, int, int, int, int]


PRESETS = {
    "fast": Preset(lr=3e-3, weight_decay=0.01, batch=256, epochs=(30, 30, 30, 30, 30)),
    "paper": Preset(lr=2e-3, weight_decay=5e-4, batch=32, epochs=(50, 100, 100, 200, 200)),
}


@dataclass(frozen=True)
class ClipAdapter(Head):
    """CLIP-Adapter (Gao et al., 2021): bottleneck network, blended into the frozen feature.

    A(x) = ReLU(ReLU(x W1) W2), W1 (dim, hidden), W2 (hidden, dim), no bias (arXiv 2110.04544, Section 3.2);
    x' = alpha A_v(x) + (1 - alpha) x; t'_k = beta A_t(t_k) + (1 - beta) t_k; logits = s cos(x', t'_k), each branch with its own A.
    Every map is positively homogeneous and x', t' are normalised after the blend, so the lengths of x and t do not matter.
    preset "paper" is CoOp's recipe, which the paper follows: SGD with momentum 0.9, cosine per epoch after one epoch at 1e-5.
    NOTE[DIFF] preset "fast", the default: AdamW in larger batches, the rate rising for 3 tenths of the steps, then falling by a cosine.
    """

    alpha: float = hyper(0.2, "weight of the adapted image feature; 0 is zero-shot", 0, 1)
    beta: float = hyper(
        0.2, "weight of the adapted text feature, where the branch is text or both", 0, 1
    )
    branch: str = hyper("visual", "what is adapted", choices=("visual", "text", "both"))
    # NOTE[DIFF] the paper names a network Q(x, W) for learned ratios and gives no more of it; both forms here are our reading:
    # "learned" is one number to a branch behind a sigmoid, "conditioned" a network on the feature, width D/16, behind a sigmoid
    ratio: str = hyper(
        "fixed",
        "alpha and beta as given, or learned from there",
        choices=("fixed", "learned", "conditioned"),
    )
    hidden: str = hyper(
        "D/4", "width of the bottleneck: a number, or a share of the feature width such as D/4"
    )
    # NOTE[DIFF] the paper's equation has one ReLU, its released code a second one after W2; the code is the default here
    final_relu: bool = hyper(
        True, "a second ReLU after the bottleneck, as in the released code", choices=(True, False)
    )
    preset: str = hyper(
        "fast",
        "recipe behind lr, weight_decay, epochs and batch where they are not given",
        choices=tuple(PRESETS),
    )
    lr: float | None = hyper(None, "highest learning rate", 0)
    weight_decay: float | None = hyper(None, "weight decay", 0)
    epochs: int | None = hyper(None, "passes over the support set", 1)
    batch: int | None = hyper(None, "largest minibatch", 1)

    vary: ClassVar[frozenset[str]] = frozenset({"alpha", "beta", "lr", "weight_decay"})
    space: ClassVar[dict[str, tuple]] = {
        "alpha": (0.2, 0.4, 0.6, 0.8, 1.0, 0.0),
        "beta": (0.2, 0.4, 0.6, 0.8, 1.0, 0.0),
    }
    optional_inputs: ClassVar[frozenset[str]] = frozenset({"views"})
    per_class: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("lr", "weight_decay", "batch"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(PRESETS[self.preset], name))
        for name in self.branches.values():
            if self.ratio != "fixed" and getattr(self, name) in (0, 1):
                raise HeadError(
                    f"{name} is where a learned ratio starts: between 0 and 1, neither of them; got {getattr(self, name):g}"
                )

    @property
    def branches(self) -> dict[str, str]:
        """What is adapted, with the field that weighs it."""
        return {
            name: field
            for name, field in (("visual", "alpha"), ("text", "beta"))
            if self.branch in (name, "both")
        }

    def searches(self) -> dict[str, tuple]:
        return (
            {field: self.space[field] for field in self.branches.values()}
            if self.ratio == "fixed"
            else {}
        )

    def plan(self, n: int, shots: float) -> Plan:
        epochs = (
            self.epochs or PRESETS[self.preset].epochs[sum(shots > most for most in (1, 2, 4, 8))]
        )
        if self.preset == "paper":
            return Plan.dassl(n, epochs=epochs, batch=self.batch, optimiser="sgd")
        return Plan.epochs(
            n, epochs=epochs, batch=self.batch, warmup=epochs * -(-n // self.batch) * 3 // 10
        )

    def bind(self, support: Support, h: Tensors) -> Tensors:
        return {"text": class_weights(support.need_text())[None], "scale": support.scale}

    def start(self, c: Tensors, h: Tensors, generators: Sequence[Generator]) -> Tensors:
        dim, p = c["text"].shape[-1], {}
        for name, field in self.branches.items():
            p[f"{name}_w1"], p[f"{name}_w2"] = bottleneck_start(
                dim, width(self.hidden, dim), generators, c["text"]
            )
            if self.ratio != "fixed":
                p[f"{name}_ratio"] = h[field].logit()
            if self.ratio == "conditioned":
                q1, q2 = bottleneck_start(dim, max(dim // 16, 1), generators, c["text"])
                p[f"{name}_q1"], p[f"{name}_q2"] = q1, torch.zeros_like(q2[..., :1])
        return p

    def logits(self, p: Tensors, c: Tensors, h: Tensors, x: Tensor) -> Tensor:
        x, text = (
            self._blend(p, h, name, rows) for name, rows in (("visual", x), ("text", c["text"]))
        )
        return cosine_logits(x, unit(text) if "text" in self.branches else text, c["scale"])

    def _blend(self, p: Tensors, h: Tensors, name: str, x: Tensor) -> Tensor:
        """x (n_run or 1, n, dim) with its adapted form blended in, where the branch is adapted."""
        if name not in self.branches:
            return x
        weight = h[self.branches[name]][:, None, None]
        if self.ratio != "fixed":
            weight = p[f"{name}_ratio"][:, None, None]
            if self.ratio == "conditioned":
                weight = weight + bottleneck(
                    unit(x), p[f"{name}_q1"], p[f"{name}_q2"], final_relu=False
                )
            weight = weight.sigmoid()
        return torch.lerp(
            x, bottleneck(x, p[f"{name}_w1"], p[f"{name}_w2"], final_relu=self.final_relu), weight
        )


def width(hidden: str, dim: int) -> int:
    """The bottleneck's width: `hidden` is a number, or D, D/2, D/4, ... of the feature width."""
    top, _, below = str(hidden).partition("/")
    try:
        value = int(top) if not below and top != "D" else _share(dim, int(below or 1))
    except (ValueError, ZeroDivisionError):
        value = 0
    if value < 1 or (below and top != "D"):
        raise HeadError(
            f"hidden is a number or a share of the feature width such as D/4; got {hidden} where D is {dim}"
        )
    return value


def _share(dim: int, parts: int) -> int:
    """dim // parts, but at least 1 for any dim."""
    return max(1, dim // parts) if parts > 0 else 0

"""CLIP-Adapter (Gao et al., 2021): a bottleneck network, blended into the image feature."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Generator, Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Head, HeadError, Hypers, Plan, fill_in, hyper
from cliad.adapters.core.ops import bottleneck, bottleneck_start, cosine_logits, unit
from cliad.adapters.core.texts import zero_shot_constants


@dataclass(frozen=True)
class Preset:
    """A training recipe; epochs and least steps at up to 1, 2, 4, 8 and more shots."""

    lr: float
    weight_decay: float
    batch: int
    epochs: tuple[int, int, int, int, int]
    least_steps: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)

    def epochs_at(self, shots: float, per_epoch: int) -> int:
        """The passes of `per_epoch` steps over a support set of so many shots."""
        place = sum(shots > most_shots for most_shots in (1, 2, 4, 8))
        return max(self.epochs[place], math.ceil(self.least_steps[place] / per_epoch))


PRESETS = {
    "fast": Preset(
        lr=1e-3,
        weight_decay=0.01,
        batch=256,
        epochs=(30, 30, 30, 30, 30),
        least_steps=(100, 200, 200, 300, 300),
    ),
    "paper": Preset(lr=2e-3, weight_decay=5e-4, batch=32, epochs=(50, 100, 100, 200, 200)),
}
RATIO_FIELDS = {"visual": "alpha", "text": "beta"}  # branch -> the field of its blending ratio


@dataclass(frozen=True)
class ClipAdapter(Head):
    """CLIP-Adapter (Gao et al., 2021): bottleneck network, blended into the frozen feature.

    A(x) = ReLU(ReLU(x W1) W2), W1 (dim, hidden), W2 (hidden, dim), no bias (arXiv 2110.04544,
    Section 3.2); x' = alpha A_v(x) + (1 - alpha) x; t'_k = beta A_t(t_k) + (1 - beta) t_k;
    logits = s cos(x', t'_k). Each branch, visual and text, has its own A.
    Every map is positively homogeneous and x', t' are normalised after the blend, so the lengths of
    x and t do not matter.
    preset "paper" is CoOp's recipe, which the paper follows: SGD with momentum 0.9, cosine per
    epoch after one epoch at 1e-5.
    NOTE[DIFF] preset "fast", the default: AdamW in larger batches, the rate falling by a cosine;
    30 epochs, but at least 100 steps at 1 shot, 200 up to 4 and 300 above: few images of many
    classes make few steps to an epoch.
    """

    alpha: float = hyper(0.2, "weight of the adapted image feature; 0 is zero-shot", 0, 1)
    beta: float = hyper(
        0.2, "weight of the adapted text feature, where the branch is text or both", 0, 1
    )
    branch: str = hyper("visual", "which features are adapted", choices=("visual", "text", "both"))
    # NOTE[DIFF] for learned ratios the paper names a network Q(x, W) and does not specify it; both
    # variants are our interpretation. "learned" is one number for each branch, through a sigmoid;
    # "conditioned" adds a bottleneck network on the feature, of width dim / 16, before the sigmoid.
    ratio: str = hyper(
        "fixed",
        "alpha and beta fixed, or learned from these values on",
        choices=("fixed", "learned", "conditioned"),
    )
    hidden: str = hyper(
        "D/4", "width of the bottleneck: a number, or a share of the feature width D such as D/4"
    )
    # NOTE[DIFF] the paper's equation has one ReLU, its released code a second one after W2; the
    # code is the default here.
    final_relu: bool = hyper(
        True, "a second ReLU after the bottleneck, as in the released code", choices=(True, False)
    )
    preset: str = hyper(
        "fast",
        "training recipe: lr, weight_decay, epochs and batch where they are not given",
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
    new_classes: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        # Not the epochs, which depend on the shots.
        fill_in(self, PRESETS[self.preset], "lr", "weight_decay", "batch")
        if self.ratio != "fixed":
            self._check_first_ratios()

    def _check_first_ratios(self) -> None:
        """HeadError where a learned ratio would start at infinity, before the sigmoid."""
        for name in self.branches.values():
            value = getattr(self, name)
            if value in (0, 1):
                raise HeadError(
                    f"expected {name} between 0 and 1, where a learned ratio starts, and neither"
                    f" of them; got {value:g}"
                )

    @property
    def branches(self) -> Mapping[str, str]:
        """The branches that are adapted, each with the field of its blending ratio."""
        if self.branch == "both":
            return RATIO_FIELDS
        return {self.branch: RATIO_FIELDS[self.branch]}

    def searches(self) -> dict[str, tuple]:
        if self.ratio != "fixed":
            return {}
        return {name: self.space[name] for name in self.branches.values()}

    def plan(self, n: int, shots: float) -> Plan:
        batch = cast(int, self.batch)  # filled in by __post_init__
        per_epoch = math.ceil(n / batch)
        epochs = self.epochs or PRESETS[self.preset].epochs_at(shots, per_epoch)
        if self.preset == "paper":
            return Plan.dassl(n, epochs=epochs, batch=batch, optimiser="sgd")
        return Plan.epochs(n, epochs=epochs, batch=batch)

    def bind(self, support: Support, h: Hypers) -> Tensors:
        return zero_shot_constants(support)

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        dim = c["text"].shape[-1]
        hidden = width(self.hidden, dim)
        p: Tensors = {}
        for name, field in self.branches.items():
            w1, w2 = bottleneck_start(dim, hidden, generators, c["text"])
            p[f"{name}_w1"] = w1
            p[f"{name}_w2"] = w2
            if self.ratio != "fixed":
                p[f"{name}_ratio"] = h[field].logit()  # the sigmoid's inverse
            if self.ratio == "conditioned":
                q1, q2 = bottleneck_start(dim, max(dim // 16, 1), generators, c["text"])
                p[f"{name}_q1"] = q1
                # One output; zeros, so that the ratio starts at alpha or beta for every feature.
                p[f"{name}_q2"] = torch.zeros_like(q2[..., :1])
        return p

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        text = c["text"]
        if "visual" in self.branches:
            x = self._adapted("visual", x, p, h)
        if "text" in self.branches:
            text = unit(self._adapted("text", text, p, h))
        return cosine_logits(x, text, c["scale"])

    def _adapted(self, branch: str, x: Tensor, p: Tensors, h: Hypers) -> Tensor:
        """ratio A(x) + (1 - ratio) x of features x (n_run or 1, n, dim): (n_run, n, dim)."""
        ratio = self._blending_ratio(branch, x, p, h)
        adapted = bottleneck(x, p[f"{branch}_w1"], p[f"{branch}_w2"], final_relu=self.final_relu)
        return torch.lerp(x, adapted, ratio)

    def _blending_ratio(self, branch: str, x: Tensor, p: Tensors, h: Hypers) -> Tensor:
        """The weight of the adapted features: (n_run, 1, 1), or (n_run, n, 1) if conditioned."""
        if self.ratio == "fixed":
            return h[RATIO_FIELDS[branch]][:, None, None]
        ratio = p[f"{branch}_ratio"][:, None, None]
        if self.ratio == "conditioned":
            # Unit rows, since a sigmoid, unlike the rest, would see the length of x.
            q1 = p[f"{branch}_q1"]
            q2 = p[f"{branch}_q2"]
            ratio = ratio + bottleneck(unit(x), q1, q2, final_relu=False)
        return ratio.sigmoid()


def width(hidden: str, dim: int) -> int:
    """The bottleneck's width: `hidden` is a number, or D, D/2, D/4, ... of the feature width.

    Raises:
        HeadError: it is neither, or less than 1.
    """
    whole, _, parts = str(hidden).partition("/")
    value = 0
    with suppress(ValueError):  # not a number
        if whole == "D":
            value = _share(dim, int(parts or 1))
        elif not parts:
            value = int(whole)
    if value < 1:
        raise HeadError(
            "expected hidden to be a number of at least 1 or a share of the feature width D such as"
            f" D/4; got {hidden}, where D is {dim}"
        )
    return value


def _share(dim: int, parts: int) -> int:
    """dim // parts, but at least 1 for any dim; 0 for parts that are not positive."""
    return max(1, dim // parts) if parts > 0 else 0

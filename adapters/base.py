"""What a head is: tensors in, logits out. A head is written once, for many runs: every tensor has a leading run axis.

Axes: n_run runs trained together, n items, n_view cached views of an item, n_template prompts, n_class classes, dim features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

Tensors = dict[str, Tensor]  # every tensor (n_run, ...), or (1, ...) where all runs share it


class HeadError(ValueError):
    """A head cannot do what is asked with these hyper-parameters or this data; the message says why."""


@dataclass(frozen=True, eq=False)
class Episode:
    """One run's support and validation, as row numbers into ONE feature matrix that many episodes share.

    It has no test data: a choice made on an episode cannot have seen the test set.

    features (n_row, dim) raw float32; index (n,), y (n,); val_index (n_val,), val_y (n_val,);
    text (n_template, n_class, dim) raw, a zero row where a class has no such sentence, or None; logit_scale the multiplier;
    views (n_view, n_row, dim) raw augmented views of the rows, or None; pre_projection (n_row, dim_pre) likewise.
    """

    features: Tensor
    index: Tensor
    y: Tensor
    val_index: Tensor
    val_y: Tensor
    text: Tensor | None
    logit_scale: float
    seed: int
    n_class: int
    views: Tensor | None = None
    pre_projection: Tensor | None = None

    @property
    def val(self) -> tuple[Tensor, Tensor]:
        """Validation rows (n_val, dim) and labels (n_val,)."""
        return self.features[self.val_index], self.val_y


@dataclass(frozen=True, eq=False)
class Support:
    """The support sets of n_run runs, stacked; a run with fewer than n items is padded with rows of zeros.

    x (n_run, n, dim): unit rows, or raw ones where the head needs "raw"; y (n_run, n), 0 in the padding;
    mask (n_run, n): 1.0 for an item, 0.0 for padding; text (n_template, n_class, dim) raw, or None;
    rows (n_run, n): row numbers in `all_views` (n_view, n_row, dim) raw, which all runs share; None where there are no views.
    """

    x: Tensor
    y: Tensor
    mask: Tensor
    text: Tensor | None
    logit_scale: float
    n_class: int
    rows: Tensor | None = None
    all_views: Tensor | None = None

    def per_view(self, what: Callable[[Tensor], Tensor] = lambda views: views) -> Tensor | None:
        """what(views), computed once on (n_view, n_row, dim), for the support: (n_run, ..., n, dim), zeros in the padding."""
        if self.all_views is None:
            return None
        values = what(self.all_views)
        picked = values[..., self.rows, :].movedim(-3, 0)
        return picked * self.mask.view(len(picked), *[1] * (picked.dim() - 3), -1, 1)

    @property
    def scale(self) -> Tensor:
        """The logit scale (1, 1, 1), with a run axis as every constant has: those of several runs stack to (n_run, 1, 1)."""
        return self.x.new_full((1, 1, 1), self.logit_scale)

    @property
    def onehot(self) -> Tensor:
        """(n_run, n, n_class); padding is rows of zeros."""
        return F.one_hot(self.y, self.n_class) * self.mask[..., None]


@dataclass(frozen=True)
class Plan:
    """How a head is trained on n items: known before any data is seen, equal for all runs of a group.

    steps 0 means that `start` gives the solution. `batch` None is the full support. An epoch of `per_epoch` steps shows each
    item once, in minibatches of nearly equal size. `warmup` steps come first: at the constant rate `warmup_rate`, or, where that
    is None, rising linearly from zero. Where a run selects on validation, `keep` "best" takes the parameters that do best there,
    looked at every `look` steps; a run that does not select ends with the last ones, whatever `keep` says.
    """

    steps: int = 0
    per_epoch: int = 1
    batch: int | None = None
    optimiser: str = "adamw"  # or "adam" (decay in the gradient), "sgd"
    momentum: float = 0.9  # of sgd
    eps: float = 1e-8  # of adam and adamw
    schedule: str = "cosine"  # per step; or "cosine-epoch" (constant within an epoch), "constant"
    warmup: int = 0
    warmup_rate: float | None = None
    keep: str = "last"
    look: int = 1

    @classmethod
    def counted(cls, n: int, *, steps: int, batch: int, **options) -> Plan:
        """The plan of `steps` steps over n items in minibatches of at most `batch`."""
        per_epoch = -(-n // batch)
        return cls(steps=steps, per_epoch=per_epoch, batch=-(-n // per_epoch), **options)

    @classmethod
    def epochs(cls, n: int, *, epochs: int, batch: int, **options) -> Plan:
        """The plan of `epochs` passes over n items in minibatches of at most `batch`."""
        return cls.counted(n, steps=epochs * -(-n // batch), batch=batch, **options)

    @classmethod
    def dassl(cls, n: int, *, epochs: int, batch: int, **options) -> Plan:
        """The recipe of CoOp and all that is built on its trainer: cosine per epoch after one epoch at the constant rate 1e-5."""
        per_epoch = -(-n // batch)
        return cls.epochs(n, epochs=epochs, batch=batch, schedule="cosine-epoch", warmup=per_epoch, warmup_rate=1e-5, **options)


def hyper(default, meaning: str, low: float | None = None, high: float | None = None, choices: Sequence = ()) -> Any:
    """A hyper-parameter of a head: its default, what it means, and what it may be."""
    return field(default=default, metadata={"meaning": meaning, "low": low, "high": high, "choices": tuple(choices)})


class Head:
    """The contract of all heads. A head is a frozen dataclass of hyper-parameters and holds no data.

    vary       fields that leave all shapes alone: runs that differ in nothing else train as one group, and methods
               get them as vectors h[name] (n_run,)
    tuned      fields of `vary` that only `logits` reads once training is over: they are searched without training again
    space      what `--select val` searches: field -> candidates, the first of equally good ones wins
    refine     bisection steps around the best candidate of a one-field space, in log10 (the linear probe's C)
    needs      of {"text", "raw", "views", "pre_projection", "tokens"}; "raw": x comes as the encoder gave it, else in unit rows;
               "pre_projection" (with "raw"): x (n, dim + dim_pre) is the feature and, behind it, what entered the last projection
    likes      what it uses where the cache has it, and does without where not
    select     the published way: "fixed" values, or chosen on "val" (fields of `space`, or the epoch, see Plan.keep)
    per_class  whether parameters have a class axis, so that they cannot serve other classes
    """

    vary: ClassVar[frozenset[str]] = frozenset()
    tuned: ClassVar[frozenset[str]] = frozenset()
    space: ClassVar[Mapping[str, tuple]] = {}
    refine: ClassVar[int] = 0
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    likes: ClassVar[frozenset[str]] = frozenset()
    select: ClassVar[str] = "fixed"
    per_class: ClassVar[bool] = True

    def __post_init__(self):
        for spec in fields(self):
            check(type(self).__name__, spec.name, getattr(self, spec.name), spec.metadata)

    def plan(self, n: int, n_class: int) -> Plan:
        """The training plan for a run of n items of n_class classes."""
        return Plan()

    def searches(self) -> dict[str, tuple]:
        """The part of `space` that means something for this head's other fields."""
        return dict(self.space)

    def bind(self, support: Support, h: Tensors) -> Tensors:
        """The constants c that logits need: class weights, keys, ..."""
        raise NotImplementedError

    def start(self, c: Tensors, h: Tensors, generators: Sequence[Generator]) -> Tensors:
        """The first parameters p; random ones come from the run's own (CPU) generator."""
        return {}

    def logits(self, p: Tensors, c: Tensors, h: Tensors, x: Tensor) -> Tensor:
        """Logits (n_run, n, n_class) of x (n_run, n, dim), or of x (1, n, dim) where all runs see the same items."""
        raise NotImplementedError

    def penalty(self, p: Tensors, c: Tensors, h: Tensors) -> Tensor | None:
        """What is added to each run's mean cross-entropy: (n_run,), or None."""
        return None

    def rates(self, c: Tensors, h: Tensors) -> dict[str, tuple[Tensor, int]]:
        """Step sizes (n_run,) of parameters that do not use h["lr"], each with k: "plain gradient step every k-th step"; 1 is as usual."""
        return {}

    def finish(self, p: Tensors, c: Tensors, h: Tensors) -> Tensors:
        """The parameters to keep, from those that training ended with."""
        return p


def check(head: str, name: str, value, rule: Mapping) -> None:
    """HeadError where a hyper-parameter is not what its `hyper` line allows."""
    low, high, choices = (rule.get(key) for key in ("low", "high", "choices"))
    if choices and value not in choices:
        raise HeadError(f"{name} of {head} is one of {', '.join(map(str, choices))}; got {value}")
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    if not ((low is None or value >= low) and (high is None or value <= high)):
        span = f"from {low:g} to {high:g}" if None not in (low, high) else f"at least {low:g}" if high is None else f"at most {high:g}"
        raise HeadError(f"{name} ({rule['meaning']}) is {span}; got {value:g}")


def default_of(spec) -> Any:
    """The default of a dataclass field."""
    return spec.default if spec.default is not MISSING else spec.default_factory()


def unit(x: Tensor) -> Tensor:
    """Rows of length one; a row of zeros stays one."""
    return F.normalize(x, dim=-1, eps=1e-12)


def class_weights(text: Tensor) -> Tensor:
    """Zero-shot weights (n_class, dim) from raw text (n_template, n_class, dim): unit rows, their mean over templates, unit again."""
    return unit(unit(text).mean(dim=0))


def raw_class_weights(text: Tensor) -> Tensor:
    """The raw mean (n_class, dim) over the templates that a class has.

    Heads that start here train with rates made for the length of CLIP's raw text features, about 10. Text that was imported as
    unit rows has lost its length, and is given that one.
    """
    present = (text != 0).any(dim=-1, keepdim=True).sum(dim=0)
    unit_rows = torch.linalg.vector_norm(text, dim=-1).amax() < 1.5
    return text.sum(dim=0) / present.clamp(min=1) * torch.where(unit_rows, 10.0, 1.0).to(text)


def cosine_logits(x: Tensor, w: Tensor, scale: Tensor | float) -> Tensor:
    """scale * cos(x, w): x (n_run, n, dim) of any length, w (n_run or 1, n_class, dim) unit rows -> (n_run, n, n_class)."""
    learned = isinstance(scale, Tensor) and scale.requires_grad
    if torch.is_grad_enabled() and x.requires_grad and not learned and len(x) >= len(w):
        return _Cosine.apply(x, w, scale)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-12)
    return dot(x, w) * (scale / length)


class _Cosine(torch.autograd.Function):
    """The same with a gradient that goes over x once, where autograd's own goes five times."""

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, scale) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=1e-12)
        logits = dot(x, w).mul_(scale / length)
        ctx.save_for_backward(x, w, logits, length)
        ctx.scale = scale
        return logits

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, w, logits, length = ctx.saved_tensors
        along = (grad * logits).sum(dim=-1, keepdim=True).div_(length * length).neg_()
        grad = grad * (ctx.scale / length)
        dx = dot(grad, w.mT).addcmul_(x, along)
        if not ctx.needs_input_grad[1]:
            return dx, None, None
        dw = grad.mT @ x
        return dx, dw if len(w) == len(dw) else dw.sum(dim=0, keepdim=True), None


def dot(x: Tensor, w: Tensor) -> Tensor:
    """x (n_run, n, dim) times w (n_run, n_class, dim) -> (n_run, n, n_class); a w that all runs share is one large product."""
    return x @ (w[0].mT if len(w) == 1 else w.mT)


def bottleneck(x: Tensor, w1: Tensor, w2: Tensor, *, final_relu: bool = True) -> Tensor:
    """CLIP-Adapter's network without bias: x (n_run, n, dim), w1 (n_run, dim, hidden), w2 (n_run, hidden, dim) -> (n_run, n, dim)."""
    adapted = (x @ w1).relu_() @ w2
    return adapted.relu_() if final_relu else adapted


def bottleneck_start(dim: int, hidden: int, generators: Sequence[Generator], like: Tensor) -> tuple[Tensor, Tensor]:
    """w1 and w2 of `bottleneck` as PyTorch starts bias-free linear layers, from each run's own generator."""
    pairs = [(linear_start(dim, hidden, g), linear_start(hidden, dim, g)) for g in generators]
    return tuple(torch.stack(weights).to(like) for weights in zip(*pairs, strict=True))


def linear_start(n_in: int, n_out: int, generator: Generator) -> Tensor:
    """(n_in, n_out) weights as PyTorch starts a linear layer: uniform in +-1/sqrt(n_in)."""
    return (torch.rand(n_in, n_out, generator=generator, device=generator.device) * 2 - 1) / math.sqrt(n_in)


def text_shots(text: Tensor) -> Tensors:
    """Raw text (n_template, n_class, dim) as training items: unit rows (1, n_template * n_class, dim), labels, weights that sum to 1."""
    there = (text != 0).any(dim=-1).to(text).flatten()
    y = torch.arange(text.shape[1], device=text.device).repeat(len(text))
    return {"_text": unit(text).flatten(0, 1)[None], "_text_y": y[None], "_text_weight": (there / there.sum())[None]}


def text_loss(logits: Tensor, c: Tensors) -> Tensor:
    """Mean cross-entropy (n_run,) of logits (n_run, n_text, n_class) on the items of `text_shots`."""
    own = logits.log_softmax(dim=-1).gather(2, c["_text_y"][..., None].expand(len(logits), -1, 1))[..., 0]
    return -(own * c["_text_weight"]).sum(dim=1)

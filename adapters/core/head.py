"""What a head is: tensors in, logits out.

A head is written once, for many runs: every tensor has a leading run axis.

Axes: n_run runs trained together, n items, n_view cached views of an item, n_template prompts,
n_class classes, dim features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from cliad.adapters.core.episode import Batch, Episode, Support, Tensors
from cliad.adapters.core.rows import COLUMNS
from cliad.adapters.core.tower import TextTower
from cliad.errors import CliadError


class HeadError(CliadError):
    """A head cannot work with these hyper-parameters or this data; the message says why."""


class Hypers(dict[str, Tensor]):
    """Hyper-parameters of n_run runs: name -> (n_run,), on the device where the runs train.

    `host` has the same numbers for Python: what is asked of a GPU waits until the GPU is idle.
    """

    def __init__(self, host: Mapping[str, Sequence[float]], like: Tensor):
        super().__init__({name: like.new_tensor(values) for name, values in host.items()})
        self.host = dict(host)


def hypers(heads: Sequence[Head], like: Tensor) -> Hypers:
    """h: each field of `vary` as a vector (n_run,) with the type and device of `like`.

    It has nan where a field is None.
    """
    host = {}
    for name in sorted(heads[0].vary):
        host[name] = [_as_number(getattr(head, name)) for head in heads]
    return Hypers(host, like)


def _as_number(value: float | None) -> float:
    """None, which stands for a number that the head finds itself, as "not a number"."""
    return math.nan if value is None else float(value)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Some of the runs of a search: their numbers (k,), and their logits (k, n, n_class)."""

    runs: Tensor
    logits: Tensor


# What a head may ask for in `needs` and `optional_inputs`.
INPUTS = frozenset({"text", "raw", "views", "tower", *COLUMNS})

# What a head may say in `new_classes`.
NEW_CLASSES = ("no", "text", "support")

PLAN_WORDS = {
    "optimiser": ("adamw", "adam", "sgd"),
    "schedule": ("cosine", "cosine-epoch", "constant"),
    "keep": ("last", "best"),
}


@dataclass(frozen=True)
class Plan:
    """How a head is trained on n items: known before any data is seen, equal for a group's runs.

    steps 0 means that `start` gives the solution. `batch` None is the full support. An epoch of
    `per_epoch` steps shows each item once, in minibatches of nearly equal size.

    `warmup` steps come first: at the constant rate `warmup_rate`, or, where that is None, rising
    linearly from zero.

    Where a run selects on validation, `keep` "best" takes the parameters that do best there,
    looked at every `look` steps. A run that does not select ends with the last ones, whatever
    `keep` says.
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

    def __post_init__(self) -> None:
        # A misspelt word would train by another recipe without a word.
        for name, known in PLAN_WORDS.items():
            if getattr(self, name) not in known:
                raise ValueError(f"expected {name} {' or '.join(known)}, got {getattr(self, name)}")

    @classmethod
    def counted(cls, n: int, *, steps: int, batch: int, **options: Any) -> Plan:
        """The plan of `steps` steps over n items in minibatches of at most `batch`.

        options: other fields of the plan.
        """
        per_epoch = -(-n // batch)  # rounded up
        even_batch = -(-n // per_epoch)
        return cls(steps=steps, per_epoch=per_epoch, batch=even_batch, **options)

    @classmethod
    def epochs(cls, n: int, *, epochs: int, batch: int, **options: Any) -> Plan:
        """The plan of `epochs` passes over n items in minibatches of at most `batch`."""
        per_epoch = -(-n // batch)
        return cls.counted(n, steps=epochs * per_epoch, batch=batch, **options)

    @classmethod
    def dassl(cls, n: int, *, epochs: int, batch: int, **options: Any) -> Plan:
        """The recipe of CoOp and of everything built on its trainer, Dassl.

        A cosine per epoch, after one epoch at the constant rate 1e-5. Dassl drops a last minibatch
        that is short: an epoch has as many steps here, and its minibatches share the items.
        """
        per_epoch = max(n // batch, 1)
        even_batch = -(-n // per_epoch)
        return cls(
            steps=epochs * per_epoch,
            per_epoch=per_epoch,
            batch=even_batch,
            schedule="cosine-epoch",
            warmup=per_epoch,
            warmup_rate=1e-5,
            **options,
        )


def hyper(
    default: object,
    meaning: str,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence = (),
) -> Any:
    """A hyper-parameter of a head: its default, what it means, and its allowed values."""
    # Any, as dataclasses.field itself has: the field's own annotation is its type
    return field(
        default=default,
        metadata={"meaning": meaning, "low": low, "high": high, "choices": tuple(choices)},
    )


@dataclass(frozen=True)
class Head:
    """The contract of all heads: a frozen dataclass of hyper-parameters, without any data.

    vary       fields that leave all shapes alone: runs that differ in nothing else train as one
               group, and methods get them as vectors h[name] (n_run,)
    tuned      fields of `vary` that only `logits` reads once training is over: they are searched
               without training again
    space      what `--select val` searches: field -> candidates; of equally good ones the first
               wins
    refine     bisection steps around the best candidate of a one-field space, in log10 (the linear
               probe's C)
    needs      of {"text", "raw", "views", "tower", "pre_projection", "tokens"}; "raw": x comes as
               the encoder gave it, else in unit rows; "tower": the text tower and the names of the
               classes. The last two, with "raw" and without "views", stand behind the feature in
               this order: what entered the last projection (dim_pre), and the patches
               (n_token * dim)
    optional_inputs
               inputs that it uses where the cache has them, and does without elsewhere
    select     the published way: "fixed" values, or chosen on "val" (fields of `space`, or the
               epoch, see Plan.keep), or by folds of the support ("cv")
    scored     rows that are scored at once: fewer for a head that holds more than logits of a row
    new_classes
                what serves classes that it was not trained on: "text", their texts alone;
                "support", a support of them beside; or "no", as parameters have a class axis
    cross_fits whether it is made of heads that it judges out of fold by itself: `select` is "cv",
               and `fit_parts` takes the place of training
    """

    vary: ClassVar[frozenset[str]] = frozenset()
    tuned: ClassVar[frozenset[str]] = frozenset()
    space: ClassVar[Mapping[str, tuple]] = {}
    refine: ClassVar[int] = 0
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    optional_inputs: ClassVar[frozenset[str]] = frozenset()
    select: ClassVar[str] = "fixed"
    scored: ClassVar[int] = 4096
    new_classes: ClassVar[str] = "no"
    cross_fits: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # A misspelt word would leave the head without the input, and without a message.
        unknown = (cls.needs | cls.optional_inputs) - INPUTS
        if unknown:
            raise ValueError(
                f"expected inputs of {sorted(INPUTS)}, got {sorted(unknown)} in {cls.__name__}"
            )
        # Rows are made unit rows whole, and views are of the feature alone.
        takes_views = "views" in cls.needs | cls.optional_inputs
        if cls.columns() and ("raw" not in cls.needs or takes_views):
            raise ValueError(
                f'expected "raw" and no "views" beside columns, got others in {cls.__name__}'
            )
        if cls.new_classes not in NEW_CLASSES:
            raise ValueError(
                f"expected new_classes {' or '.join(NEW_CLASSES)}, got {cls.new_classes}"
                f" in {cls.__name__}"
            )

    def __post_init__(self) -> None:
        for spec in fields(self):
            check(type(self).__name__, spec.name, getattr(self, spec.name), spec.metadata)

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """What stands behind the feature of a row, in its order."""
        return tuple(name for name in COLUMNS if name in cls.needs)

    def floats_per_item(self, n_class: int, dim: int, width: int) -> int:
        """Numbers that a step holds of an item beside its row and its logits: a guess.

        dim: of the feature; width: of the row, with its columns.
        """
        return 0

    def plan(self, n: int, shots: float) -> Plan:
        """The training plan for a run of n items, `shots` of each class (the mean if uneven)."""
        return Plan()

    def searches(self) -> dict[str, tuple]:
        """The part of `space` that means something for this head's other fields."""
        return dict(self.space)

    def prompt_tokens(self, tower: TextTower, names: Sequence[str], batch: int) -> int:
        """How many tokens go through a text tower at a step on a batch, for a guess of memory.

        names: of the classes.

        Raises:
            HeadError: the prompt of a class is too long.
        """
        return 0

    def bind(self, support: Support, h: Hypers) -> Tensors:
        """The constants c that logits need: class weights, keys, ...

        Names that begin with an underscore serve training only and are dropped after it.
        """
        raise NotImplementedError

    def start(self, c: Tensors, h: Hypers, generators: Sequence[Generator]) -> Tensors:
        """The first parameters p; random ones come from the run's own (CPU) generator."""
        return {}

    def fit_parts(self, episodes: Sequence[Episode]) -> Tensors:
        """The parameters p of a head that is made of other heads, fitted on the runs' episodes.

        It may leave its logits on items of the support that its parts had not seen, as "_logits"
        (n_run, n, n_class), with labels "_y" and weights "_weight" (n_run, n), 0 in the padding.
        """
        raise NotImplementedError

    def logits(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Tensor:
        """Logits (n_run, n, n_class) of x (n_run, n, dim), or of x (1, n, dim) for all runs."""
        raise NotImplementedError

    def candidates(self, p: Tensors, c: Tensors, h: Hypers, x: Tensor) -> Iterator[Candidates]:
        """The logits of one fitted run, p and c (1, ...), under all of h on x (1, n, dim).

        They come in parts, so that those of all candidates of a search need not fit into memory;
        a head whose candidates share costly work does it once for each part.
        """
        n_run = len(next(iter(h.values())))
        yield Candidates(torch.arange(n_run, device=x.device), self.logits(p, c, h, x))

    def loss(self, p: Tensors, c: Tensors, h: Hypers, batch: Batch) -> Tensor:
        """What training makes small (n_run,): here the mean cross-entropy, and `penalty`.

        A run's own parameters and items alone are in its own term.
        """
        loss = cross_entropy(self.logits(p, c, h, batch.x), batch)
        penalty = self.penalty(p, c, h)
        return loss if penalty is None else loss + penalty

    def penalty(self, p: Tensors, c: Tensors, h: Hypers) -> Tensor | None:
        """The term (n_run,) that is added to each run's mean cross-entropy; None for no term."""
        return None

    def rates(self, c: Tensors, h: Hypers) -> dict[str, tuple[Tensor, int]]:
        """Step sizes of the parameters that do not use h["lr"]: (n_run,), and a number k.

        k = 1: the plan's optimiser steps at this rate. k > 1: a plain gradient step at every
        k-th step.
        """
        return {}

    def finish(self, p: Tensors, c: Tensors, h: Hypers) -> Tensors:
        """The parameters to keep, from those that training ended with.

        For other classes it is called again, on what it gave and their c: see `new_classes`.
        """
        return p


def fill_in(head: Head, preset: object, *names: str) -> None:
    """Give the fields that are None the values of a preset, while a head is being made.

    So a result's row says what a head was trained with. The class is frozen, hence object's setter.
    """
    for name in names:
        if getattr(head, name) is None:
            object.__setattr__(head, name, getattr(preset, name))


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """The weighted mean (n_run,) of the items' cross-entropy at logits (n_run, b, n_class)."""
    y = batch.y
    items = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    return (items.view_as(y) * batch.weight).sum(dim=1)


def static_fields(head: Head) -> tuple[tuple[str, object], ...]:
    """Names and values of the fields that are not in `vary`: equal for all runs of a group."""
    names = [spec.name for spec in fields(head) if spec.name not in head.vary]
    return tuple((name, getattr(head, name)) for name in names)


def check(head: str, name: str, value: object, rule: Mapping[str, Any]) -> None:
    """Check a hyper-parameter against its `hyper` line, which is `rule`.

    Raises:
        HeadError: the value is not one of the choices, or out of range.
    """
    choices = rule.get("choices")
    if choices and value not in choices:
        listed = ", ".join(map(str, choices))
        raise HeadError(f"{name} of {head} is one of {listed}; got {value}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low = rule.get("low")
    high = rule.get("high")
    # "not a number" is refused too: every comparison with it is false
    high_enough = low is None or value >= low
    low_enough = high is None or value <= high
    if not (high_enough and low_enough):
        raise HeadError(f"{name} ({rule['meaning']}) is {_span(low, high)}; got {value:g}")


def _span(low: float | None, high: float | None) -> str:
    """The allowed range in words; at least one end is given."""
    if high is None:
        return f"at least {low:g}"
    if low is None:
        return f"at most {high:g}"
    return f"from {low:g} to {high:g}"


def default_of(spec: Field) -> Any:
    """The default of a dataclass field."""
    if spec.default is not MISSING:
        return spec.default
    if spec.default_factory is not MISSING:
        return spec.default_factory()
    raise ValueError(f"expected a field with a default, got {spec.name}")

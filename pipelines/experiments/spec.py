"""What a run is: everything that decides its numbers, and the head made from what was typed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any

from cliad.adapters import HEADS, name_of
from cliad.adapters.core.head import Head, default_of
from cliad.cache.file.read import FeatureCache
from cliad.errors import unknown
from cliad.pipelines.experiments.spec_error import SpecError as SpecError

# What is typed for a field that is true or false.
TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")
# How hyper-parameters are found: as given, on validation images, by folds of the support.
SELECTIONS = ("fixed", "val", "cv")
LARGEST_WHOLE_NUMBER = 2**31 - 1
# Behind the protocol of a transductive row: so it is a protocol of its own wherever rows are read.
TRANSDUCTIVE = " (transductive)"
CAUTION = (
    "transductive: all test images are used at once, without labels, as if the classes came in like"
    " number; not comparable with inductive accuracies"
)


@dataclass(frozen=True)
class TrainSpec:
    """Everything that decides a number, except what the cache holds (see its fingerprint).

    `given` names the fields of the head that the user gave. All others have their default, or are
    chosen where `select` says so: on validation ("val"), or by folds of the support ("cv").
    """

    dataset: str
    encoder: str
    prompts: str  # the name of the prompt set in the cache
    head: Head
    shots: int  # support images per class
    seed: int  # of the draw, the start of the parameters and the minibatches
    protocol: str = "coop"
    select: str = "fixed"  # of SELECTIONS
    given: frozenset[str] = frozenset()
    transductive: bool = False  # scored with the whole unlabelled test split at once

    @property
    def head_name(self) -> str:
        """The name of the head, as it is typed."""
        return name_of(self.head)

    @property
    def hyper(self) -> dict[str, object]:
        """The hyper-parameters that the user gave, by name in sorted order."""
        return {name: getattr(self.head, name) for name in sorted(self.given)}

    def json(self) -> dict:
        """The words of this spec in a result row."""
        words = {
            "dataset": self.dataset,
            "encoder": self.encoder,
            "prompts": self.prompts,
            "head": self.head_name,
            "shots": self.shots,
            "seed": self.seed,
            "protocol": self.protocol,
            "selected_on": self.select,
            "hyper": self.hyper,
        }
        # Only where it is true: keys and names of folders are made of these words.
        return {**words, "transductive": True} if self.transductive else words

    @property
    def row_protocol(self) -> str:
        """The protocol as rows and cards have it."""
        return self.protocol + TRANSDUCTIVE if self.transductive else self.protocol

    @property
    def key(self) -> str:
        """8 hex digits that name the spec."""
        # Sorted keys: names of run folders must not depend on the order of the fields above.
        text = json.dumps(self.json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def make_head(name: str, given: Mapping[str, object]) -> Head:
    """The head `name` with the hyper-parameters given; text is read as the type of its field.

    Raises:
        SpecError: unknown head, a hyper-parameter that it lacks, or a value of another type.
        HeadError: a value out of range.
    """
    if name not in HEADS:
        raise SpecError(unknown("head", name, HEADS))
    known = {spec.name: spec for spec in fields(HEADS[name])}
    for key in given:
        if not known:
            raise SpecError(f"{name} has no hyper-parameters; got {str(key)[:40]}")
        if key not in known:
            raise SpecError(unknown(f"hyper-parameter of {name}", key, known))
    return HEADS[name](**{key: _typed(value, known[key]) for key, value in given.items()})


def _typed(value: Any, spec: Field) -> object:
    """`value` as the type of its field."""
    default = default_of(spec)
    if value is None and default is None:
        return None
    kind = _kind(spec, default)
    if kind is bool:
        return true_or_false(value, spec.name)
    try:
        # int("1.5") is an error, int(1.5) is not: whole numbers are read from their text.
        number = kind(value) if kind is float else kind(str(value))
    except (TypeError, ValueError, OverflowError):
        expected = "a whole number" if kind is int else "a number"
        raise SpecError(f"{spec.name} is {expected}; got {str(value)[:40]}") from None
    # Infinity is no value: nothing that is multiplied by it stays a number.
    if kind is float and math.isinf(number):
        raise SpecError(f"{spec.name} is a finite number; got {str(value)[:40]}")
    if kind is int and abs(number) > LARGEST_WHOLE_NUMBER:
        raise SpecError(f"{spec.name} is at most {LARGEST_WHOLE_NUMBER:,}; got {str(value)[:40]}")
    return number


def _kind(spec: Field, default: object) -> type:
    """The type of a field's values: that of its default, or of its annotation."""
    if default is None:
        # Annotations are text here, such as "float | None".
        return {"int": int, "float": float}[str(spec.type).split(" |")[0]]
    return type(default)


def true_or_false(value: object, name: str) -> bool:
    """What was typed for `name`, one of TRUE_WORDS or FALSE_WORDS.

    Raises:
        SpecError: another word.
    """
    word = str(value).lower()
    if word not in TRUE_WORDS + FALSE_WORDS:
        raise SpecError(f"{name} is true or false; got {str(value)[:40]}")
    return word in TRUE_WORDS


def spec_of(
    cache: FeatureCache,
    head: Head,
    *,
    given: Collection[str] = (),
    shots: int,
    seed: int,
    protocol: str = "coop",
    select: str | None = None,
    transductive: bool = False,
) -> TrainSpec:
    """The spec of a run on a cache; `select` None is the head's published way.

    Raises:
        SpecError: an unknown way of selecting, or nothing left to select.
    """
    can_select = selects(head, given)
    name = name_of(head)
    if select is None:
        # A head whose published way is to search has nothing to search once all is given.
        searches = head.cross_fits or can_select
        select = head.select if searches else "fixed"
    if select not in SELECTIONS:
        raise SpecError(f"select is {', '.join(SELECTIONS)}; got {select}")
    if head.cross_fits and select != "cv":
        raise SpecError(f"{name} always works out of fold; use --select cv, or leave it away")
    if select == "val" and not can_select:
        raise SpecError(f"{name} has nothing left to select on validation; use --select fixed")
    return TrainSpec(
        dataset=cache.dataset,
        encoder=cache.encoder,
        prompts=cache.prompts,
        head=head,
        shots=shots,
        seed=seed,
        protocol=protocol,
        select=select,
        given=frozenset(given),
        transductive=transductive,
    )


def selects(head: Head, given: Collection[str]) -> bool:
    """Whether validation has something to choose: a field that is not given, or the best step."""
    free = set(head.searches()) - set(given)
    # Whether a plan keeps the best step does not depend on the number of items.
    return bool(free) or head.plan(1, 1).keep == "best"

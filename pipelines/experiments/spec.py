"""What a run is: everything that decides its numbers, and the head made from what was typed."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import Field, dataclass, fields

from cliad.adapters import HEADS
from cliad.adapters.core.head import Head, default_of
from cliad.cache.file.read import FeatureCache


class SpecError(ValueError):
    """A run that cannot be what is asked; the message says what is known and what to do."""


@dataclass(frozen=True)
class TrainSpec:
    """Everything that decides a number, but for the cache's contents, which the fingerprint stands for.

    `hyper`: the head's hyper-parameters that the user gave, as sorted (name, value) pairs; all others have their default, or
    are chosen on validation where `select` is "val".
    """

    dataset: str
    encoder: str
    prompts: str
    head: str
    shots: int
    seed: int
    protocol: str = "coop"
    select: str = "fixed"
    hyper: tuple[tuple[str, object], ...] = ()

    def json(self) -> dict:
        words = {spec.name: getattr(self, spec.name) for spec in fields(self)} | {"hyper": dict(self.hyper)}
        return {"selected_on" if name == "select" else name: value for name, value in words.items()}

    @property
    def key(self) -> str:
        """8 hex digits that name the spec."""
        return hashlib.sha256(json.dumps(self.json(), sort_keys=True).encode()).hexdigest()[:8]


def nearest(what: str, name: str, known: Collection[str]) -> str:
    """One line for an unknown name: what there is, and which was probably meant."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"there is no {what} '{name}'{f', did you mean {close[0]}?' if close else ''}; known: {', '.join(known)}"


def make_head(name: str, given: Mapping[str, object]) -> Head:
    """The head `name` with the hyper-parameters given, text values read as the field's type.

    Raises:
        SpecError: unknown head, a hyper-parameter that it lacks, or a value of another type.
        HeadError: a value out of range.
    """
    if name not in HEADS:
        raise SpecError(nearest("head", name, HEADS))
    known = {spec.name: spec for spec in fields(HEADS[name])}
    for key in given:
        if key not in known:
            raise SpecError(nearest(f"hyper-parameter of {name}", key, known) if known else f"{name} has no hyper-parameters; got {key}")
    return HEADS[name](**{key: _typed(key, value, known[key]) for key, value in given.items()})


def _typed(name: str, value, spec: Field):
    """`value` as the type of the field; a field whose default is None is a number of the kind that it is annotated with."""
    default = default_of(spec)
    if value is None and default is None:
        return None
    if default is None:
        default = {"int": 0, "float": 0.0}[str(spec.type).split(" |")[0]]
    if isinstance(default, bool):
        if str(value).lower() in ("true", "yes", "on", "1", "false", "no", "off", "0"):
            return str(value).lower() in ("true", "yes", "on", "1")
        raise SpecError(f"{name} is true or false; got {value}")
    try:
        return type(default)(str(value)) if isinstance(default, (str, int)) else float(value)
    except (TypeError, ValueError):
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise SpecError(f"{name} is {kind}; got {value}") from None


def spec_of(
    cache: FeatureCache, head: str, made: Head, *, shots: int, seed: int, protocol: str, select: str | None, given: Collection[str]
) -> TrainSpec:
    """The spec of a run; `select` None is the head's published way."""
    free = selects(made, given)
    select = select or ("val" if made.select == "val" and free else "fixed")
    if select not in ("fixed", "val"):
        raise SpecError(f"select is fixed or val; got {select}")
    if select == "val" and not free:
        raise SpecError(f"{head} has nothing left to select on validation; use --select fixed")
    pairs = tuple(sorted((name, getattr(made, name)) for name in given))
    return TrainSpec(cache.dataset, cache.encoder, cache.prompts, head, shots, seed, protocol, select, pairs)


def selects(head: Head, given: Collection[str]) -> bool:
    """Whether validation has something to choose: a field of its space that is not given, or the best moment of training."""
    return bool(set(head.searches()) - set(given)) or head.plan(1, 1).keep == "best"

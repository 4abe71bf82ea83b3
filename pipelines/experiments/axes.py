"""The words of a grid: `0:1:0.2` and `1,2,4` on the command line or in a TOML file become lists of values.

A TOML file has the words of the command line. A word's value is what one would type, or a list:

    head = ["clip-adapter", "tip-adapter-f"]
    alpha = "0:1:0.2"
    shots = [1, 2, 4, 8, 16]
    [set]                       # any other hyper-parameter
    weight_decay = [0, 0.01]
    [linear-probe]              # the same for one head alone
    C = "0.1,1,10"
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from pathlib import Path

from cliad.adapters import HEADS
from cliad.pipelines.experiments.spec import nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SPEC_WORDS = ("dataset", "encoder", "prompts", "head", "shots", "seeds", "protocol", "select", "test")
OTHER_WORDS = ("out", "device")
MOST_VALUES = 10_000  # of one range
NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"


class AxisError(ValueError):
    """A grid that cannot be what is asked; the message names the word and says what to do."""


@dataclass(frozen=True)
class Axes:
    """What a grid varies: values as text, by word.

    spec: words of SPEC_WORDS; hyper: hyper-parameters for every head that has them; own: the same for one head, by its name;
    other: the words that are no axes.
    """

    spec: Mapping[str, Sequence[str]] = field(default_factory=dict)
    hyper: Mapping[str, Sequence[str]] = field(default_factory=dict)
    own: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    other: Mapping[str, str] = field(default_factory=dict)

    def of(self, head: str) -> dict[str, Sequence[str]]:
        """The hyper-parameter axes that a head has, and their values."""
        has = {spec.name for spec in fields(HEADS[head])}
        return {name: values for name, values in self.hyper.items() if name in has} | dict(self.own.get(head, {}))

    def __or__(self, over: Axes) -> Axes:
        """These axes, where `over` says nothing else."""
        return Axes(*({**getattr(self, spec.name), **getattr(over, spec.name)} for spec in fields(Axes)))


def values(word: str, given) -> list[str]:
    """The values of a word: a list, a single value, or text such as `1,2,4`, `0:1:0.2` (with the end, in decimal) or `0:0.4:0.1,1`.

    >>> values("alpha", "0:1:0.25")
    ['0', '0.25', '0.5', '0.75', '1']
    """
    parts = list(given) if isinstance(given, (list, tuple)) else str(given).split(",")
    if not parts or any(isinstance(part, (dict, list)) or str(part).strip() == "" for part in parts):
        raise AxisError(f"{word} is a value, a list such as 1,2,4 or a range such as 0:1:0.2; got {given!r}")
    found = [value for part in parts for value in _span(word, str(part).strip())]
    return list(dict.fromkeys(found))


def _span(word: str, part: str) -> list[str]:
    """The values of one range; what is no range stands for itself (names of encoders may have colons too)."""
    if re.fullmatch(f"{NUMBER}:{NUMBER}", part):
        raise AxisError(f"{word}: a range is start:end:step, such as 0:1:0.2; got {part}")
    match = re.fullmatch(f"{NUMBER}:{NUMBER}:{NUMBER}", part)
    if not match:
        return [part]
    start, end, step = map(Decimal, match.groups())
    if step == 0 or (end - start) / step < 0:
        raise AxisError(f"{word}: the step of {part} never leads from {start} to {end}; write start:end:step")
    count = int((end - start) / step) + 1
    if count > MOST_VALUES:
        raise AxisError(f"{word}: {part} has {count} values, at most {MOST_VALUES} are allowed")
    return [_plain(start + i * step) for i in range(count)]


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def axes_of(words: Mapping[str, object], where: str = "") -> Axes:
    """Axes from words and what was typed for them; words without a value are left out.

    Raises:
        AxisError: a word that nobody knows, or a value that is none.
    """
    known = [*SPEC_WORDS, *hyper_names(), *OTHER_WORDS, "set", *HEADS]
    spec, hyper, own, other = {}, {}, {}, {}
    for word, given in words.items():
        if given is None:
            continue
        if word == "seed":
            word = "seeds"
        if word not in known:
            raise AxisError(where + nearest("word", word, known))
        if word == "set" or word in HEADS:
            names = _table(word, given, where, hyper_names([word]) if word in HEADS else hyper_names())
            own |= {word: names} if word in HEADS else {}
            hyper |= {} if word in HEADS else names
        elif word in OTHER_WORDS:
            other[word] = str(given)
        else:
            (spec if word in SPEC_WORDS else hyper)[word] = values(word, given)
    return Axes(spec, hyper, own, other)


def _table(word: str, given, where: str, known: Collection[str]) -> dict[str, list[str]]:
    if not isinstance(given, Mapping):
        raise AxisError(f"{where}{word} is a table: [{word}], then a line name = values for each; got {given!r}")
    for name in given:
        if name not in known:
            raise AxisError(where + nearest(f"hyper-parameter{f' of {word}' if word in HEADS else ''}", name, known))
    return {name: values(name, of) for name, of in given.items()}


def hyper_names(heads: Sequence[str] = ()) -> list[str]:
    """The hyper-parameters of some heads, or of all."""
    return list(dict.fromkeys(spec.name for head in heads or HEADS for spec in fields(HEADS[head])))


def read_config(path: Path) -> Axes:
    """The axes of a TOML file.

    Raises:
        AxisError: it cannot be read, is no TOML, or has a wrong word.
    """
    try:
        words = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise AxisError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise AxisError(f"{path} is no TOML: {error}") from None
    return axes_of(words, where=f"{path}: ")

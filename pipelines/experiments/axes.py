"""The words of a grid: `0:1:0.2` and `1,2,4` become lists of values.

They come from the command line or from a TOML file, which has the same words. A word's value is
what one would type, or a list:

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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from pathlib import Path

from cliad.adapters import HEADS
from cliad.cache.documents import read_toml
from cliad.errors import CliadError, unknown

# The words that say which runs there are; all others but OTHER_WORDS are hyper-parameters.
SPEC_WORDS = (
    "dataset",
    "encoder",
    "prompts",
    "head",
    "shots",
    "seeds",
    "protocol",
    "select",
    "test",
)
OTHER_WORDS = ("out", "device")
MOST_VALUES = 10_000  # of one range
# A number as it is typed: 1, 0.5, .5, 1e-3.
NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
Values = dict[str, list[str]]  # what one varies: the values of each word, as text


class AxisError(CliadError):
    """A grid that cannot be what was asked for; the message names the word and says what to do."""


@dataclass(frozen=True)
class Axes:
    """What a grid varies: values as text, by word.

    spec: words of SPEC_WORDS; hyper: hyper-parameters for every head that has them; own: the same
    for one head, by its name; other: the words that are not axes.
    """

    spec: Mapping[str, list[str]] = field(default_factory=dict)
    hyper: Mapping[str, list[str]] = field(default_factory=dict)
    own: Mapping[str, Values] = field(default_factory=dict)
    other: Mapping[str, str] = field(default_factory=dict)

    def of_head(self, head: str) -> Values:
        """The hyper-parameter axes that a head has, and their values."""
        known = {spec.name for spec in fields(HEADS[head])}
        # A head drops the axes that it lacks; a table of its own wins over the shared one.
        shared = {name: values for name, values in self.hyper.items() if name in known}
        return {**shared, **self.own.get(head, {})}

    def __or__(self, over: Axes) -> Axes:
        """These axes, except where `over` has the word too."""
        return Axes(
            spec={**self.spec, **over.spec},
            hyper={**self.hyper, **over.hyper},
            own={**self.own, **over.own},
            other={**self.other, **over.other},
        )


def values(word: str, given: object) -> list[str]:
    """The values of a word: a list, a single value, or text.

    Text is `1,2,4`, `0:1:0.2` (with the end, in decimal) or `0:0.4:0.1,1`.

    >>> values("alpha", "0:1:0.25")
    ['0', '0.25', '0.5', '0.75', '1']
    """
    parts = list(given) if isinstance(given, list | tuple) else str(given).split(",")
    if not parts or not all(_is_value(part) for part in parts):
        raise AxisError(
            f"{word} is a value, a list such as 1,2,4 or a range such as 0:1:0.2; got {given!r}"
        )
    found = []
    for part in parts:
        found += _range(word, str(part).strip())
    # `0:1:0.5,1` names 1 twice; it is one value, in its first place.
    return list(dict.fromkeys(found))


def _is_value(part: object) -> bool:
    return not isinstance(part, dict | list) and str(part).strip() != ""


def _range(word: str, part: str) -> list[str]:
    """The values of one range; anything else stands for itself (encoders may have colons too)."""
    if re.fullmatch(f"{NUMBER}:{NUMBER}", part):
        raise AxisError(f"{word}: a range is start:end:step, such as 0:1:0.2; got {part}")
    match = re.fullmatch(f"{NUMBER}:{NUMBER}:{NUMBER}", part)
    if not match:
        return [part]
    start, end, step = (Decimal(number) for number in match.groups())
    if step == 0 or (end - start) / step < 0:
        raise AxisError(
            f"{word}: step {step} does not go from {start} to {end}; write start:end:step"
        )
    # In decimal, 0:1:0.2 ends with 1; in binary floating point it might end with 0.8.
    count = int((end - start) / step) + 1
    if count > MOST_VALUES:
        raise AxisError(f"{word}: {part} has {count} values, at most {MOST_VALUES} are allowed")
    return [_decimal_text(start + i * step) for i in range(count)]


def _decimal_text(number: Decimal) -> str:
    """The number without exponent and trailing zeros: 0.20 is `0.2`, as it would be typed."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def axes_of(words: Mapping[str, object]) -> Axes:
    """Axes from words and what was typed for them; words without a value are left out.

    Args:
        words: word -> what was typed, or a list; "set" and the names of heads hold tables.

    Raises:
        AxisError: an unknown word, or something that is not a value.
    """
    known = [*SPEC_WORDS, *hyper_names(), *OTHER_WORDS, "set", *HEADS]
    spec: Values = {}
    hyper: Values = {}
    own: dict[str, Values] = {}
    other: dict[str, str] = {}
    for typed, given in words.items():
        # `cliad train` has --seed, so that is what people write in a file.
        word = "seeds" if typed == "seed" else typed
        if given is None:
            continue
        if word not in known:
            raise AxisError(unknown("word", word, known))
        if word == "set":
            hyper.update(_table(word, given, hyper_names()))
        elif word in HEADS:
            own[word] = _table(word, given, hyper_names([word]))
        elif word in OTHER_WORDS:
            other[word] = str(given)
        elif word in SPEC_WORDS:
            spec[word] = values(word, given)
        else:
            hyper[word] = values(word, given)
    return Axes(spec, hyper, own, other)


def _table(word: str, given: object, known: Collection[str]) -> Values:
    """The values of a table of hyper-parameters: `[set]`, or that of a head."""
    if not isinstance(given, Mapping):
        raise AxisError(
            f"{word} is a table: [{word}], then a line name = values for each; got {given!r}"
        )
    what = f"hyper-parameter of {word}" if word in HEADS else "hyper-parameter"
    for name in given:
        if name not in known:
            raise AxisError(unknown(what, name, known))
    return {name: values(name, typed) for name, typed in given.items()}


def hyper_names(heads: Sequence[str] = ()) -> list[str]:
    """The hyper-parameters of some heads, or of all; each once."""
    names = []
    for head in heads or HEADS:
        names += [spec.name for spec in fields(HEADS[head])]
    return list(dict.fromkeys(names))


def read_config(path: Path) -> Axes:
    """The axes of a TOML file.

    Raises:
        AxisError: it cannot be read, is not valid TOML, or has a wrong word.
    """
    words = read_toml(path, AxisError)
    try:
        return axes_of(words)
    except AxisError as error:
        raise AxisError(f"{path}: {error}") from None

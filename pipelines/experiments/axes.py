"""The words of a grid: `0:1:0.2` and `1,2,4` become lists of values.

They come from the command line or from a TOML file, which has the same words. A word's value is
what one would type, or a list:

    head = ["clip-adapter", "tip-adapter-f"]
    alpha = "0:1:0.2"
    shots = [1, 2, 4, 8, 16]
    [set]                       # any other hyper-parameter
    weight_decay = [0, 0.01]
    [linear-probe]              # the same for one head alone; --set linear-probe.C=0.1,1,10
    C = "0.1,1,10"

A hyper-parameter of one name may be another thing in another head: see `Axes.shared_by`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

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
    "transductive",
    "test",
)
OTHER_WORDS = ("out", "device")
DEFAULT_HEADS = ("clip-adapter",)
# The head by which the command line explains an option. Where another head means something else by
# the same name, the option is not for it.
EXPLAINED_BY = {"alpha": "clip-adapter", "beta": "clip-adapter"}
MOST_VALUES = 10_000  # of one range
LONGEST_VALUE = 1_000  # characters
LARGEST_EXPONENT = 300  # of a number in a range: nothing larger is a floating-point number
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

    @property
    def heads(self) -> Sequence[str]:
        """The heads of the grid, as they were named."""
        return self.spec.get("head", DEFAULT_HEADS)

    def of_head(self, head: str) -> Values:
        """The hyper-parameter axes that a head takes, and their values."""
        beside = self.heads if head in self.heads else [head]
        shared = {
            name: values
            for name, values in self.hyper.items()
            if head in self.shared_by(name, beside)
        }
        # A table of its own wins over the shared one.
        return {**shared, **self.own.get(head, {})}

    def shared_by(self, name: str, heads: Sequence[str] | None = None) -> list[str]:
        """The heads that take the shared axis `name`, of those of the grid or of `heads`.

        They have the hyper-parameter and mean one thing by it: that of the head by which the
        command line explains the option, if it is there. Others take their own values only.

        Raises:
            AxisError: they mean several things, and none of them is the one that is explained.
        """
        having = [
            head
            for head in dict.fromkeys(self.heads if heads is None else heads)
            if name in hyper_names([head]) and name not in self.own.get(head, {})
        ]
        if not having:
            return []
        first = EXPLAINED_BY.get(name, having[0])
        if first not in having:
            first = having[0]
        same = [head for head in having if _meaning(head, name) == _meaning(first, name)]
        if len(same) < len(having) and first != EXPLAINED_BY.get(name):
            ways = " and ".join(f"--set {head}.{name}=LIST" for head in having)
            raise AxisError(
                f"{name} is not the same thing in {', '.join(having)}; give each its own values:"
                f" {ways}"
            )
        return same

    def notes(self) -> list[str]:
        """What is not used as it was typed, a clause each, for the line that says the plan."""
        notes = []
        for name in self.hyper:
            shared = self.shared_by(name)
            for head in dict.fromkeys(self.heads):
                if head in shared or name in self.own.get(head, {}):
                    continue
                if name in hyper_names([head]):
                    notes.append(
                        f"{name} is not for {head} (there it is {_told(head, name)};"
                        f" --set {head}.{name}=LIST varies it)"
                    )
                else:
                    notes.append(f"{head} has no {name}")
        notes += [
            f"the values for {head} are not used, as it is not one of the heads"
            for head in self.own
            if head not in self.heads
        ]
        return notes

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
            f"{word} is a value, a list such as 1,2,4 or a range such as 0:1:0.2;"
            f" got {repr(given)[:80]}"
        )
    found = []
    for part in parts:
        found += _range(word, str(part).strip())
    # `0:1:0.5,1` names 1 twice; it is one value, in its first place.
    return list(dict.fromkeys(found))


def _is_value(part: object) -> bool:
    if isinstance(part, dict | list):
        return False
    return 0 < len(str(part).strip()) <= LONGEST_VALUE


def _range(word: str, part: str) -> list[str]:
    """The values of one range; anything else stands for itself (encoders may have colons too)."""
    if re.fullmatch(f"{NUMBER}:{NUMBER}", part):
        raise AxisError(f"{word}: a range is start:end:step, such as 0:1:0.2; got {part}")
    match = re.fullmatch(f"{NUMBER}:{NUMBER}:{NUMBER}", part)
    if not match:
        return [part]
    start, end, step = (_number(word, number) for number in match.groups())
    if step == 0 or (end - start) / step < 0:
        raise AxisError(
            f"{word}: step {step} does not go from {start} to {end}; write start:end:step"
        )
    # Compared before it is counted: of the smallest steps there are more than memory can number.
    steps = (end - start) / step
    if steps >= MOST_VALUES:
        raise AxisError(
            f"{word}: {part} has {_count_text(steps)} values, at most {MOST_VALUES} are allowed"
        )
    # In decimal, 0:1:0.2 ends with 1; in binary floating point it might end with 0.8.
    return [_decimal_text(start + i * step) for i in range(int(steps) + 1)]


def _number(word: str, text: str) -> Decimal:
    """The number that a range names.

    Raises:
        AxisError: it is larger, or nearer to zero, than a floating-point number can be.
    """
    with localcontext() as context:
        # Without traps, 1e9999999999999999999 is infinite, and no error.
        context.clear_traps()
        number = Decimal(text)
    if not number.is_finite() or abs(number.adjusted()) > LARGEST_EXPONENT:
        raise AxisError(f"{word}: {text[:40]} is beyond all floating-point numbers")
    return number


def _count_text(steps: Decimal) -> str:
    """The number of values of a range, as `10001`, or as 1E+12 where that is long."""
    return str(int(steps) + 1) if steps < 10**12 else f"{steps:.0E}"


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
            shared, of_heads = _settings(given)
            hyper.update(shared)
            for head, table in of_heads.items():
                own[head] = {**own.get(head, {}), **table}
        elif word in HEADS:
            own[word] = {**own.get(word, {}), **_table(word, given, hyper_names([word]))}
        elif word in OTHER_WORDS:
            other[word] = _text(word, given)
        elif word in spec:
            raise AxisError("seed and seeds are one word; give it once")
        elif word in SPEC_WORDS:
            spec[word] = values(word, given)
        else:
            hyper[word] = values(word, given)
    return Axes(spec, hyper, own, other)


def _text(word: str, given: object) -> str:
    """What was typed for a word that is no axis: text."""
    if not isinstance(given, str | Path) or not str(given):
        raise AxisError(f'{word} is a text, such as {word} = "name"; got {repr(given)[:80]}')
    return str(given)


def _settings(given: object) -> tuple[Values, dict[str, Values]]:
    """The table `set`: what is for all heads, and what `head.name` gives one head alone."""
    if not isinstance(given, Mapping):
        return _table("set", given, ()), {}
    of_all: dict[str, object] = {}
    of_heads: dict[str, dict[str, object]] = {}
    for typed, value in given.items():
        head, dot, name = str(typed).rpartition(".")
        if not dot:
            of_all[typed] = value
            continue
        if head not in HEADS:
            raise AxisError(unknown("head", head, HEADS))
        of_heads.setdefault(head, {})[name] = value
    own = {head: _table(head, table, hyper_names([head])) for head, table in of_heads.items()}
    return _table("set", of_all, hyper_names()), own


def _table(word: str, given: object, known: Collection[str]) -> Values:
    """The values of a table of hyper-parameters: `[set]`, or that of a head."""
    if not isinstance(given, Mapping):
        raise AxisError(
            f"{word} is a table: [{word}], then a line name = values for each;"
            f" got {repr(given)[:80]}"
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


def _rule(head: str, name: str) -> Mapping[str, Any]:
    """What the head's own `hyper` line says of one of its hyper-parameters."""
    (spec,) = (spec for spec in fields(HEADS[head]) if spec.name == name)
    return spec.metadata


def _meaning(head: str, name: str) -> Hashable:
    """What has to be equal for one list of values to serve two heads."""
    rule = _rule(head, name)
    # Rates, decays and numbers of steps are the same thing in whatever words a head has for them,
    # so long as both take numbers, or the same words.
    if name not in EXPLAINED_BY:
        return rule["choices"]
    # Behind a semicolon stand remarks on single values.
    return rule["meaning"].partition(";")[0], rule["low"], rule["high"], rule["choices"]


def _told(head: str, name: str) -> str:
    """`weight of the support images' labels, 0 to 1000`."""
    rule = _rule(head, name)
    text = rule["meaning"].partition(";")[0]
    if rule["low"] is not None and rule["high"] is not None:
        text += f", {rule['low']:g} to {rule['high']:g}"
    return text


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

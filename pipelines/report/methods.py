"""A method: what one line of a table is about, and how its hyper-parameters are shown."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from cliad.adapters import HEADS
from cliad.adapters.core.head import Head

FAR = 10.0  # decades: farther from a default than any value that is tried
DECADE = 10
NATURAL_WEIGHT = 3.0  # about (n - K) / dim for 16 images of each of 100 classes in 512 dimensions
MANY_SHOTS = 16  # where recipes that depend on the number of shots end
MANY_CLASSES = 100


@dataclass(frozen=True)
class Method:
    """A head with one setting of its hyper-parameters and one way of selecting.

    setting: name and value of each hyper-parameter that varies among the head's rows.
    """

    head: str
    selected_on: str
    setting: tuple[tuple[str, object], ...]

    @property
    def label(self) -> str:
        """The method's name in tables and legends."""
        parts = [f"{name} {show(value)}" for name, value in self.setting]
        return ", ".join([self.head, *parts])

    @property
    def values(self) -> dict[str, object]:
        """The setting by name."""
        return dict(self.setting)

    @property
    def distance(self) -> float:
        """How far the setting is from the head's own defaults, in values: 0 is all of them.

        Each hyper-parameter counts on its own scale, see `distance_on_scale`.
        """
        if self.head not in HEADS:
            return float(len(self.setting))
        return sum(distance_on_scale(self.head, name, value) for name, value in self.setting)

    def sort_key(self) -> tuple:
        """The order of lines: heads as in HEADS, unknown ones last, then by setting."""
        # The order of HEADS is that of families: a reader finds related heads together.
        order = len(HEADS)
        if self.head in HEADS:
            order = list(HEADS).index(self.head)
        sizes = [(name, size_of(value)) for name, value in self.setting]
        return order, self.head, sizes, self.selected_on


@functools.lru_cache(maxsize=None, typed=True)  # typed: to Python, 1 and True are one key
def distance_on_scale(head: str, name: str, value: object) -> float:
    """How far a value is from the head's default: in decades, or in shares of the scale's length.

    1 for a word that is not the default, such as another branch; FAR where it cannot be said.
    """
    rules = {spec.name: spec.metadata for spec in fields(HEADS[head])}
    if name not in rules:
        return FAR
    # An instance, as a preset fills in what is not given.
    untouched = HEADS[head]()
    default = _in_numbers(untouched, name)
    if value in (default, getattr(untouched, name)):
        return 0.0
    # Sizes alone can be subtracted; the same kind of size: a number and a share D/4 cannot.
    kind, size, _ = size_of(value)
    default_kind, default_size, _ = size_of(default)
    words = 2
    if kind == words or default_kind == words or isinstance(value, bool):
        return 1.0
    if kind != default_kind:
        return 1.0
    length = _linear_length(rules[name], HEADS[head].space.get(name, ()))
    if length is not None:
        return abs(size - default_size) / length
    # No number of decades leads to 0.
    if size == 0 or default_size == 0 or (size < 0) != (default_size < 0):
        return FAR
    return abs(math.log10(abs(size)) - math.log10(abs(default_size)))


def _in_numbers(untouched: Head, name: str) -> object:
    """The value that a head has where nothing is typed."""
    default = getattr(untouched, name)
    # None or 0 passes stand for a number that depends on the images: here, that of many.
    if name == "epochs" and not default:
        plan = untouched.plan(MANY_SHOTS * MANY_CLASSES, MANY_SHOTS)
        return plan.steps // plan.per_epoch
    # So does gda's natural weight.
    if default is None and untouched.space.get(name):
        return NATURAL_WEIGHT
    return default


def _linear_length(rule: Mapping, candidates: Sequence) -> float | None:
    """The length of a scale on which differences count; None for one on which ratios do.

    Shares from 0 to 1 are linear. Of other ranges, the candidates of the head's own search tell:
    where they lead over more than a decade, or where there is no upper end (rates, penalties,
    counts), ratios count.
    """
    low = rule["low"]
    high = rule["high"]
    if low is None or high is None:
        return None
    if high - low <= 1:
        return float(high - low)
    sizes = [value for value in candidates if value > 0]
    if not sizes or max(sizes) > DECADE * min(sizes):
        return None
    return float(max(sizes) - min(0.0, *candidates))


ZERO_SHOT = Method("zero-shot", "fixed", ())


def setting_of(row: Mapping) -> dict[str, object]:
    """The hyper-parameters of a row that were set rather than found.

    That is all of them, or where images chose, those that the user gave.
    """
    if row["selected_on"] != "fixed":
        return dict(row["hyper"])
    return dict(row.get("found") or row["hyper"])


def show(value: object) -> str:
    """A hyper-parameter's value as text; numbers without needless digits."""
    # True and False are ints, too.
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        short = f"{value:g}"
        # Six digits are not all that a value may have.
        return short if float(short) == value else str(value)
    return str(value)


def show_shots(shots: int) -> str:
    """`1 shot`, `4 shots`."""
    return "1 shot" if shots == 1 else f"{shots} shots"


def size_of(value: object) -> tuple[int, float, str]:
    """A key that sorts values: numbers by size, then shares of a width, then all else by name.

    A share of a width is written D, D/2, D/4; the smaller share comes first.
    """
    if isinstance(value, (int, float)):
        return 0, float(value), ""
    text = str(value)
    width, _, divisor = text.partition("/")
    if width == "D" and (not divisor or _is_digits(divisor)):
        # The larger the divisor, the smaller the share.
        return 1, -float(divisor or 1), ""
    # A number that was typed as text.
    if _is_digits(text):
        return 0, float(text), ""
    return 2, 0.0, text


def _is_digits(text: str) -> bool:
    # Beside 0 to 9, Python counts figures such as ² as digits, and cannot read them as a number.
    return text.isascii() and text.isdigit()

"""A method: what one line of a table is about, and how its hyper-parameters are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cliad.adapters import HEADS


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
    def distance(self) -> int:
        """How many hyper-parameters are not the head's own default."""
        default = None
        if self.head in HEADS:
            # An instance, as a preset fills in what is not given.
            default = HEADS[self.head]()
        return sum(getattr(default, name, None) != value for name, value in self.setting)

    def sort_key(self) -> tuple:
        """The order of lines: heads as in HEADS, unknown ones last, then by setting."""
        # The order of HEADS is that of families: a reader finds related heads together.
        order = len(HEADS)
        if self.head in HEADS:
            order = list(HEADS).index(self.head)
        sizes = [(name, size_of(value)) for name, value in self.setting]
        return order, self.head, sizes, self.selected_on


ZERO_SHOT = Method("zero-shot", "fixed", ())


def setting_of(row: Mapping) -> dict[str, object]:
    """The hyper-parameters of a row that were set rather than found.

    That is all of them, or where validation chose, those that the user gave.
    """
    if row["selected_on"] == "val":
        return dict(row["hyper"])
    return dict(row.get("found") or row["hyper"])


def show(value: object) -> str:
    """A hyper-parameter's value as text; numbers without needless digits."""
    # True and False are ints, too.
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:g}"
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
    if width == "D" and (not divisor or divisor.isdigit()):
        # The larger the divisor, the smaller the share.
        return 1, -float(divisor or 1), ""
    # A number that was typed as text.
    if text.isdigit():
        return 0, float(text), ""
    return 2, 0.0, text

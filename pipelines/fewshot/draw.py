"""Few-shot protocols: which images are support and which are validation. Plain Python on labels, no tensors, no cache."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


class DrawError(ValueError):
    """A protocol cannot draw what is asked; the message names the class and what to do."""


@dataclass(frozen=True)
class Draw:
    """Rows of the training split (support) and of `val_split` (validation), in the order drawn."""

    train: list[int]
    val: list[int]
    val_split: str  # "val", or "train" where there is no validation split
    val_per_class: dict[int, int] = field(repr=False)


@dataclass(frozen=True)
class Protocol:
    """`val_shots(shots)` validation images per class, None: all there are; `val_first`: drawn before the support."""

    meaning: str
    val_shots: Callable[[int], int | None]
    val_first: bool = False


PROTOCOLS = {
    "coop": Protocol("CoOp: the support, then min(shots, 4) validation images per class", lambda shots: min(shots, 4)),
    "tip": Protocol("Tip-Adapter: CoOp's support, the whole validation split", lambda shots: None),
    "lp++": Protocol("LP++: CoOp's support, then as many validation images per class as shots", lambda shots: shots),
    "clip-lora": Protocol(
        "CLIP-LoRA: min(shots, 4) validation images per class first, then the support", lambda shots: min(shots, 4), True
    ),
}


def check_asked(shots: int, protocol: str) -> None:
    """DrawError where there is no such protocol or number of shots, whatever the data."""
    if protocol not in PROTOCOLS:
        raise DrawError(f"there is no protocol '{protocol}'; choose one of {', '.join(PROTOCOLS)}")
    if shots < 1:
        raise DrawError(f"shots is the number of images per class, at least 1; got {shots}")


def draw(
    train: Sequence[int], val: Sequence[int] | None, *, shots: int, seed: int, protocol: str = "coop", names: Sequence[str] = ()
) -> Draw:
    """Draw a few-shot episode from the labels of the training and the validation split, both in the split file's order.

    One `random.Random(seed)`, classes in order of first appearance, items in list order. Without a validation split its images
    are training images that the support does not use.

    Args:
        train, val: labels; val is None (or empty) where there is no such split.
        shots: support images per class.
        names: class names, for messages.
    Raises:
        DrawError: unknown protocol, or a class with too few training images.
    """
    check_asked(shots, protocol)
    rule, generator = PROTOCOLS[protocol], random.Random(seed)
    support_of = lambda taken: _support(train, taken, shots, generator, names)
    val_of = lambda taken: _validation(val if val else train, taken if not val else set(), rule.val_shots(shots), generator)
    if rule.val_first:
        chosen = val_of(set())
        support = support_of(set() if val else set(chosen))
    else:
        support = support_of(set())
        chosen = val_of(set(support))
    labels = val if val else train
    count = Counter(labels[row] for row in chosen)
    per_class = {c: count[c] for c in sorted(set(train))}
    return Draw(support, chosen, "val" if val else "train", per_class)


def rows_by_class(labels: Sequence[int], taken: set[int]) -> dict[int, list[int]]:
    """Rows per class, classes in order of first appearance, rows already taken left out."""
    rows: dict[int, list[int]] = {label: [] for label in labels}
    for row, label in enumerate(labels):
        if row not in taken:
            rows[label].append(row)
    return rows


def _support(labels: Sequence[int], taken: set[int], shots: int, generator: random.Random, names: Sequence[str]) -> list[int]:
    by_class = rows_by_class(labels, taken)
    for label, rows in by_class.items():
        if len(rows) < shots:
            name = f"'{names[label]}'" if label < len(names) else label
            least = min(map(len, by_class.values()))
            raise DrawError(
                f"class {name} has {len(rows)} training images, {shots} shots are asked; {least} shots is the most for all classes"
            )
    return [row for rows in by_class.values() for row in generator.sample(rows, shots)]


def _validation(labels: Sequence[int], taken: set[int], shots: int | None, generator: random.Random) -> list[int]:
    chosen = []
    for rows in rows_by_class(labels, taken).values():
        chosen += rows if shots is None or len(rows) < shots else generator.sample(rows, shots)
    return chosen


def index_hash(drawn: Draw, train: tuple[Sequence[int], Sequence[str]], val: tuple[Sequence[int], Sequence[str]] | None) -> str:
    """16 hex digits of the sha256 of the sorted lines `split:label:path`, support and validation; train, val: (labels, paths)."""
    sources = {"train": train, "val": val}
    lines = []
    for role, split, rows in (("train", "train", drawn.train), ("val", drawn.val_split, drawn.val)):
        labels, paths = sources[split]
        lines += [f"{role}:{labels[row]}:{paths[row] or row}" for row in rows]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]

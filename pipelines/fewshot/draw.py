"""Few-shot protocols: which images are support and which are validation.

Plain Python on labels: no tensors, no cache.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cliad.errors import CliadError, unknown

LARGEST_SEED = 2**63 - 1


class DrawError(CliadError):
    """A protocol cannot draw what was asked for; the message names the class and what to do."""


@dataclass(frozen=True)
class DrawRequest:
    """Which few-shot draw: `shots` images per class, the seed, the protocol's name."""

    shots: int
    seed: int
    protocol: str = "coop"


@dataclass(frozen=True)
class Draw:
    """Rows of the training split (support) and of `val_split` (validation), in the order drawn.

    `val_split` is "val", or "train" where there is no validation split.
    """

    train: list[int]
    val: list[int]
    val_split: str
    val_per_class: dict[int, int] = field(repr=False)  # by label


@dataclass(frozen=True)
class Protocol:
    """How many validation images a protocol draws per class, and when.

    most_val: an upper limit beside `shots`; None: no limit but `shots`.
    whole_val: the validation images are all that there are.
    val_first: validation is drawn before the support.
    """

    meaning: str
    most_val: int | None = None
    whole_val: bool = False
    val_first: bool = False

    def val_shots(self, shots: int) -> int | None:
        """Validation images per class; None: all that there are."""
        if self.whole_val:
            return None
        if self.most_val is None:
            return shots
        return min(shots, self.most_val)


PROTOCOLS = {
    "coop": Protocol(
        "CoOp: the support, then min(shots, 4) validation images per class",
        most_val=4,
    ),
    "tip": Protocol(
        "Tip-Adapter: CoOp's support, the whole validation split",
        whole_val=True,
    ),
    "lp++": Protocol(
        "LP++: CoOp's support, then as many validation images per class as shots",
    ),
    "clip-lora": Protocol(
        "CLIP-LoRA: min(shots, 4) validation images per class first, then the support",
        most_val=4,
        val_first=True,
    ),
}


def check_request(shots: int, protocol: str, seed: int = 1) -> None:
    """DrawError where there is no such protocol, number of shots or seed, whatever the data."""
    if protocol not in PROTOCOLS:
        raise DrawError(unknown("protocol", protocol, PROTOCOLS))
    if shots < 1:
        raise DrawError(f"shots is the number of images per class, at least 1; got {shots}")
    # Python's generator takes -1 for 1, so that two seeds would be one; torch's has 64 bits.
    if not 0 <= seed <= LARGEST_SEED:
        raise DrawError(f"seed is a whole number from 0 to {LARGEST_SEED}; got {str(seed)[:40]}")


def draw(
    train: Sequence[int],
    val: Sequence[int] | None,
    *,
    shots: int,
    seed: int,
    protocol: str = "coop",
    names: Sequence[str] = (),
) -> Draw:
    """Draw a few-shot episode from the labels of the training and the validation split.

    Labels stand in the split file's order. One `random.Random(seed)`, classes in order of first
    appearance, items in list order. Without a validation split, validation images are training
    images that the support does not use.

    Args:
        train, val: labels; val is None (or empty) where there is no such split.
        shots: support images per class.
        seed: of the draw.
        protocol: a name of PROTOCOLS.
        names: class names, for messages.

    Raises:
        DrawError: unknown protocol, or a class with too few training images.
    """
    check_request(shots, protocol, seed)
    rule = PROTOCOLS[protocol]
    val_shots = rule.val_shots(shots)
    # One generator for both draws, as in CoOp's code: the order of the draws decides them.
    generator = random.Random(seed)
    val_labels = val if val else train
    shared = not val  # validation is cut from the training images
    if rule.val_first:
        chosen = _validation(val_labels, set(), val_shots, generator)
        taken = set(chosen) if shared else set()
        support = _support(train, taken, shots, generator, names)
    else:
        support = _support(train, set(), shots, generator, names)
        taken = set(support) if shared else set()
        chosen = _validation(val_labels, taken, val_shots, generator)
    # Every class has an entry, also one without validation images.
    count = Counter(val_labels[row] for row in chosen)
    per_class = {label: count[label] for label in sorted(set(train))}
    return Draw(support, chosen, "train" if shared else "val", per_class)


def rows_by_class(labels: Sequence[int], taken: set[int]) -> dict[int, list[int]]:
    """Rows per class, classes in order of first appearance; rows already taken are left out."""
    # A dict keeps the order of insertion: that of first appearance, also for a class whose rows
    # are all taken.
    rows: dict[int, list[int]] = {label: [] for label in labels}
    for row, label in enumerate(labels):
        if row not in taken:
            rows[label].append(row)
    return rows


def _support(
    labels: Sequence[int],
    taken: set[int],
    shots: int,
    generator: random.Random,
    names: Sequence[str],
) -> list[int]:
    """`shots` rows of each class."""
    by_class = rows_by_class(labels, taken)
    # The smallest class limits all of them.
    most = min((len(rows) for rows in by_class.values()), default=0)
    for label, rows in by_class.items():
        if len(rows) < shots:
            name = f"'{names[label]}'" if label < len(names) else label
            raise DrawError(
                f"class {name} has {len(rows)} training images, {shots} shots were asked for;"
                f" at most {most} shots are possible for every class"
            )
    chosen = []
    for rows in by_class.values():
        chosen += generator.sample(rows, shots)
    return chosen


def _validation(
    labels: Sequence[int], taken: set[int], shots: int | None, generator: random.Random
) -> list[int]:
    """At most `shots` rows of each class, all of a class that has fewer; all rows for None."""
    chosen = []
    for rows in rows_by_class(labels, taken).values():
        # No draw at all here, not even of all rows: CoOp's code does not touch the generator.
        if shots is None or len(rows) < shots:
            chosen += rows
        else:
            chosen += generator.sample(rows, shots)
    return chosen


LabelsAndPaths = tuple[Sequence[int], Sequence[str] | Mapping[int, str]]


def index_hash(drawn: Draw, train: LabelsAndPaths, val: LabelsAndPaths | None) -> str:
    """16 hex digits that name the drawn images, support and validation.

    They begin the sha256 of the sorted lines `role:label:path`, where the role is `train` or
    `val` and an image without a path has its row number.

    Args:
        drawn: the draw.
        train, val: the labels of each split's rows, and their paths by row.
    """
    lines = _lines("train", drawn.train, train)
    val_source = train if drawn.val_split == "train" else val
    if drawn.val and val_source is not None:
        lines += _lines("val", drawn.val, val_source)
    # Sorted: the hash names a set of images, in whatever order they were drawn.
    text = "\n".join(sorted(lines))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _lines(role: str, rows: Sequence[int], source: LabelsAndPaths) -> list[str]:
    labels, paths = source
    return [f"{role}:{labels[row]}:{paths[row] or row}" for row in rows]

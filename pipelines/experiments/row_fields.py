"""What each field of a result row may hold: the table by which rows from outside are checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeGuard

LARGEST = 1e300  # what arithmetic on numbers of a row can bear
LONGEST = 10_000  # characters of a text
SLACK = 1e-6  # a mean of float32 numbers that are 1 may be 1.0000001


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


def _is_true_or_false(value: object) -> bool:
    return isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[int | float]:
    # True and False are whole numbers to Python. "not a number" is within no bounds.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -LARGEST <= value <= LARGEST


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0


def _is_not_negative(value: object) -> bool:
    return _is_number(value) and value >= -SLACK


def _is_fraction(value: object) -> bool:
    return _is_number(value) and -SLACK <= value <= 1 + SLACK


def _is_count(value: object) -> bool:
    return isinstance(value, int) and _is_number(value) and value >= 0


def _is_at_least_one(value: object) -> bool:
    return isinstance(value, int) and _is_positive(value)


def _is_seed(value: object) -> bool:
    return isinstance(value, int) and _is_number(value)


def _is_setting(value: object) -> bool:
    """A table of hyper-parameters; each is one value."""
    if not isinstance(value, dict):
        return False
    return all(
        entry is None or _is_true_or_false(entry) or _is_text(entry) or _is_number(entry)
        for entry in value.values()
    )


def _is_table_of_texts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_reliability(value: object) -> bool:
    """[items, mean confidence, accuracy] for each bin of confidence."""
    return isinstance(value, list) and all(map(_is_bin, value))


def _is_bin(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    n_image, confidence, right = value
    return _is_not_negative(n_image) and _is_fraction(confidence) and _is_fraction(right)


Check = Callable[[object], bool]
TEXT = (_is_text, "a text")
FRACTION = (_is_fraction, "a number from 0 to 1")
NOT_NEGATIVE = (_is_not_negative, "a number, at least 0")
SETTING = (_is_setting, "a table of single values")
TRUE_OR_FALSE = (_is_true_or_false, "true or false")
AT_LEAST_ONE = (_is_at_least_one, "a whole number, at least 1")

# What stands in every row that has the field.
FIELDS: Mapping[str, tuple[Check, str]] = {
    "dataset": TEXT,
    "encoder": TEXT,
    "prompts": TEXT,
    "head": TEXT,
    "protocol": TEXT,
    "selected_on": TEXT,
    "fingerprint": TEXT,
    "shots": AT_LEAST_ONE,
    "seed": (_is_seed, "a whole number"),
    "hyper": SETTING,
}
# The same for fields that may be null: where training diverged, there is no text, or no validation.
FIELDS_OR_NULL: Mapping[str, tuple[Check, str]] = {
    "top1": FRACTION,
    "top5": FRACTION,
    "mean_class": FRACTION,
    "zero_shot_top1": FRACTION,
    "inductive_top1": FRACTION,
    "base_top1": FRACTION,
    "new_top1": FRACTION,
    "harmonic": FRACTION,
    "zero_shot_base_top1": FRACTION,
    "zero_shot_new_top1": FRACTION,
    "zero_shot_harmonic": FRACTION,
    "prototype_base_top1": FRACTION,
    "prototype_new_top1": FRACTION,
    "prototype_harmonic": FRACTION,
    "ece": FRACTION,
    "ece_t": FRACTION,
    "nll": NOT_NEGATIVE,
    "nll_t": NOT_NEGATIVE,
    "temperature": (_is_positive, "a number above 0"),
    "train_seconds": NOT_NEGATIVE,
    "reliability": (_is_reliability, "a list of [items, confidence, accuracy]"),
    "found": SETTING,
    "alpha": (_is_number, "a number"),
    "diverged": TRUE_OR_FALSE,
    "transductive": TRUE_OR_FALSE,
    "versions": (_is_table_of_texts, "a table of texts"),
    "val_per_class": (_is_count, "a whole number, at least 0"),
    "group_size": AT_LEAST_ONE,
    "n_base": AT_LEAST_ONE,
    "n_new": AT_LEAST_ONE,
    "new_shots": (_is_count, "a whole number, at least 0"),
    "test_n_class": AT_LEAST_ONE,
    "index_hash": TEXT,
    "temperature_on": TEXT,
    "device": TEXT,
    "test_dataset": TEXT,
    "test_fingerprint": TEXT,
    "key": TEXT,
    "run": TEXT,
    "task": TEXT,
}


def first_wrong_field(row: Mapping) -> str | None:
    """What is wrong with the first field that is, for a message; None where all are right.

    Fields that are missing, and those that are not of the table, are no fault here.
    """
    for name, (check, expected) in FIELDS.items():
        if name in row and not check(row[name]):
            return _wrong(name, row[name], expected)
    for name, (check, expected) in FIELDS_OR_NULL.items():
        if row.get(name) is not None and not check(row[name]):
            return _wrong(name, row[name], expected)
    return None


def _wrong(name: str, value: object, expected: str) -> str:
    # A message is one short line, and a number of many digits may not become text at all.
    is_long = isinstance(value, int) and abs(value) > LARGEST
    text = "a number of too many digits" if is_long else str(value)[:40]
    return f"invalid {name} '{text}', expected {expected}"

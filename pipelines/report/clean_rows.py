"""Result rows as they stand in files -> a study.

Each run is in it once, each data set under a name of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from cliad.pipelines.report.methods import setting_of
from cliad.pipelines.report.study import Block, Study, block_of

# What every row must hold.
WORDS = (
    "dataset",
    "encoder",
    "prompts",
    "head",
    "shots",
    "seed",
    "protocol",
    "selected_on",
    "hyper",
    "fingerprint",
    "top1",
)
# Two rows that agree in these words, and in what was set, are of the same run.
BASE_TO_NEW = "base-to-new"  # the task of a row that was scored on both halves of the classes
IN_HALVES = " (base to new"  # and what its protocol goes on with in a report
RUN_WORDS = tuple(word for word in WORDS if word not in ("hyper", "top1"))


def study_of(rows: Iterable[dict]) -> Study:
    """A study of result rows.

    Of rows that repeat a run, the last one counts. Data sets that differ only in their cache are
    told apart by the cache's fingerprint. A row of a head that was scored on another data set is
    one of the data set "A -> B"; its `source` is A, that of other rows is "". A row of
    base-to-new has a protocol of its own, see `with_halves`.

    Raises:
        KeyError: a row lacks one of WORDS.
    """
    named = [with_halves(with_source(row)) for row in rows]
    once = deduplicated(named)
    distinct = with_distinct_names(once)
    return Study(
        distinct,
        repeated=len(named) - len(once),
        several_caches=distinct != once,
    )


def with_source(row: dict) -> dict:
    """The row with its `source`, and the data set "A -> B" where it was scored on another one.

    `trained_on` is the data set as it was typed, whatever it is called in tables.
    """
    row = {**row, "trained_on": row["dataset"]}
    if not row.get("test_dataset"):
        return {**row, "source": ""}
    return {
        **row,
        "dataset": f"{row['dataset']} -> {row['test_dataset']}",
        "source": row["dataset"],
        "fingerprint": f"{row['fingerprint']} -> {row.get('test_fingerprint')}",
    }


def with_halves(row: dict) -> dict:
    """The row; one of base-to-new with the harmonic mean of both halves as its accuracy.

    Its protocol says so, and whether the head had images of the new classes: blocks are by
    protocol, so that such rows meet neither rows over all classes nor each other.
    """
    if row.get("task") != BASE_TO_NEW:
        return row
    # Rows from before there were heads with images of new classes lack the word.
    new_shots = row.get("new_shots") or 0
    known = ""
    if new_shots == row["shots"]:
        known = ", new classes with images"
    elif new_shots:
        known = f", {new_shots} images of each new class"
    return {
        **row,
        "protocol": f"{row['protocol']}{IN_HALVES}{known})",
        "trained_by": row["protocol"],
        "top1": row.get("harmonic"),
        "zero_shot_top1": row.get("zero_shot_harmonic"),
    }


def deduplicated(rows: Iterable[dict]) -> list[dict]:
    """The rows, each run once: the last row of a run, at the place of its first."""
    last: dict[tuple[str, ...], dict] = {}
    for row in rows:
        # What was set counts, not what was typed: a default that was typed is the same run.
        setting = sorted(setting_of(row).items())
        words = [str(row[word]) for word in RUN_WORDS]
        run = (*words, str(setting))
        last[run] = row
    return list(last.values())


def with_distinct_names(rows: Sequence[dict]) -> list[dict]:
    """The rows; where a block has several caches of a data set, its name holds the fingerprint."""
    fingerprints: dict[tuple[str, Block], set[str]] = defaultdict(set)
    for row in rows:
        fingerprints[row["dataset"], block_of(row)].add(row["fingerprint"])
    distinct = []
    for row in rows:
        # Averaged with each other, two caches would count as more seeds of one data set.
        name = row["dataset"]
        if len(fingerprints[name, block_of(row)]) > 1:
            name = f"{name} ({row['fingerprint']})"
        distinct.append({**row, "dataset": name})
    return distinct

"""Result rows -> what a report shows: methods, blocks that may be compared, cells of mean and interval over seeds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from cliad.adapters import HEADS
from cliad.pipelines.report.statistics import Summary, summarise


@dataclass(frozen=True, order=True)
class Block:
    """What all rows of a table share: rows of different blocks are never compared (save where `across` sets them side by side), nor averaged.

    source: the data set that heads were trained on, where they are scored on others; "" where they are scored on their own.
    """

    encoder: str
    prompts: str
    protocol: str
    source: str = ""

    def __str__(self) -> str:
        trained = f", trained on {self.source}, scored on others" if self.source else ""
        return f"{self.encoder}, prompts {self.prompts}, protocol {self.protocol}{trained}"


@dataclass(frozen=True)
class Method:
    """A head with one setting of its hyper-parameters and one way of selecting: one line of a table."""

    head: str
    selected_on: str
    setting: tuple[tuple[str, object], ...]  # those that vary among the head's rows

    @property
    def label(self) -> str:
        """What a reader is shown."""
        return self.head + "".join(f", {name} {show(value)}" for name, value in self.setting)

    @property
    def distance(self) -> int:
        """How many hyper-parameters are not the head's own default."""
        default = (
            HEADS[self.head]() if self.head in HEADS else None
        )  # made, since a preset fills in what is not given
        return sum(getattr(default, name, None) != value for name, value in self.setting)

    def sort_key(self) -> tuple:
        order = list(HEADS).index(self.head) if self.head in HEADS else len(HEADS)
        return (
            order,
            self.head,
            [(name, size_of(value)) for name, value in self.setting],
            self.selected_on,
        )


def show(value) -> str:
    return (
        f"{value:g}"
        if isinstance(value, (int, float)) and not isinstance(value, bool)
        else str(value)
    )


def show_shots(n: int) -> str:
    return "1 shot" if n == 1 else f"{n} shots"


def size_of(value) -> tuple:
    """Sorts numbers by size, shares of a width such as D/4 among themselves, and all else by name."""
    if isinstance(value, (int, float)):
        return 0, float(value), ""
    top, _, below = str(value).partition("/")
    if top == "D" and (not below or below.isdigit()):
        return 1, -float(below or 1), ""
    return (0, float(value), "") if str(value).isdigit() else (2, 0.0, str(value))


@dataclass
class Study:
    """Rows, cleaned: each run once, diverged ones apart; notes say what was done to them."""

    rows: Sequence[dict]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def varying(self) -> dict[str, list[str]]:
        """By head: hyper-parameters that were given different values, in any of its rows."""
        seen = defaultdict(lambda: defaultdict(set))
        for row in self.rows:
            for name, value in _setting(row).items():
                seen[row["head"]][name].add(value)
        return {
            head: sorted(name for name, of in names.items() if len(of) > 1)
            for head, names in seen.items()
        }

    def method(self, row: dict) -> Method:
        setting = _setting(row)
        kept = tuple(
            (name, setting[name]) for name in self.varying.get(row["head"], []) if name in setting
        )
        return Method(row["head"], row["selected_on"], kept)

    @cached_property
    def cells(self) -> dict[tuple[Block, str, Method, int], list[dict]]:
        """Rows of each block, data set, method and number of shots: they differ in the seed only."""
        found = defaultdict(list)
        for row in self.rows:
            found[block_of(row), row["dataset"], self.method(row), row["shots"]].append(row)
        return dict(found)

    @cached_property
    def blocks(self) -> list[Block]:
        return sorted({key[0] for key in self.cells})

    def datasets(self, block: Block) -> list[str]:
        return sorted({key[1] for key in self.cells if key[0] == block})

    def methods(self, block: Block) -> list[Method]:
        return sorted({key[2] for key in self.cells if key[0] == block}, key=Method.sort_key)

    def shots(self, block: Block) -> list[int]:
        return sorted({key[3] for key in self.cells if key[0] == block})

    def leading(self, block: Block) -> list[Method]:
        """One method for each head and way of selecting: the setting that is nearest to the head's defaults."""
        first: dict[tuple[str, str], Method] = {}
        for method in sorted(self.methods(block), key=lambda m: m.distance):
            first.setdefault((method.head, method.selected_on), method)
        return sorted(first.values(), key=Method.sort_key)

    def cell(self, block: Block, dataset: str | None, method: Method, shots: int) -> Summary | None:
        """Mean and interval over seeds; None where there is no run, or one of them diverged. No data set: the average over all."""
        if dataset is None:
            return self.average(block, method, shots)
        values = [row.get("top1") for row in self.cells.get((block, dataset, method, shots), [])]
        return summarise(values) if values and None not in values else None

    def average(self, block: Block, method: Method, shots: int) -> Summary | None:
        """The same over the mean of all data sets of a block, seed by seed; None where a data set or a seed is missing."""
        per_set = [
            {row["seed"]: row["top1"] for row in self.cells.get((block, name, method, shots), [])}
            for name in self.datasets(block)
        ]
        seeds = set(per_set[0])
        if not seeds or any(set(of) != seeds or None in of.values() for of in per_set):
            return None
        return summarise([statistics.fmean(of[seed] for of in per_set) for seed in sorted(seeds)])

    def zero_shot(self, block: Block, dataset: str | None) -> float | None:
        """Zero-shot accuracy on a data set, or the average over all of them."""
        if dataset is None:
            each = [self.zero_shot(block, name) for name in self.datasets(block)]
            return None if None in each else statistics.fmean(each)
        values = [
            row.get("zero_shot_top1")
            for key, rows in self.cells.items()
            if key[:2] == (block, dataset)
            for row in rows
        ]
        return next((value for value in values if value is not None), None)


def block_of(row: dict) -> Block:
    return Block(row["encoder"], row["prompts"], row["protocol"], row["source"])


def _setting(row: dict) -> dict[str, object]:
    """The hyper-parameters that were set, not found: all of them, or where validation chose, those that the user gave."""
    return (
        dict(row["hyper"])
        if row["selected_on"] == "val"
        else dict(row.get("found") or row["hyper"])
    )


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


def study_of(rows: Iterable[dict]) -> Study:
    """A study of result rows: rows of one run are one, data sets that differ only in their cache are told apart.

    A row of a head that was scored on another data set is one of the data set "A -> B"; its `source` is A, that of other rows is "".

    Raises:
        KeyError: a row lacks one of WORDS.
    """
    last, total = {}, 0
    for row in map(_named, rows):
        total += 1
        setting = sorted(_setting(row).items())  # a default that was typed is the same run
        key = (*(str(row[word]) for word in WORDS[:-1] if word != "hyper"), str(setting))
        last[key] = row
    kept, notes = list(last.values()), []
    if len(kept) < total:
        notes.append(
            f"{total - len(kept)} rows repeat a run that stands further down; the last one counts."
        )
    prints = defaultdict(set)
    for row in kept:
        prints[row["dataset"], block_of(row)].add(row["fingerprint"])
    for row in kept:
        if len(prints[row["dataset"], block_of(row)]) > 1:
            row["dataset"] = f"{row['dataset']} ({row['fingerprint']})"
    if any(len(of) > 1 for of in prints.values()):
        notes.append(
            "A data set with several caches stands once for each, with the cache's fingerprint."
        )
    study = Study(kept, notes)
    return Study(kept, notes + _notes(study))


def _named(row: dict) -> dict:
    if not row.get("test_dataset"):
        return row | {"source": ""}
    prints = f"{row['fingerprint']} -> {row.get('test_fingerprint')}"
    return row | {
        "dataset": f"{row['dataset']} -> {row['test_dataset']}",
        "source": row["dataset"],
        "fingerprint": prints,
    }


def _notes(study: Study) -> list[str]:
    notes = []
    if any(row["source"] for row in study.rows):
        notes.append(
            "A -> B: trained on A, scored on the test split of B; such rows stand in tables of their own, outside the average of all others."
        )
    for word, what in (
        ("protocol", "protocols"),
        ("encoder", "encoders"),
        ("prompts", "prompt sets"),
    ):
        values = sorted({row[word] for row in study.rows})
        if len(values) > 1:
            notes.append(
                f"The rows are of {len(values)} {what} ({', '.join(values)}): each has tables and curves of its own."
            )
    if len({row["selected_on"] for row in study.rows}) > 1:
        notes.append(
            "Some runs use fixed hyper-parameters, others chose them on validation images: they stand in lines of their own."
        )
    diverged = sum(bool(row.get("diverged")) or row["top1"] is None for row in study.rows)
    if diverged:
        notes.append(f"{diverged} runs diverged; a cell with one of them shows no mean.")
    if any(study.varying.values()):
        notes.append(
            "Where a head stands with several settings, the best of them on test is chosen with knowledge of the test set: a comparison, not a result."
        )
    if counts := _seed_counts(study):
        notes.append(counts)
    return notes


def _seed_counts(study: Study) -> str:
    counts = sorted({len(rows) for rows in study.cells.values()})
    if counts == [1]:
        return "Each cell is one seed: there is no spread and no interval."
    return (
        f"Cells have between {counts[0]} and {counts[-1]} seeds."
        if len(counts) > 1
        else f"Each cell is the mean of {counts[0]} seeds."
    )


def best_of(cells: Sequence[Summary | None]) -> int | None:
    """The position of the highest mean."""
    have = [i for i, cell in enumerate(cells) if cell is not None]
    return max(have, key=lambda i: cells[i].mean) if have else None

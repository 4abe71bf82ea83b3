"""The best head of a data set and number of shots against the next one.

The two are paired over the same seeds and images.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cliad.pipelines.report.methods import ZERO_SHOT, Method
from cliad.pipelines.report.statistics import Summary, paired, t_quantile
from cliad.pipelines.report.study import Block, CellKey, Study, without_none

BEST_TITLE = "The best head against the next"
BEST_LEAD = (
    "Each head with the setting nearest to its defaults (not its best on test); the difference of"
    " test accuracy in points, mean ± half its 95 % interval, over the same seeds and the same"
    " images. Where the interval includes zero, these seeds do not show which of the two is better."
)
# From so many seeds on, the interval is narrow enough to need no warning: half of it is 0.7
# standard deviations (t quantile 2.26 over the root of 10).
ENOUGH_SEEDS = 10


@dataclass(frozen=True)
class Comparison:
    """Two methods and how much the first is better.

    gain: None where the two did not have the same seeds and images.
    """

    best: Method
    other: Method
    gain: Summary | None

    @property
    def names(self) -> str:
        """`gda over clip-adapter (selected on val)`."""
        return f"{_name(self.best)} over {_name(self.other)}"

    @property
    def points(self) -> str:
        """The gain in points of accuracy, and half its 95 % interval where there is one."""
        if self.gain is None:
            return "–"
        mean = f"{100 * self.gain.mean:+.2f}"
        if self.gain.half is None:
            return mean
        return f"{mean} ± {100 * self.gain.half:.2f}"

    @property
    def verdict(self) -> str:
        """A warning; empty where the interval leaves out zero."""
        if self.gain is None:
            return "not the same seeds and images"
        if self.gain.half is None:
            return "one seed, no interval"
        if abs(self.gain.mean) <= self.gain.half:
            return "interval includes zero"
        return ""


def _name(method: Method) -> str:
    if method.selected_on == "fixed":
        return method.label
    return f"{method.label} (selected on {method.selected_on})"


def compare_best(study: Study, block: Block, dataset: str | None, shots: int) -> Comparison | None:
    """The best head against the best of the others; None where there are no two.

    Each head takes part with the setting nearest to its defaults.

    Args:
        dataset: None is the average over all data sets of the block.
    """
    means: dict[Method, float] = {}
    for method in study.leading(block):
        cell = study.cell(block, dataset, method, shots)
        if method.head != ZERO_SHOT.head and cell is not None:
            # A head that was selected in two ways stands here twice.
            means[method] = cell.mean
    if not means:
        return None
    # Zero-shot takes part without runs of its own: every row bears its accuracy.
    zero_shot = study.zero_shot(block, dataset)
    if zero_shot is not None:
        means[ZERO_SHOT] = zero_shot
    best = max(means, key=lambda method: means[method])
    # Another setting of the best head, or way of selecting, does not count as the next head.
    others = [method for method in means if method.head != best.head]
    if not others:
        return None
    other = max(others, key=lambda method: means[method])
    datasets = study.datasets(block) if dataset is None else [dataset]
    ours = [_by_draw(study, CellKey(block, name, best, shots), other) for name in datasets]
    theirs = [_by_draw(study, CellKey(block, name, other, shots), best) for name in datasets]
    return Comparison(best, other, _gain(ours, theirs))


class DrawKey(NamedTuple):
    """The seed of a run and a hash of the images that it drew."""

    seed: int
    images: str | None


Accuracies = Mapping[DrawKey, float | None]


def _by_draw(study: Study, key: CellKey, beside: Method) -> Accuracies:
    """The accuracies of a method on one data set, by draw.

    Zero-shot needs no run of its own: the rows of the method `beside` it hold its accuracy.
    """
    word = "top1"
    if key.method == ZERO_SHOT:
        key = key._replace(method=beside)
        word = "zero_shot_top1"
    accuracies = {}
    for row in study.cells[key]:
        accuracies[DrawKey(row["seed"], row.get("index_hash"))] = row.get(word)
    return accuracies


def _gain(ours: Sequence[Accuracies], theirs: Sequence[Accuracies]) -> Summary | None:
    """Ours minus theirs seed by seed, each the mean over the data sets (one mapping each).

    None where a draw of one is missing in the other, or a row lacks its accuracy. That all data
    sets have the same seeds is known here: without them a method has no average.
    """
    # Without the same draws, luck of the draw would count as a gain.
    for our_draws, their_draws in zip(ours, theirs, strict=True):
        if our_draws.keys() != their_draws.keys():
            return None
    our_means = _seed_means(ours)
    their_means = _seed_means(theirs)
    if our_means is None or their_means is None:
        return None
    return paired(our_means, their_means)


def _seed_means(by_dataset: Sequence[Accuracies]) -> list[float] | None:
    """The mean over data sets for each seed, sorted by seed; None where an accuracy is missing."""
    by_seed: dict[int, list[float | None]] = defaultdict(list)
    for accuracies in by_dataset:
        for draw, accuracy in accuracies.items():
            by_seed[draw.seed].append(accuracy)
    means = []
    for seed in sorted(by_seed):
        values = without_none(by_seed[seed])
        if values is None:
            return None
        means.append(statistics.fmean(values))
    return means


# By the name of a data set, or of the average over all: one comparison for each number of shots.
ComparisonTable = dict[str, list[Comparison | None]]


def comparison_tables(study: Study) -> dict[Block, ComparisonTable]:
    """The comparisons of each block that has any.

    A line for each data set, and one for their average where there are several.
    """
    tables = {}
    for block in study.blocks:
        table = _table(study, block)
        if table:
            tables[block] = table
    return tables


def _table(study: Study, block: Block) -> ComparisonTable:
    datasets = study.datasets(block)
    titles: dict[str, str | None] = dict(zip(datasets, datasets, strict=True))
    if len(datasets) > 1:
        titles[f"Average over {len(datasets)} data sets"] = None
    table = {}
    for title, name in titles.items():
        line = [compare_best(study, block, name, n) for n in study.shots(block)]
        if any(line):
            table[title] = line
    return table


def caution(tables: Mapping[Block, ComparisonTable]) -> str:
    """What the intervals cannot say."""
    text = "The two were picked by these very numbers, which flatters the best one a little"
    if max(map(len, tables.values()), default=0) > 1:
        text += "; intervals are over seeds, not over data sets"
    text += "."
    counts = list(_seed_counts(tables.values()))
    if counts and min(counts) < ENOUGH_SEEDS:
        width = _width(min(counts))
        text += f" Few seeds make a wide interval: {width}, with {ENOUGH_SEEDS} it would be 0.7."
    return text


def _seed_counts(tables: Iterable[ComparisonTable]) -> Iterator[int]:
    """How many seeds each gain is over."""
    for table in tables:
        for line in table.values():
            for comparison in line:
                if comparison is not None and comparison.gain is not None:
                    yield comparison.gain.n


def _width(n_seed: int) -> str:
    if n_seed == 1:
        return "with one seed there is none"
    deviations = t_quantile(n_seed - 1) / math.sqrt(n_seed)
    return f"with {n_seed} seeds half of it is {deviations:.1f} standard deviations"

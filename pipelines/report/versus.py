"""The best head of a data set and number of shots against the next one, paired over the same seeds and images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cliad.pipelines.report.statistics import Summary, paired, t_quantile
from cliad.pipelines.report.study import Block, Method, Study

ZERO_SHOT = Method("zero-shot", "fixed", ())


@dataclass(frozen=True)
class Versus:
    """Two heads and how much the first is better; `gain` is None where they did not have the same seeds and images."""

    best: Method
    other: Method
    gain: Summary | None

    @property
    def names(self) -> str:
        return " over ".join(
            m.label + ("" if m.selected_on == "fixed" else f" (selected on {m.selected_on})")
            for m in (self.best, self.other)
        )

    @property
    def points(self) -> str:
        """The gain in points of accuracy, half its 95 % interval where there is one."""
        if self.gain is None:
            return "–"
        return f"{100 * self.gain.mean:+.2f}" + (
            "" if self.gain.half is None else f" ± {100 * self.gain.half:.2f}"
        )

    @property
    def verdict(self) -> str:
        """What to think of it; empty where the interval leaves out zero."""
        if self.gain is None:
            return "not the same seeds and images"
        if self.gain.half is None:
            return "one seed, no interval"
        return "interval includes zero" if abs(self.gain.mean) <= self.gain.half else ""


def versus(study: Study, block: Block, dataset: str | None, shots: int) -> Versus | None:
    """The best head against the best of the others, each with the setting nearest to its defaults; None where there are no two.

    Args:
        dataset: None is the average over all data sets of the block.
    """
    mean = {}
    for method in study.leading(block):
        if method.head != ZERO_SHOT.head and (cell := study.cell(block, dataset, method, shots)):
            mean[method] = cell.mean
    if mean and (zero := study.zero_shot(block, dataset)) is not None:
        mean[ZERO_SHOT] = zero
    best = max(mean, key=mean.get, default=None)
    others = [method for method in mean if method.head != best.head]
    if not others:
        return None
    other = max(others, key=mean.get)
    datasets = study.datasets(block) if dataset is None else [dataset]
    return Versus(best, other, _gain(study, block, datasets, best, other, shots))


def _gain(
    study: Study, block: Block, datasets: Sequence[str], a: Method, b: Method, shots: int
) -> Summary | None:
    """a - b seed by seed, each the mean over the data sets."""
    ours, theirs = (
        [_by_draw(study, block, name, one, two, shots) for name in datasets]
        for one, two in ((a, b), (b, a))
    )
    seeds = [{seed for seed, _ in of} for of in ours]
    same = all(x.keys() == y.keys() for x, y in zip(ours, theirs, strict=True)) and all(
        of == seeds[0] for of in seeds
    )
    if not same or any(None in of.values() for of in [*ours, *theirs]):
        return None
    mean = lambda sets: [
        statistics.fmean(v for of in sets for (at, _), v in of.items() if at == seed)
        for seed in sorted(seeds[0])
    ]
    return paired(mean(ours), mean(theirs))


def _by_draw(
    study: Study, block: Block, dataset: str, method: Method, beside: Method, shots: int
) -> dict[tuple, float | None]:
    """Accuracy by seed and drawn images. Zero-shot needs no run of its own: each row bears it."""
    word, run = ("zero_shot_top1", beside) if method == ZERO_SHOT else ("top1", method)
    return {
        (row["seed"], row.get("index_hash")): row.get(word)
        for row in study.cells[block, dataset, run, shots]
    }


VersusTable = dict[str, list[Versus | None]]  # by data set: one for each number of shots


def versus_tables(study: Study) -> dict[Block, VersusTable]:
    """The comparisons of each block that has any: for each data set, and over all of them where there are several."""
    found = {block: _table(study, block) for block in study.blocks}
    return {block: table for block, table in found.items() if table}


def _table(study: Study, block: Block) -> VersusTable:
    datasets = study.datasets(block)
    titles: dict[str, str | None] = {name: name for name in datasets}
    if len(datasets) > 1:
        titles[f"Average over {len(datasets)} data sets"] = None
    lines = {
        title: [versus(study, block, name, n) for n in study.shots(block)]
        for title, name in titles.items()
    }
    return {title: line for title, line in lines.items() if any(line)}


VERSUS_TITLE = "The best head against the next"
VERSUS_LEAD = (
    "Each head with the setting nearest to its defaults (not its best on test); the difference of test accuracy in points, mean ± half its 95 % interval, "
    "over the same seeds and the same images. Where the interval includes zero, these seeds do not show which of the two is better."
)


def caution(found: Mapping[Block, VersusTable]) -> str:
    """What the intervals cannot say."""
    text = "The two were picked by these very numbers, which flatters the best one a little"
    text += (
        "; intervals are over seeds, not over data sets."
        if any(len(table) > 1 for table in found.values())
        else "."
    )
    counts = [
        one.gain.n
        for table in found.values()
        for line in table.values()
        for one in line
        if one and one.gain
    ]
    if counts and (n := min(counts)) < 10:
        deviations = t_quantile(n - 1) / math.sqrt(n) if n > 1 else None
        wide = (
            f"with {n} seeds half of it is {deviations:.1f} standard deviations"
            if deviations
            else "with one seed there is none"
        )
        text += f" Few seeds make a wide interval: {wide}, with 10 it would be 0.7."
    return text

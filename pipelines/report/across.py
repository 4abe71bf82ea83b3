"""The same heads with several encoders, or several prompt sets, side by side: the one comparison across blocks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cliad.pipelines.report.statistics import Summary
from cliad.pipelines.report.study import Block, Method, Study, best_of

WORDS = {"encoder": "encoder", "prompts": "prompt set"}
ACROSS_TITLE = "Encoders and prompt sets side by side"
ACROSS_LEAD = (
    "A comparison across blocks, which nothing else in this report makes. Each head with the setting nearest to its defaults that they share; "
    "test accuracy in %, mean ± standard deviation over seeds, the best of each head in bold."
)


@dataclass(frozen=True)
class Line:
    """One head in one block: a cell for each number of shots, and where the best of its head stands."""

    head: str
    selected_on: str
    value: str
    cells: Sequence[Summary | None]
    best: Sequence[bool]


@dataclass(frozen=True)
class Across:
    """One data set in blocks that differ in one word alone."""

    title: str
    column: str
    shots: Sequence[int]
    lines: Sequence[Line]


def across(study: Study) -> Iterator[Across]:
    """A table for the average over data sets that all blocks have, and for each data set that stands in several."""
    for word in WORDS:
        families = defaultdict(list)
        for block in study.blocks:
            families[replace(block, **{word: ""})].append(block)
        for family in families.values():
            sets = [study.datasets(block) for block in family]
            names = sorted({name for of in sets for name in of})
            average = [None] if len(names) > 1 and all(of == names for of in sets) else []
            for dataset in [*average, *names]:
                blocks = [
                    block for block in family if dataset is None or dataset in study.datasets(block)
                ]
                if len(blocks) > 1:
                    yield _across(study, word, blocks, dataset)


def _across(study: Study, word: str, blocks: Sequence[Block], dataset: str | None) -> Across:
    shots = sorted({n for block in blocks for n in study.shots(block)})
    zeros = {block: study.zero_shot(block, dataset) for block in blocks}
    level = {
        block: [None if zero is None else Summary(zero, None, None, 1)] * len(shots)
        for block, zero in zeros.items()
    }
    lines = _lines("zero-shot", "–", word, level)
    for method in _shared(study, blocks, dataset):
        cells = {block: [study.cell(block, dataset, method, n) for n in shots] for block in blocks}
        lines += _lines(method.label, method.selected_on, word, cells)
    rest = ", ".join(
        f"{name} {getattr(blocks[0], name)}"
        for name in ("encoder", "prompts", "protocol")
        if name != word
    )
    rest += f", trained on {blocks[0].source}" * bool(blocks[0].source)
    where = dataset or f"average over {len(study.datasets(blocks[0]))} data sets"
    return Across(f"Accuracy by {WORDS[word]}: {where} ({rest})", WORDS[word], shots, lines)


def _lines(
    head: str, selected_on: str, word: str, cells: dict[Block, list[Summary | None]]
) -> list[Line]:
    """Lines of one head, without those that are empty."""
    kept = {block: line for block, line in cells.items() if any(line)}
    best = [
        best_of(column) if len(kept) > 1 else None for column in zip(*kept.values(), strict=True)
    ]
    return [
        Line(head, selected_on, getattr(block, word), line, [i == at for at in best])
        for i, (block, line) in enumerate(kept.items())
    ]


def _shared(study: Study, blocks: Sequence[Block], dataset: str | None) -> list[Method]:
    """One method for each head and way of selecting that several blocks have: in the most blocks, then nearest to the defaults."""
    have = lambda block, method: any(
        study.cell(block, dataset, method, n) for n in study.shots(block)
    )
    count = Counter(
        method
        for block in blocks
        for method in study.methods(block)
        if method.head != "zero-shot" and have(block, method)
    )
    first: dict[tuple[str, str], Method] = {}
    for method in sorted(count, key=lambda m: (-count[m], m.distance, m.sort_key())):
        if count[method] > 1:
            first.setdefault((method.head, method.selected_on), method)
    return sorted(first.values(), key=Method.sort_key)

"""The same heads with several encoders, or several prompt sets, side by side.

This is the one comparison across blocks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cliad.pipelines.report.methods import ZERO_SHOT, Method
from cliad.pipelines.report.statistics import Summary
from cliad.pipelines.report.study import Block, Study, best_of, first_of_each_head

# The words in which blocks may differ, and the column titles of their values.
COLUMNS = {"encoder": "encoder", "prompts": "prompt set"}
ACROSS_TITLE = "Encoders and prompt sets side by side"
ACROSS_LEAD = (
    "A comparison across blocks, which nothing else in this report makes. Each head with the"
    " setting nearest to its defaults that they share; test accuracy in %, mean ± standard"
    " deviation over seeds, the best of each head in bold."
)

Cells = Sequence[Summary | None]


@dataclass(frozen=True)
class Line:
    """One head in one block.

    value: the block's encoder or prompt set.
    cells: one for each number of shots; best: whether the cell is the best of its head.
    """

    head: str
    selected_on: str
    value: str
    cells: Cells
    best: Sequence[bool]


@dataclass(frozen=True)
class SideBySide:
    """A table of one data set in blocks that differ in one word alone."""

    title: str
    column: str
    shots: Sequence[int]
    lines: Sequence[Line]


def side_by_side(study: Study) -> Iterator[SideBySide]:
    """A table for each data set that stands in several blocks.

    Before them, one for the average over data sets, where all blocks have the same.
    """
    for word in COLUMNS:
        for family in _families(study, word):
            for dataset in _datasets(study, family):
                blocks = family
                if dataset is not None:
                    blocks = [block for block in family if dataset in study.datasets(block)]
                if len(blocks) > 1:
                    yield _table(study, word, blocks, dataset)


def _families(study: Study, word: str) -> list[list[Block]]:
    """The blocks of a study, those together that differ in `word` alone."""
    families: dict[Block, list[Block]] = defaultdict(list)
    for block in study.blocks:
        # Blocks that are equal but for `word` become one key.
        without_word = replace(block, **{word: ""})
        families[without_word].append(block)
    return list(families.values())


def _datasets(study: Study, blocks: Sequence[Block]) -> Sequence[str | None]:
    """All data sets of some blocks; first None, the average, where all blocks have them all."""
    names: set[str] = set()
    for block in blocks:
        names.update(study.datasets(block))
    # `names` holds those of every block, so the smallest block has them all only if each has.
    fewest = min(len(study.datasets(block)) for block in blocks)
    if len(names) > 1 and fewest == len(names):
        return [None, *sorted(names)]
    return sorted(names)


def _table(study: Study, word: str, blocks: Sequence[Block], dataset: str | None) -> SideBySide:
    shots: set[int] = set()
    for block in blocks:
        shots.update(study.shots(block))
    columns = sorted(shots)
    lines = _zero_shot_lines(study, word, blocks, dataset, len(columns))
    for method in _shared(study, blocks, dataset):
        cells = {}
        for block in blocks:
            cells[block] = study.line(block, dataset, method, columns)
        lines += _lines(method.label, method.selected_on, word, cells)
    where = dataset or f"average over {len(study.datasets(blocks[0]))} data sets"
    title = f"Accuracy by {COLUMNS[word]}: {where} ({_shared_words(blocks[0], word)})"
    return SideBySide(title, COLUMNS[word], columns, lines)


def _shared_words(block: Block, word: str) -> str:
    """What the blocks of a table have in common: all but `word`."""
    names = ["encoder", "prompts", "protocol"]
    names.remove(word)
    parts = [f"{name} {getattr(block, name)}" for name in names]
    if block.source:
        parts.append(f"trained on {block.source}")
    return ", ".join(parts)


def _zero_shot_lines(
    study: Study, word: str, blocks: Sequence[Block], dataset: str | None, n_column: int
) -> list[Line]:
    cells: dict[Block, Cells] = {}
    for block in blocks:
        accuracy = study.zero_shot(block, dataset)
        # Zero-shot draws no images, so it is the same for each seed and number of shots.
        level = None if accuracy is None else Summary(accuracy, None, None, 1)
        cells[block] = [level] * n_column
    return _lines(ZERO_SHOT.head, "–", word, cells)


def _lines(head: str, selected_on: str, word: str, cells: Mapping[Block, Cells]) -> list[Line]:
    """Lines of one head, without those that are empty."""
    filled = {block: line for block, line in cells.items() if any(line)}
    columns = list(zip(*filled.values(), strict=True))
    best: list[int | None] = [None] * len(columns)
    if len(filled) > 1:  # a line alone is the best of nothing
        best = [best_of(column) for column in columns]
    lines = []
    for number, (block, line) in enumerate(filled.items()):
        is_best = [number == position for position in best]
        lines.append(Line(head, selected_on, getattr(block, word), line, is_best))
    return lines


def _shared(study: Study, blocks: Sequence[Block], dataset: str | None) -> list[Method]:
    """One method for each head and way of selecting that several blocks have.

    It is the one in the most blocks; among equals, the one nearest to the head's defaults.
    """
    n_block: Counter[Method] = Counter()
    for block in blocks:
        for method in study.own_methods(block):
            if method.head != ZERO_SHOT.head and _has_cells(study, block, dataset, method):
                n_block[method] += 1
    # A setting that one block alone has would compare settings, not blocks.
    several = [method for method, count in n_block.items() if count > 1]
    several.sort(key=lambda method: (-n_block[method], method.distance, method.sort_key()))
    return first_of_each_head(several)


def _has_cells(study: Study, block: Block, dataset: str | None, method: Method) -> bool:
    return any(study.line(block, dataset, method, study.shots(block)))

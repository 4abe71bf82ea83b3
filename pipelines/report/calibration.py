"""The section "Calibration": accuracy against confidence, and errors of calibration."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from cliad.adapters.core.metrics import N_BIN
from cliad.pipelines.report.charts import scatter
from cliad.pipelines.report.elements import (
    NO_BREAK,
    distinct_names,
    figure,
    html_table,
    legend,
    section,
)
from cliad.pipelines.report.methods import ZERO_SHOT, Method, show_shots
from cliad.pipelines.report.study import Block, Study

FEWEST_IMAGES = 5  # of a bin that is shown
NOTE = (
    f"<p>How often a prediction is right, against how sure the head was: {N_BIN} bins of confidence"
    " over all test images, before temperature scaling;"
    f" bins with fewer than {FEWEST_IMAGES} images are left out.</p>"
)
HEADS = ["method", "ECE", "ECE, temperature-scaled", "NLL"]


@dataclass
class Bin:
    """The test images whose confidence lies in one bin.

    confidence, right: sums over the images.
    """

    n_image: float = 0.0
    confidence: float = 0.0
    right: float = 0.0

    def add(self, n_image: float, confidence: float, right: float) -> None:
        """Add images, of which the mean confidence and the share of right ones are known."""
        self.n_image += n_image
        self.confidence += n_image * confidence
        self.right += n_image * right

    @property
    def point(self) -> tuple[float, float]:
        """Confidence and accuracy in %."""
        return 100 * self.confidence / self.n_image, 100 * self.right / self.n_image


def calibration(study: Study) -> str:
    """Accuracy against confidence at the most shots, all data sets and seeds of a block as one."""
    parts = [_block_panels(study, block) for block in study.blocks]
    note = NOTE if any(parts) else ""
    return section("reliability", "Calibration", note, *parts)


def _block_panels(study: Study, block: Block) -> str:
    """The chart of a block, and beside it a table of errors."""
    shots = study.shots(block)[-1]
    points: dict[Method, list[tuple[float, float]]] = {}
    for method in _methods(study, block):
        line = _points(study.rows_of(block, method, shots))
        if line:
            points[method] = line
    if not points:
        return ""
    methods = list(points)
    names = distinct_names(methods)
    chart = scatter(
        dict(zip(names, points.values(), strict=True)),
        name=f"Accuracy against confidence, {block}, {show_shots(shots)}",
        x_title="confidence (%)",
        y_title="accuracy (%)",
    )
    errors = []
    for name, method in zip(names, methods, strict=True):
        errors.append([escape(name), *_errors(study.rows_of(block, method, shots))])
    caption = f"Calibration, {escape(str(block))}, {show_shots(shots)}"
    table = html_table(HEADS, errors, caption=caption)
    key = legend(["perfect", *names], first_is_dashed=True)
    panel = figure(show_shots(shots), chart)
    return f'<h3>{escape(str(block))}</h3>{key}<div class="panels">{panel}<div>{table}</div></div>'


def _methods(study: Study, block: Block) -> list[Method]:
    """Zero-shot last, so that all others have the colour of their curve of accuracy."""
    # False sorts before True, and the sort is stable.
    return sorted(study.leading(block), key=lambda method: method.head == ZERO_SHOT.head)


def _points(rows: Sequence[Mapping]) -> list[tuple[float, float]]:
    """Confidence and accuracy of each bin over all rows, in %, sorted by confidence."""
    bins: dict[int, Bin] = defaultdict(Bin)
    for row in rows:
        for n_image, confidence, right in row.get("reliability") or ():
            # A confidence of 1 belongs to the last bin.
            number = min(int(confidence * N_BIN), N_BIN - 1)
            bins[number].add(n_image, confidence, right)
    numbers = sorted(bins)
    # The accuracy of a few images is chance.
    return [bins[n].point for n in numbers if bins[n].n_image >= FEWEST_IMAGES]


def _errors(rows: Sequence[Mapping]) -> list[str]:
    """The mean over rows of each error of calibration, as text; in the order of HEADS."""
    nll = _mean(rows, "nll")
    return [
        _percent(_mean(rows, "ece")),
        _percent(_mean(rows, "ece_t")),
        "–" if nll is None else f"{nll:.3f}",
    ]


def _mean(rows: Sequence[Mapping], word: str) -> float | None:
    """The mean of a word over the rows that hold it."""
    values = [row[word] for row in rows if row.get(word) is not None]
    return statistics.fmean(values) if values else None


def _percent(share: float | None) -> str:
    if share is None:
        return "–"
    return f"{share:.1%}".replace("%", f"{NO_BREAK}%")

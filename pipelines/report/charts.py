"""Charts of accuracy as SVG: no scripts, no network, values as tooltips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from cliad.pipelines.report.svg import (
    Axis,
    Curve,
    Plot,
    Point,
    Tick,
    draw_axes,
    draw_curves,
    draw_path,
    draw_text,
    picture,
)

# Colours that colour-blind readers can tell apart (Okabe and Ito, 2008), on white paper.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7F6000",
    "#555555",
)
# The style of a picture that stands alone; inside a page, report.css has it.
ALONE = """
text{font:13px system-ui,sans-serif;fill:#333}
.heading{font-size:16px;text-anchor:middle;fill:#111}
.titles text{font-size:14px;text-anchor:middle;fill:#111}
.axis.y text{text-anchor:end} .axis.x text{text-anchor:middle}
.axis .guide{stroke:#ddd} .axis .line{stroke:#333}
.series .line{stroke-width:2.5} .series .dot{stroke:#fff}
.dashed .line{stroke-dasharray:6 4}
"""
ALONE_WIDTH = 760
ALONE_HEIGHT = 440
TITLE_HEIGHT = 45
X_AXIS_HEIGHT = 70  # of the labels below the plot and the title of the axis
LEGEND_LINE = 24  # pixels
# Of a chart inside a page, in its own units: the page shows it as wide as its panel.
WIDTH = 480
HEIGHT = 320
# The page has so many colours: the first is for the line that all others are compared with.
N_COLOUR = 8


def curves(
    lines: Mapping[str, Mapping[int, float]],
    *,
    title: str,
    x_title: str,
    level: tuple[str, float] | None = None,
) -> str:
    """An SVG file of accuracy in %, against an axis whose values are evenly spaced, such as shots.

    Args:
        lines: name -> {x: fraction}.
        level: a name and a fraction to draw as a dashed line, such as zero-shot.
    """
    xs: set[int] = set()
    for line in lines.values():
        xs.update(line)
    order = sorted(xs)
    names = list(lines)
    drawn = [_accuracy_points(line, order) for line in lines.values()]
    if level is not None:
        level_name, accuracy = level
        text = f"{100 * accuracy:.1f}"
        ends = [Point(0, 100 * accuracy, text), Point(len(order) - 1, 100 * accuracy, text)]
        # First, so that it has the first colour and lies below all others.
        names.insert(0, level_name)
        drawn.insert(0, ends)
    shown = []
    for number, points in enumerate(drawn):
        is_level = level is not None and number == 0
        colour = COLOURS[number % len(COLOURS)]
        style = "dashed" if is_level else ""
        shown.append(Curve(points, style, colour=colour, radius=0 if is_level else 4))
    return _alone(title, names, shown, _even_axis(x_title, [f"{x:g}" for x in order]))


def _accuracy_points(line: Mapping[int, float], order: Sequence[int]) -> list[Point]:
    """Fractions -> points in %, each at its place in `order`."""
    points = []
    for x, fraction in sorted(line.items()):
        points.append(Point(order.index(x), 100 * fraction, f"{100 * fraction:.1f}"))
    return points


def _alone(title: str, names: Sequence[str], shown: Sequence[Curve], x_axis: Axis) -> str:
    """A picture with a title, a legend and a style of its own."""
    values = []
    for curve in shown:
        values += [point.y for point in curve.points]
    # Whole tens around all values.
    high = min(100, 10 * math.floor(max(values) / 10) + 10)
    low = min(10 * math.floor(min(values) / 10), high - 10)
    y_axis = Axis("accuracy (%)", _ticks(low, high), low, high)
    svg = picture(ALONE_WIDTH, ALONE_HEIGHT, title)
    # Without its name space, a file is not taken for a picture; inside a page, HTML knows it.
    svg.set("xmlns", "http://www.w3.org/2000/svg")
    SubElement(svg, "style").text = ALONE
    paper = {"width": f"{ALONE_WIDTH}", "height": f"{ALONE_HEIGHT}", "fill": "#fff"}
    SubElement(svg, "rect", paper)
    draw_text(svg, ALONE_WIDTH / 2, 28, title).set("class", "heading")
    # The plot takes what the title, the x axis and the legend leave.
    legend_height = LEGEND_LINE * math.ceil(len(names) / 2)
    height = ALONE_HEIGHT - TITLE_HEIGHT - X_AXIS_HEIGHT - legend_height
    plot = Plot(65, TITLE_HEIGHT, width=670, height=height, x_axis=x_axis, y_axis=y_axis)
    draw_axes(svg, plot)
    draw_curves(svg, plot, shown)
    _draw_legend(svg, plot, names, shown)
    return ElementTree.tostring(svg, encoding="unicode")


def _draw_legend(svg: Element, plot: Plot, names: Sequence[str], shown: Sequence[Curve]) -> None:
    """The names of the curves below the plot, in two columns."""
    for number, (name, curve) in enumerate(zip(names, shown, strict=True)):
        # Left, right, then the next line.
        x = plot.left + (number % 2) * plot.width / 2
        y = plot.bottom + X_AXIS_HEIGHT + LEGEND_LINE * (number // 2)
        key = SubElement(svg, "g", {"class": f"series {curve.css_class}", "stroke": curve.colour})
        draw_path(key, "line", f"M{x:.1f} {y:.1f}h28")
        draw_text(svg, x + 36, y + 4.5, name)


@dataclass(frozen=True)
class Measure:
    """A value and the ends of its interval; the ends are the value where there is none."""

    value: float
    low: float
    high: float


def series(
    xs: Sequence[str],
    lines: Mapping[str, Sequence[Measure | None]],
    *,
    name: str,
    x_title: str,
    y_title: str,
    star: str = "",
) -> str:
    """An SVG of lines over evenly spaced labels, with intervals, to stand inside a page.

    It has no style of its own: the page colours the classes color-0, color-1, ..., so that it can
    be light and dark.

    Args:
        lines: name -> a measure for each label, None where there is none.
        name: of the chart, for those who cannot see it.
        star: the name of the line that is drawn dashed, with a star at its first point.
    """
    ends = []
    for line in lines.values():
        for measure in line:
            if measure is not None:
                ends += [measure.low, measure.high]
    low, high = _span(min(ends), max(ends))
    shown = []
    for number, (label, line) in enumerate(lines.items()):
        # A line goes past labels where it has no measure.
        points = []
        for x, measure in enumerate(line):
            if measure is not None:
                points.append(_with_interval(x, measure))
        starred = label == star
        style = css_class(number, dashed=starred)
        shown.append(Curve(points, style, radius=3.5, starred=starred))
    x_axis = _even_axis(x_title, xs)
    y_axis = Axis(y_title, _ticks(low, high), low, high)
    return _inside_page(name, x_axis, y_axis, shown)


def _with_interval(x: int, measure: Measure) -> Point:
    tooltip = f"{measure.value:.4g}"
    # One seed has no interval, and neither have equal seeds.
    if measure.low == measure.high:
        return Point(x, measure.value, tooltip)
    return Point(x, measure.value, tooltip, measure.low, measure.high)


def scatter(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    name: str,
    x_title: str,
    y_title: str,
) -> str:
    """An SVG of (x, y) lines in 0..100 with the line x = y, to stand inside a page.

    The first colour is that of the line x = y, which is dashed.
    """
    # A head that is as right as it is sure lies on this line.
    diagonal = [Point(0, 0, ""), Point(100, 100, "")]
    shown = [Curve(diagonal, css_class(0, dashed=True))]
    for number, line in enumerate(lines.values(), 1):
        points = [Point(x, y, f"{x:.4g}, {y:.4g}") for x, y in line]
        shown.append(Curve(points, css_class(number), radius=3))
    ticks = _ticks(0, 100)
    return _inside_page(name, Axis(x_title, ticks, 0, 100), Axis(y_title, ticks, 0, 100), shown)


def css_class(number: int, *, dashed: bool = False) -> str:
    """The classes of a chart's line and of its key in the legend.

    Only line 0 has the first colour; from line 8 on, the others come again.
    """
    colour = number
    if number >= N_COLOUR:
        # Never 0 again: a second grey line would look like the reference.
        colour = 1 + (number - 1) % (N_COLOUR - 1)
    return f"color-{colour} dashed" if dashed else f"color-{colour}"


def _inside_page(name: str, x_axis: Axis, y_axis: Axis, shown: Sequence[Curve]) -> str:
    svg: Element = picture(WIDTH, HEIGHT, name)
    plot = Plot(left=59, top=6, width=415, height=265, x_axis=x_axis, y_axis=y_axis)
    draw_axes(svg, plot)
    draw_curves(svg, plot, shown)
    return ElementTree.tostring(svg, encoding="unicode")


def _even_axis(title: str, labels: Sequence[str]) -> Axis:
    """An axis with evenly spaced labels, the first at 0, the next at 1."""
    ticks = [Tick(place, label) for place, label in enumerate(labels)]
    return Axis(title, ticks, 0, len(labels) - 1)


def _span(low: float, high: float) -> tuple[float, float]:
    """Round ends around all values."""
    step = _step(low, high, (1, 2, 5, 10, 20, 50))
    # The axis is at least one step long, also where all values are equal.
    first = step * math.floor(low / step)
    last = step * math.ceil(high / step)
    return first, max(last, first + step)


def _ticks(low: float, high: float) -> list[Tick]:
    """Round values from `low` to `high`, at most seven."""
    step = _step(low, high, (0.2, 0.5, 1, 2, 5, 10, 20, 50))
    # A little slack, since 0.2 is no binary number.
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    values = [step * number for number in range(first, last + 1)]
    return [Tick(value, f"{value:.4g}") for value in values]


def _step(low: float, high: float, steps: Sequence[float]) -> float:
    """The smallest of some steps that leads from `low` to `high` six times at most."""
    for step in steps:
        if high - low <= 6 * step:
            return step
    return steps[-1]

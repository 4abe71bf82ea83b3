"""Drawing a chart as SVG: the axes, and curves with dots, intervals and tooltips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement

CAP = 7  # half the width of the bar at an interval's end
LONGEST_LABEL = 16  # characters of a label below the x axis
STAR_RADII = (9, 4)  # of its five points, and of the corners between them
# Room between the edge of the plot and the outermost values, so that their dots are whole.
INSET_X = 8
INSET_Y = 5


@dataclass(frozen=True)
class Point:
    """A point of a curve; `low` and `high` are the ends of its interval, if it has one."""

    x: float
    y: float
    tooltip: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """Points joined by a line.

    css_class: what the style sheet colours; colour: the same for a picture that stands alone.
    radius: of the dots, 0 for none. starred: the first dot is a star, the others are left out.
    """

    points: Sequence[Point]
    css_class: str
    colour: str = ""
    radius: float = 0
    starred: bool = False


@dataclass(frozen=True)
class Tick:
    """A label of an axis and the value where it stands."""

    value: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A title, the ticks, and the range of values that is shown."""

    title: str
    ticks: Sequence[Tick]
    low: float
    high: float

    def share(self, value: float) -> float:
        """Where a value lies between `low` (0) and `high` (1); the middle if these are one."""
        if self.high == self.low:
            return 0.5
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Plot:
    """The area in which values are drawn: its place in the picture in pixels, and its axes."""

    left: float
    top: float
    width: float
    height: float
    x_axis: Axis
    y_axis: Axis

    def x(self, value: float) -> float:
        """The pixel of a value, from the left of the picture."""
        return self.left + INSET_X + self.x_axis.share(value) * (self.width - 2 * INSET_X)

    def y(self, value: float) -> float:
        """The pixel of a value, from the top of the picture."""
        # Pixels count down the picture, values up.
        return self.bottom - INSET_Y - self.y_axis.share(value) * (self.height - 2 * INSET_Y)

    @property
    def bottom(self) -> float:
        """The pixel of the x axis, from the top of the picture."""
        return self.top + self.height


def picture(width: int, height: int, name: str) -> Element:
    """An empty picture; `name` is read aloud to those who cannot see it."""
    view = f"0 0 {width} {height}"
    return Element("svg", {"class": "chart", "viewBox": view, "role": "img", "aria-label": name})


def draw_axes(svg: Element, plot: Plot) -> None:
    """Both axes with their ticks, a rule across the plot at each tick of y, and the titles."""
    right = plot.left + plot.width
    y_group = SubElement(svg, "g", {"class": "axis y"})
    for tick in plot.y_axis.ticks:
        y = plot.y(tick.value)
        draw_path(y_group, "guide", f"M{plot.left:.1f} {y:.1f}H{right:.1f}")
        # Text stands on its baseline; half the height of a figure puts its middle on the rule.
        draw_text(y_group, plot.left - 5, y + 4.5, tick.label)
    x_group = SubElement(svg, "g", {"class": "axis x"})
    draw_path(x_group, "line", f"M{plot.left:.1f} {plot.bottom:.1f}H{right:.1f}")
    # The y axis stands at the first value, a little inside the plot.
    start = plot.x(plot.x_axis.low)
    draw_path(x_group, "line", f"M{start:.1f} {plot.top:.1f}V{plot.bottom:.1f}")
    for tick in plot.x_axis.ticks:
        text = draw_text(x_group, plot.x(tick.value), plot.bottom + 17, shortened(tick.label))
        if len(tick.label) > LONGEST_LABEL:
            SubElement(text, "title").text = tick.label
    titles = SubElement(svg, "g", {"class": "titles"})
    middle = plot.left + plot.width / 2
    draw_text(titles, middle, plot.bottom + 43, plot.x_axis.title)
    # Turned about its own place, so that it reads from below to above.
    x = plot.left - 44
    y = plot.top + plot.height / 2
    title = draw_text(titles, x, y, plot.y_axis.title)
    title.set("transform", f"rotate(-90 {x} {y:.1f})")


def shortened(label: str) -> str:
    """A label that leaves room for its neighbours."""
    if len(label) <= LONGEST_LABEL:
        return label
    return label[: LONGEST_LABEL - 1] + "…"


def draw_curves(svg: Element, plot: Plot, curves: Sequence[Curve]) -> None:
    """All lines first, then all intervals and dots, so that no line hides a dot."""
    # Later elements of a picture lie on top of earlier ones.
    for curve in curves:
        group = _group(svg, curve)
        corners = [f"{plot.x(point.x):.1f} {plot.y(point.y):.1f}" for point in curve.points]
        # A path of one point is nothing that a browser draws.
        if len(corners) > 1:
            draw_path(group, "line", "M" + "L".join(corners))
    for curve in curves:
        _draw_dots(_group(svg, curve), plot, curve)


def _group(svg: Element, curve: Curve) -> Element:
    group = SubElement(svg, "g", {"class": f"series {curve.css_class}"})
    # Attributes, since not every program that shows SVG files knows variables of CSS.
    if curve.colour:
        group.set("stroke", curve.colour)
        group.set("fill", curve.colour)
    return group


def _draw_dots(group: Element, plot: Plot, curve: Curve) -> None:
    if curve.starred and curve.points:
        _draw_star(group, plot, curve.points[0])
        return
    for point in curve.points:
        x = plot.x(point.x)
        if point.low is not None and point.high is not None:
            low = plot.y(point.low)
            high = plot.y(point.high)
            # In a path, M begins a stroke, V and h lead up and across.
            caps = f"M{x - CAP:.1f} {low:.1f}h{2 * CAP}M{x - CAP:.1f} {high:.1f}h{2 * CAP}"
            draw_path(group, "interval", f"M{x:.1f} {low:.1f}V{high:.1f}{caps}")
        if curve.radius:
            place = {"cx": f"{x:.1f}", "cy": f"{plot.y(point.y):.1f}", "r": f"{curve.radius}"}
            dot = SubElement(group, "circle", {"class": "dot", **place})
            SubElement(dot, "title").text = point.tooltip


def _draw_star(group: Element, plot: Plot, point: Point) -> None:
    corners = []
    for corner in range(10):
        # From the top clockwise: outer points and inner corners by turns, 36 degrees apart.
        angle = math.pi * (corner / 5 - 0.5)
        radius = STAR_RADII[corner % 2]
        x = plot.x(point.x) + radius * math.cos(angle)
        y = plot.y(point.y) + radius * math.sin(angle)
        corners.append(f"{x:.1f},{y:.1f}")
    star = SubElement(group, "polygon", {"class": "dot", "points": " ".join(corners)})
    SubElement(star, "title").text = point.tooltip


def draw_path(parent: Element, css_class: str, commands: str) -> Element:
    """A path without a filling."""
    return SubElement(parent, "path", {"class": css_class, "d": commands, "fill": "none"})


def draw_text(parent: Element, x: float, y: float, text: str) -> Element:
    """A line of text; the style sheet says which end of it stands at (x, y)."""
    node = SubElement(parent, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}"})
    node.text = text
    return node

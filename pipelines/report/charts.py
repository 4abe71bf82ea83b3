"""Charts as SVG: colours that colour-blind readers can tell apart, no scripts, no network."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

import pygal
from pygal.style import Style

# pygal leaves an import hook for its plug-ins that Python 3.11 warns of at every later import that fails
sys.meta_path[:] = [
    finder for finder in sys.meta_path if type(finder).__name__ != "PluginImportFixer"
]

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7F6000",
    "#555555",
)  # Okabe and Ito, 2008
STYLE = Style(
    background="white",
    plot_background="white",
    foreground="#333333",
    foreground_strong="#111111",
    foreground_subtle="#999999",
    guide_stroke_color="#dddddd",
    major_guide_stroke_color="#dddddd",
    colors=COLOURS,
    font_family="system-ui, sans-serif",
    label_font_size=13,
    major_label_font_size=13,
    legend_font_size=14,
    title_font_size=16,
    stroke_width=2.5,
)


def curves(
    lines: Mapping[str, Mapping[int, float]],
    *,
    title: str,
    x_title: str,
    level: tuple[str, float] | None = None,
) -> str:
    """An SVG of accuracy in % (fractions come in) against an axis whose values are evenly spaced, such as shots.

    lines: name -> {x: fraction}; level: a name and a fraction to draw as a dashed line, such as zero-shot.
    """
    xs = sorted({x for line in lines.values() for x in line})
    at = {x: i for i, x in enumerate(xs)}
    values = [y for line in lines.values() for y in line.values()] + ([level[1]] if level else [])
    low, high = 10 * int(10 * min(values)), min(100, 10 * (int(10 * max(values)) + 1))
    labels = [{"value": i, "label": f"{x:g}"} for x, i in at.items()]
    chart = pygal.XY(
        style=STYLE,
        js=[],
        width=760,
        height=440,
        title=title,
        x_title=x_title,
        y_title="accuracy (%)",
        range=(low, high),
    )
    chart.x_labels, chart.legend_at_bottom, chart.show_x_guides, chart.dots_size = (
        labels,
        True,
        False,
        4,
    )
    if level:
        ends: Sequence = [(0, 100 * level[1]), (len(xs) - 1, 100 * level[1])]
        chart.add(level[0], ends, stroke_style={"dasharray": "6,4"}, show_dots=False)
    for name, line in lines.items():
        chart.add(name, [(at[x], 100 * y) for x, y in sorted(line.items())])
    return chart.render(is_unicode=True)


Point = tuple[float, float, float] | None  # value, low, high


def series(
    xs: Sequence[str],
    lines: Mapping[str, Sequence[Point]],
    *,
    name: str,
    x_title: str,
    y_title: str,
    star: str = "",
) -> str:
    """An SVG of lines over evenly spaced labels, with intervals, to stand inside a page.

    It has no style of its own: the page colours the classes color-0, color-1, ..., so that it can be light and dark. The line
    that is called `star` is drawn dashed, with a star at its first point.
    """
    values = [value for line in lines.values() for point in line if point for value in point]
    low, high = _span(min(values), max(values))
    chart = pygal.Line(**_plain(x_title, y_title), range=(low, high), dots_size=3.5)
    chart.x_labels, chart.y_labels = list(xs), _ticks(low, high)
    for label, line in lines.items():
        points = [
            point
            and {
                "value": round(point[0], 3),
                "ci": {"low": max(low, point[1]), "high": min(high, point[2])},
            }
            for point in line
        ]
        chart.add(
            label,
            [
                point
                if point and point["ci"]["low"] < point["ci"]["high"]
                else point and point["value"]
                for point in points
            ],
        )
    return _svg(chart, name, list(lines).index(star) if star in lines else None)


def scatter(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    name: str,
    x_title: str,
    y_title: str,
    diagonal: str,
) -> str:
    """An SVG of (x, y) lines in 0..100 with the line x = y, to stand inside a page; the first colour is the diagonal's."""
    chart = pygal.XY(**_plain(x_title, y_title), range=(0, 100), xrange=(0, 100), dots_size=3)
    chart.x_labels = chart.y_labels = [0, 20, 40, 60, 80, 100]
    chart.add(diagonal, [(0, 0), (100, 100)], show_dots=False)
    for label, points in lines.items():
        chart.add(label, list(points))
    return _svg(chart, name, 0)


def _plain(x_title: str, y_title: str) -> dict:
    style = Style(
        label_font_size=13, major_label_font_size=13, title_font_size=14, font_family="sans-serif"
    )
    size = {"width": 480, "height": 320, "margin": 6, "spacing": 8}
    names = {"x_title": x_title, "y_title": y_title, "show_legend": False, "show_x_guides": False}
    return {"style": style, "js": [], **size, **names, "truncate_label": 16, "formatter": _number}


def _number(value) -> str:
    """A value, or an (x, y) pair, as text."""
    return (
        ", ".join(f"{part:.4g}" for part in value)
        if isinstance(value, (list, tuple))
        else f"{value:.4g}"
    )


def _span(low: float, high: float) -> tuple[float, float]:
    """Round ends around all values."""
    step = next((step for step in (1, 2, 5, 10, 20) if high - low <= 6 * step), 50)
    return step * math.floor(low / step), max(
        step * math.ceil(high / step), step * math.floor(low / step) + step
    )


def _ticks(low: float, high: float) -> list[float]:
    step = next((step for step in (0.2, 0.5, 1, 2, 5, 10, 20) if high - low <= 6 * step), 50)
    return [low + i * step for i in range(round((high - low) / step) + 1)]


SVG = "{http://www.w3.org/2000/svg}"


def _svg(chart: pygal.graph.graph.Graph, name: str, special: int | None) -> str:
    """The chart without its scripts and styles; values as tooltips that need no script; `name` is read to those who cannot see."""
    root = chart.render_tree()
    for parent in list(root.iter()):
        for child in list(parent):
            kind = child.tag if isinstance(child.tag, str) else "comment"
            if kind.rpartition("}")[2] in ("script", "style", "defs", "comment"):
                parent.remove(child)
    for dots in [node for node in root.iter() if node.get("class") == "dots"]:
        _tooltip(dots)
    root.remove(next(child for child in root if child.tag == f"{SVG}title" or child.tag == "title"))
    root.set("role", "img")
    root.set("aria-label", name)
    if special is not None:
        _special(root, special)
    ElementTree.register_namespace("", SVG[1:-1])
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)


def _tooltip(dots) -> None:
    """Put a dot's value into a title; pygal's own descriptions are for its script."""
    value = next((node.text for node in dots if (node.get("class") or "") == "value"), "")
    circle = next((node for node in dots if (node.tag or "").endswith("circle")), None)
    for node in [node for node in dots if (node.tag or "").endswith("desc")]:
        dots.remove(node)
    if circle is not None:
        ElementTree.SubElement(circle, "title").text = value


def _special(root, number: int) -> None:
    """Dash a line and make a star of its first dot, if it has dots."""
    for node in root.iter():
        if (node.get("class") or "").startswith(f"series serie-{number} "):
            node.set("class", node.get("class") + " special")
    every = [
        node
        for node in root.iter()
        if "special" in (node.get("class") or "")
        for node in node
        if node.get("class") == "dots"
    ]
    for i, dots in enumerate(every):
        circle = next(node for node in dots if node.tag.endswith("circle"))
        if i == 0:
            x, y = float(circle.get("cx")), float(circle.get("cy"))
            angles = [math.pi * (k / 5 - 0.5) for k in range(10)]
            points = [
                (x + (9, 4)[k % 2] * math.cos(a), y + (9, 4)[k % 2] * math.sin(a))
                for k, a in enumerate(angles)
            ]
            circle.tag = circle.tag.replace("circle", "polygon")
            circle.set("points", " ".join(f"{px:.1f},{py:.1f}" for px, py in points))
        else:
            dots.remove(circle)

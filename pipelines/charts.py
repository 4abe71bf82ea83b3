"""Charts as SVG: colours that colour-blind readers can tell apart, no scripts, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pygal
from pygal.style import Style

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F6000", "#555555")  # Okabe and Ito, 2008
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


def curves(lines: Mapping[str, Mapping[int, float]], *, title: str, x_title: str, level: tuple[str, float] | None = None) -> str:
    """An SVG of accuracy in % (fractions come in) against an axis whose values are evenly spaced, such as shots.

    lines: name -> {x: fraction}; level: a name and a fraction to draw as a dashed line, such as zero-shot.
    """
    xs = sorted({x for line in lines.values() for x in line})
    at = {x: i for i, x in enumerate(xs)}
    values = [y for line in lines.values() for y in line.values()] + ([level[1]] if level else [])
    low, high = 10 * int(10 * min(values)), min(100, 10 * (int(10 * max(values)) + 1))
    labels = [{"value": i, "label": f"{x:g}"} for x, i in at.items()]
    chart = pygal.XY(style=STYLE, js=[], width=760, height=440, title=title, x_title=x_title, y_title="accuracy (%)", range=(low, high))
    chart.x_labels, chart.legend_at_bottom, chart.show_x_guides, chart.dots_size = labels, True, False, 4
    if level:
        ends: Sequence = [(0, 100 * level[1]), (len(xs) - 1, 100 * level[1])]
        chart.add(level[0], ends, stroke_style={"dasharray": "6,4"}, show_dots=False)
    for name, line in lines.items():
        chart.add(name, [(at[x], 100 * y) for x, y in sorted(line.items())])
    return chart.render(is_unicode=True)

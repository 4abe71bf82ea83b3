"""Charts: the picture holds each value where it belongs."""

from xml.etree import ElementTree

import pytest

from cliad.pipelines.report.charts import Measure, css_class, curves, scatter, series
from cliad.pipelines.report.elements import legend
from cliad.pipelines.report.svg import Axis, Plot, shortened

LINES = {"gda": {1: 0.70, 4: 0.80, 16: 0.95}, "clip-adapter": {1: 0.75, 16: 0.85}}


def parsed(text):
    """The picture without the name space, which a picture inside a page lacks."""
    return ElementTree.fromstring(text.replace(' xmlns="http://www.w3.org/2000/svg"', ""))


def texts(svg, path):
    return [node.text for node in svg.findall(path)]


def nodes_of(svg, css_class, tag):
    """All elements of a line, which has a group for its stroke and one for its dots."""
    groups = [node for node in svg.iter("g") if node.get("class") == f"series {css_class}"]
    return [node for group in groups for node in group.iter(tag)]


def test_a_picture_of_curves_names_title_axes_lines_and_level():
    svg = parsed(curves(LINES, title="<pets>", x_title="shots", level=("zero-shot", 0.72)))
    every = [node.text for node in svg.iter("text")]
    for name in ("<pets>", "shots", "accuracy (%)", "gda", "clip-adapter", "zero-shot"):
        assert every.count(name) == 1
    assert texts(svg, "g[@class='axis x']/text") == ["1", "4", "16"]
    assert texts(svg, "g[@class='axis y']/text") == ["70", "75", "80", "85", "90", "95", "100"]
    tooltips = [node.text for node in svg.iter("title")]
    assert tooltips == ["70.0", "80.0", "95.0", "75.0", "85.0"]


def test_the_level_is_a_horizontal_line_across_all_shots():
    svg = parsed(curves(LINES, title="t", x_title="shots", level=("zero-shot", 0.72)))
    line = nodes_of(svg, "dashed", "path")[0].get("d")
    start, end = [place.split() for place in line[1:].split("L")]
    assert start[1] == end[1]
    places = [node.get("x") for node in svg.findall("g[@class='axis x']/text")]
    assert (start[0], end[0]) == (places[0], places[-1])


def test_a_line_goes_past_a_number_of_shots_that_it_lacks():
    svg = parsed(curves(LINES, title="t", x_title="shots"))
    strokes = [node for node in svg.iter("path") if node.get("class") == "line"]
    corners = [node.get("d").count(" ") for node in strokes if "L" in node.get("d")]
    assert corners == [3, 2]


@pytest.mark.parametrize("accuracy, ticks", [(1.0, ("90", "100")), (0.0, ("0", "10"))])
def test_equal_accuracies_have_an_axis_all_the_same(accuracy, ticks):
    svg = parsed(curves({"gda": {4: accuracy}}, title="t", x_title="shots"))
    labels = texts(svg, "g[@class='axis y']/text")
    assert (labels[0], labels[-1]) == ticks


def test_a_series_has_intervals_tooltips_and_a_star():
    lines = {
        "zero-shot": [Measure(60, 60, 60)] * 3,
        "gda": [None, Measure(61.234, 58, 64), Measure(65, 65, 65)],
    }
    svg = parsed(
        series(
            ["0", "1", "4"], lines, name="n", x_title="shots", y_title="accuracy", star="zero-shot"
        )
    )
    assert (svg.get("role"), svg.get("aria-label")) == ("img", "n")
    assert len(nodes_of(svg, "color-0 dashed", "polygon")) == 1
    assert nodes_of(svg, "color-0 dashed", "circle") == []
    assert [dot[0].text for dot in nodes_of(svg, "color-1", "circle")] == ["61.23", "65"]
    intervals = [n for n in nodes_of(svg, "color-1", "path") if n.get("class") == "interval"]
    assert len(intervals) == 1


def test_higher_values_stand_higher_and_later_ones_further_right():
    plot = Plot(50, 10, 400, 200, Axis("x", [], 0, 3), Axis("y", [], 60, 80))
    assert plot.y(80) == 15 and plot.y(60) == 205  # 5 pixels from the edges
    assert plot.y(70) == 110
    assert plot.x(0) == 58 and plot.x(3) == 442


def test_reliability_has_the_diagonal_and_pairs_as_tooltips():
    svg = parsed(scatter({"gda": [(40, 38.2), (90, 95)]}, name="n", x_title="c", y_title="a"))
    assert [dot[0].text for dot in nodes_of(svg, "color-1", "circle")] == ["40, 38.2", "90, 95"]
    assert len(nodes_of(svg, "color-0 dashed", "path")) == 1
    for axis in "xy":
        assert texts(svg, f"g[@class='axis {axis}']/text") == ["0", "20", "40", "60", "80", "100"]


def test_the_legend_has_the_colours_of_the_lines_however_many():
    names = [f"line {number}" for number in range(20)]
    text = legend(names, first_is_dashed=True)
    for number in range(20):
        assert f'class="key {css_class(number, dashed=number == 0)}"' in text
    colours = [css_class(number) for number in range(20)]
    assert colours.count("color-0") == 1
    assert set(colours) == {f"color-{number}" for number in range(8)}


def test_a_long_label_is_cut_and_its_tooltip_is_whole():
    label = "a-preset-with-a-long-name"
    lines = {"gda": [Measure(60, 60, 60), Measure(61, 61, 61)]}
    svg = parsed(series([label, "b"], lines, name="n", x_title="x", y_title="y"))
    nodes = svg.findall("g[@class='axis x']/text")
    assert [node.text for node in nodes] == ["a-preset-with-a…", "b"]
    assert [node.findtext("title") for node in nodes] == [label, None]
    assert shortened("sixteen letters!") == "sixteen letters!"

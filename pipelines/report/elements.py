"""What the report page is made of: sections, tables and panels as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from cliad.pipelines.report.charts import css_class
from cliad.pipelines.report.methods import Method
from cliad.pipelines.report.statistics import Summary

MOST_CHARTS = 12  # panels of one kind in one block
MOST_COLUMNS = 9  # of a table that is printed in the usual size
NO_BREAK = "\u00a0"  # a space at which no line breaks


def section(name: str, title: str, *parts: str) -> str:
    """A section of the page; nothing where all parts are empty."""
    body = "".join(parts)
    if not body:
        return ""
    return f'<section id="{name}"><h2>{title}</h2>\n{body}</section>\n'


def html_table(
    heads: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    caption: str = "",
    n_name: int = 1,
    kind: str = "",
) -> str:
    """A table of ready HTML cells, which scrolls in itself where it is too wide.

    Args:
        n_name: how many of the first columns are names; they stand to the left.
        kind: a class for the style sheet.
    """
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    rows = "".join(map(_row, lines))
    classes = [f"names{n_name}"]
    if kind:
        classes.append(kind)
    # On paper, which does not scroll, such a table is printed smaller.
    if len(heads) > MOST_COLUMNS:
        classes.append("wide")
    title = f"<caption>{caption}</caption>" if caption else ""
    table = (
        f'<table class="{" ".join(classes)}">{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    # With tabindex, the arrow keys scroll it too.
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _row(line: Sequence[str]) -> str:
    """A line of a table; its first cell is its head."""
    first, *others = line
    cells = "".join(f"<td>{text}</td>" for text in others)
    return f'<tr><th scope="row">{first}</th>{cells}</tr>\n'


def mean_and_deviation(cell: Summary | None) -> str:
    """`95.1 ± 0.3` as HTML: mean and standard deviation."""
    if cell is None:
        return "–"
    return _plus_minus(cell.mean, cell.std)


def mean_and_interval(cell: Summary) -> str:
    """`95.1 ± 0.7` as HTML: mean and half its 95 % interval."""
    return _plus_minus(cell.mean, cell.half)


def _plus_minus(mean: float, spread: float | None) -> str:
    text = f"{100 * mean:.1f}"
    if spread is None:
        return text
    return f"{text}<small> ±{NO_BREAK}{100 * spread:.1f}</small>"


def selection(method: Method) -> str:
    """How a method's hyper-parameters were chosen."""
    if method.selected_on == "fixed":
        return "fixed hyper-parameters"
    return f"selected on {escape(method.selected_on)}"


def distinct_names(methods: Sequence[Method]) -> list[str]:
    """Names of methods; they say how a method was selected where its head stands twice."""
    heads = [method.head for method in methods]
    names = []
    for method in methods:
        name = method.label
        if heads.count(method.head) > 1:
            name += f" (selected: {method.selected_on})"
        names.append(name)
    return names


def figure(title: str, chart: str) -> str:
    """A chart with its title."""
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>"


def legend(names: Sequence[str], *, first_is_dashed: bool = False) -> str:
    """The names of a chart's lines, in its colours."""
    keys = []
    for number, name in enumerate(names):
        style = css_class(number, dashed=first_is_dashed and number == 0)
        keys.append(f'<span><span class="key {style}"></span>{escape(name)}</span> ')
    return f'<p class="legend">{"".join(keys)}</p>'


def panel_group(
    title: str, names: Sequence[str], panels: Sequence[str], *, first_is_dashed: bool = False
) -> str:
    """Panels of one kind with their legend; many of them fold away."""
    if not panels:
        return ""
    shown = "".join(panels[:MOST_CHARTS])
    group = (
        f"<h3>{title}</h3>{legend(names, first_is_dashed=first_is_dashed)}"
        f'<div class="panels">{shown}</div>'
    )
    hidden = panels[MOST_CHARTS:]
    if hidden:
        group += folded(len(hidden), f'<div class="panels">{"".join(hidden)}</div>')
    return group


def folded(count: int, body: str) -> str:
    """Something that is shown on demand; `count` says how much it is."""
    return f"<details><summary>{count} more</summary>{body}</details>"

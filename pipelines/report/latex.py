"""The tables of a study for a paper, in LaTeX with booktabs."""

from __future__ import annotations

from cliad.pipelines.report.notes import notes_of
from cliad.pipelines.report.study import Study
from cliad.pipelines.report.tables import Table, percent, tables

ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    # After the end of a line of a table, these would be an option and a variant of that end.
    "[": "{[}",
    "*": "{*}",
    "\n": " ",
    "\r": " ",
}
LEGEND = (
    r"Test accuracy in \%, mean $\pm$ standard deviation over seeds; best in bold, $^{\approx}$"
    r" within its 95\,\% interval."
)
# Formats of one cell by its mark.
MARKED_CELL = {"best": r"\textbf{{{}}}", "tie": r"{}$^{{\approx}}$", "": "{}"}
# The sign between mean and deviation.
PLUS_MINUS = r"{\scriptsize$\pm$}"


def latex(study: Study) -> str:
    """All tables; needs \\usepackage{booktabs}."""
    parts = ["% needs \\usepackage{booktabs}"]
    for note in notes_of(study):
        # A name with a line break would end the comment.
        one_line = _escape(" ".join(note.split()))
        parts.append(f"% {one_line}")
    parts += map(_table, tables(study))
    return "\n\n".join(parts) + "\n"


def _escape(text: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in text)


def _table(table: Table) -> str:
    columns = list(map(_escape, table.columns))
    # The method and how it was selected to the left, numbers to the right.
    alignment = "ll" + "r" * len(columns)
    lines = [
        r"\begin{table}[t]\centering",
        rf"\caption{{{_escape(table.title)}. {LEGEND}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        _line(["Method", "selected on", *columns]),
        r"\midrule",
    ]
    for number, line in enumerate(table.lines):
        cells = [_escape(line.method.label), _escape(line.method.selected_on)]
        for cell, mark in zip(line.cells, table.marks(number), strict=True):
            # LaTeX makes a dash of two hyphens, in any encoding of the file.
            text = percent(cell, PLUS_MINUS).replace("–", "--")
            cells.append(MARKED_CELL[mark].format(text))
        lines.append(_line(cells))
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"

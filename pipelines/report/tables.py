"""Tables of a study as Markdown, LaTeX and CSV: method by shots for each data set, method by data set for each shots."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cliad.pipelines.report.across import ACROSS_LEAD, ACROSS_TITLE, across
from cliad.pipelines.report.statistics import Summary
from cliad.pipelines.report.study import Block, Method, Study, best_of, show_shots
from cliad.pipelines.report.versus import VERSUS_LEAD, VERSUS_TITLE, caution, versus_tables


@dataclass(frozen=True)
class Table:
    """A title, column names, and a line of cells for each method."""

    title: str
    corner: str
    columns: Sequence[str]
    methods: Sequence[Method]
    cells: Sequence[Sequence[Summary | None]]

    def mark(self, line: int, column: int) -> str:
        """ "best", "tie" (inside the best one's 95 % interval) or ""."""
        cell, of_column = self.cells[line][column], [cells[column] for cells in self.cells]
        best = best_of(of_column)
        if cell is None or best is None or len(self.methods) < 2:
            return ""
        return "best" if line == best else "tie" if cell.within(of_column[best]) else ""


def tables(study: Study) -> Iterator[Table]:
    """All tables of a study, block by block."""
    for block in study.blocks:
        yield from by_shots(study, block)
        if len(study.datasets(block)) > 1:
            yield from by_dataset(study, block)


def by_shots(study: Study, block: Block) -> Iterator[Table]:
    """Method x shots: one table for each data set, and one for their average."""
    shots, methods = study.shots(block), study.methods(block)
    names = [str(n) for n in shots]
    for dataset in study.datasets(block):
        cells = [[study.cell(block, dataset, method, n) for n in shots] for method in methods]
        yield _without_empty(Table(f"{dataset} ({block})", "shots", names, methods, cells))
    if len(study.datasets(block)) > 1:
        cells = [[study.average(block, method, n) for n in shots] for method in methods]
        yield _without_empty(
            Table(
                f"Average over {len(study.datasets(block))} data sets ({block})",
                "shots",
                names,
                methods,
                cells,
            )
        )


def by_dataset(study: Study, block: Block) -> Iterator[Table]:
    """Method x data set and average: one table for each number of shots."""
    datasets, methods = study.datasets(block), study.methods(block)
    for n in study.shots(block):
        cells = [
            [
                *(study.cell(block, name, method, n) for name in datasets),
                study.average(block, method, n),
            ]
            for method in methods
        ]
        yield _without_empty(
            Table(f"{show_shots(n)} ({block})", "data set", [*datasets, "Average"], methods, cells)
        )


def _without_empty(table: Table) -> Table:
    kept = [i for i, cells in enumerate(table.cells) if any(cells)]
    return Table(
        table.title,
        table.corner,
        table.columns,
        [table.methods[i] for i in kept],
        [table.cells[i] for i in kept],
    )


def percent(cell: Summary | None, plus: str = "±") -> str:
    """`95.1 ± 0.3`: mean and standard deviation in %."""
    if cell is None:
        return "–"
    return f"{100 * cell.mean:.1f}" + ("" if cell.std is None else f" {plus} {100 * cell.std:.1f}")


LEGEND = "Test accuracy in %, mean ± standard deviation over seeds. Best in bold; ≈ lies within the best one's 95 % interval."


def markdown(study: Study) -> str:
    parts = [
        LEGEND,
        "\n".join(f"- {_md(note)}" for note in study.notes),
        *_md_versus(study),
        *_md_across(study),
    ]
    for table in tables(study):
        lines = []
        for i, method in enumerate(table.methods):
            marks = {"best": "**{}**", "tie": "≈ {}", "": "{}"}
            cells = [
                marks[table.mark(i, j)].format(percent(cell))
                for j, cell in enumerate(table.cells[i])
            ]
            lines.append([_md(method.label), _md(method.selected_on), *cells])
        parts.append(
            _md_table(table.title, [table.corner, "selected on", *table.columns], lines, names=2)
        )
    return "\n\n".join(parts) + "\n"


def _md(text) -> str:
    return (
        str(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
    )


def _md_table(
    title: str, heads: Sequence[str], lines: Sequence[Sequence[str]], *, names: int
) -> str:
    rows = [[*map(_md, heads)], ["---"] * names + ["---:"] * (len(heads) - names), *lines]
    return f"### {_md(title)}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _md_versus(study: Study) -> Iterator[str]:
    """Whether the best head is better than the next one."""
    found = versus_tables(study)
    if found:
        yield f"## {VERSUS_TITLE}\n\n{VERSUS_LEAD} {caution(found)}"
    text = lambda one: (
        "–"
        if one is None
        else f"{_md(one.names)}: {one.points}{f', {_md(one.verdict)}' if one.verdict else ''}"
    )
    for block, table in found.items():
        heads = ["data set", *map(show_shots, study.shots(block))]
        yield _md_table(
            str(block),
            heads,
            [[_md(title), *map(text, line)] for title, line in table.items()],
            names=len(heads),
        )


def _md_across(study: Study) -> Iterator[str]:
    """Heads with several encoders, or several prompt sets, side by side."""
    for i, found in enumerate(across(study)):
        if i == 0:
            yield f"## {ACROSS_TITLE}\n\n{ACROSS_LEAD}"
        mark = lambda cell, best: f"**{percent(cell)}**" if best else percent(cell)
        lines = [
            [
                _md(line.head),
                _md(line.value),
                _md(line.selected_on),
                *map(mark, line.cells, line.best),
            ]
            for line in found.lines
        ]
        yield _md_table(
            found.title,
            ["head", found.column, "selected on", *map(str, found.shots)],
            lines,
            names=3,
        )


TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
TEX |= {c: "\\" + c for c in "&%$#_{}"}


def latex(study: Study) -> str:
    """booktabs tables; needs \\usepackage{booktabs}."""
    escape = lambda text: "".join(TEX.get(c, c) for c in str(text).replace("\n", " "))
    parts = [
        "% needs \\usepackage{booktabs}",
        *(f"% {' '.join(note.split())}" for note in study.notes),
    ]
    legend = r"Test accuracy in \%, mean $\pm$ standard deviation over seeds; best in bold, $^{\approx}$ within its 95\,\% interval."
    for table in tables(study):
        head = " & ".join(["Method", "selected on", *map(escape, table.columns)])
        lines = [r"\begin{table}[t]\centering", rf"\caption{{{escape(table.title)}. {legend}}}"]
        lines += [
            rf"\begin{{tabular}}{{ll{'r' * len(table.columns)}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
        ]
        for i, method in enumerate(table.methods):
            marks = {"best": r"\textbf{{{}}}", "tie": r"{}$^{{\approx}}$", "": "{}"}
            texts = [
                percent(cell, r"{\scriptsize$\pm$}").replace("–", "--") for cell in table.cells[i]
            ]
            cells = [marks[table.mark(i, j)].format(text) for j, text in enumerate(texts)]
            lines.append(
                " & ".join([escape(method.label), escape(method.selected_on), *cells]) + r" \\"
            )
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]))
    return "\n\n".join(parts) + "\n"


def as_csv(study: Study) -> str:
    """One line a cell: for spreadsheets and scripts; fractions."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    words = [
        "encoder",
        "prompts",
        "protocol",
        "dataset",
        "shots",
        "head",
        "setting",
        "selected_on",
        "n_seed",
    ]
    writer.writerow([*words, "top1_mean", "top1_std", "top1_ci95_half", "mark"])
    for block in study.blocks:
        average = f"{block.source} -> average" if block.source else "average"
        for table, dataset in zip(
            by_shots(study, block), [*study.datasets(block), average], strict=False
        ):
            for i, method in enumerate(table.methods):
                setting = " ".join(f"{name}={value}" for name, value in method.setting)
                for j, cell in enumerate(table.cells[i]):
                    if cell is not None:
                        where = [
                            block.encoder,
                            block.prompts,
                            block.protocol,
                            dataset,
                            table.columns[j],
                        ]
                        numbers = [
                            "" if value is None else f"{value:.6f}"
                            for value in (cell.mean, cell.std, cell.half)
                        ]
                        writer.writerow(
                            [
                                *where,
                                method.head,
                                setting,
                                method.selected_on,
                                cell.n,
                                *numbers,
                                table.mark(i, j),
                            ]
                        )
    return out.getvalue()


FORMATS = {"md": markdown, "latex": latex, "csv": as_csv}

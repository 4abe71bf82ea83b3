"""A study as one HTML page that needs nothing else: no network, no fonts, light and dark, for phone, screen and paper."""

from __future__ import annotations

import shlex
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import combinations

from cliad import __version__
from cliad.pipelines.report.charts import scatter, series
from cliad.pipelines.report.elements import (
    CSS,
    SCRIPT,
    figure,
    html_table,
    legend,
    panel_group,
    percent,
    section,
)
from cliad.pipelines.report.statistics import Summary
from cliad.pipelines.report.study import Block, Method, Study, show, show_shots, size_of
from cliad.pipelines.report.summary import across_blocks, summary
from cliad.pipelines.report.tables import Table, by_dataset, by_shots


def page(study: Study) -> str:
    """The whole page."""
    sections = [
        summary(study),
        _accuracy(study),
        across_blocks(study),
        _ablations(study),
        _tables(study),
    ]
    sections += [_reliability(study), _time(study), _reproduce(study), _all_rows(study)]
    datasets = sorted({row["source"] or row["dataset"] for row in study.rows})
    title = f"{', '.join(datasets[:4])}{' and more' if len(datasets) > 4 else ''}: few-shot results"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<style>{CSS}</style></head>\n<body><main><h1>{escape(title)}</h1>\n"
        f"{''.join(sections)}<footer>{len(study.rows)} runs; made by cliad {__version__}.</footer></main>\n<script>{SCRIPT}</script></body></html>\n"
    )


def _name(method: Method) -> str:
    return escape(method.label)


def _point(cell: Summary | None) -> tuple[float, float, float] | None:
    half = (cell.half or 0) if cell else 0
    return cell and (
        100 * cell.mean,
        100 * max(cell.mean - half, 0),
        100 * min(cell.mean + half, 1),
    )


def _accuracy(study: Study) -> str:
    """Accuracy against shots: a panel for each data set, the average first; zero-shot is the star at 0."""
    parts = []
    for block in study.blocks:
        methods, shots = study.leading(block), study.shots(block)
        if all(method.head == "zero-shot" for method in methods):
            continue
        methods = [method for method in methods if method.head != "zero-shot"]
        names, panels = ["zero-shot", *_distinct(methods)], []
        datasets = study.datasets(block)
        zeros = {name: study.zero_shot(block, name) for name in datasets}
        if len(datasets) > 1:
            cells = {
                name: [study.average(block, m, n) for n in shots]
                for name, m in zip(names[1:], methods, strict=True)
            }
            zero = statistics.fmean(zeros.values()) if None not in zeros.values() else None
            panels.append(_curve(f"Average over {len(datasets)} data sets", shots, cells, zero))
        for dataset in datasets:
            cells = {
                name: [study.cell(block, dataset, m, n) for n in shots]
                for name, m in zip(names[1:], methods, strict=True)
            }
            panels.append(_curve(dataset, shots, cells, zeros[dataset]))
        parts.append(
            panel_group(escape(str(block)), names, [panel for panel in panels if panel], dashed=0)
        )
    note = "<p>Each head with the setting nearest to its defaults. Bars are 95 % intervals over seeds; zero-shot is the star at 0.</p>"
    return section("accuracy", "Accuracy against shots", *([note] if parts else []), *parts)


def _distinct(methods: Sequence[Method]) -> list[str]:
    """Names of methods; the way of selecting is said where a head stands with both."""
    twice = {
        method.head for method in methods if sum(other.head == method.head for other in methods) > 1
    }
    return [
        method.label + (f" (selected: {method.selected_on})" if method.head in twice else "")
        for method in methods
    ]


def _curve(
    title: str,
    shots: Sequence[int],
    cells: Mapping[str, Sequence[Summary | None]],
    zero: float | None,
) -> str:
    if not any(cell for line in cells.values() for cell in line):
        return ""
    level = None if zero is None else (100 * zero,) * 3
    lines = {"zero-shot": [level] * (len(shots) + 1)} | {
        name: [None, *map(_point, line)] for name, line in cells.items()
    }
    chart = series(
        ["0", *map(str, shots)],
        lines,
        name=f"Accuracy against shots, {title}",
        x_title="shots per class",
        y_title="accuracy (%)",
        star="zero-shot" if level else "",
    )
    return figure(escape(title), chart)


def _ablations(study: Study) -> str:
    """For each head and hyper-parameter that varies: accuracy against its value, all else at the reference setting."""
    parts = []
    for block in study.blocks:
        for reference in study.leading(block):
            varying = [name for name, _ in reference.setting]
            family = [
                m
                for m in study.methods(block)
                if (m.head, m.selected_on) == (reference.head, reference.selected_on)
            ]
            for name in varying:
                parts.append(
                    _ablation(
                        study,
                        block,
                        reference,
                        name,
                        [m for m in family if _differs_only(m, reference, {name})],
                    )
                )
            for pair in combinations(varying, 2):
                parts.append(
                    _heat(
                        study,
                        block,
                        reference,
                        pair,
                        [m for m in family if _differs_only(m, reference, set(pair))],
                    )
                )
    return section("ablations", "Ablations", *parts)


def _way(method: Method) -> str:
    return (
        "fixed hyper-parameters"
        if method.selected_on == "fixed"
        else f"selected on {escape(method.selected_on)}"
    )


def _differs_only(method: Method, reference: Method, names: set[str]) -> bool:
    a, b = dict(method.setting), dict(reference.setting)
    return a.keys() == b.keys() and all(a[name] == b[name] for name in a.keys() - names)


def _ablation(
    study: Study, block: Block, reference: Method, name: str, family: Sequence[Method]
) -> str:
    family = sorted(family, key=lambda m: size_of(dict(m.setting)[name]))
    if len(family) < 2:
        return ""
    shots = study.shots(block)
    xs, names, panels = [show(dict(m.setting)[name]) for m in family], [*map(show_shots, shots)], []
    datasets = study.datasets(block)
    many = [f"Average over {len(datasets)} data sets"] if len(datasets) > 1 else []
    for title in [*many, *datasets]:
        cell = lambda m, n, title=title: (
            study.average(block, m, n) if title in many else study.cell(block, title, m, n)
        )
        lines = {
            label: [_point(cell(m, n)) for m in family]
            for label, n in zip(names, shots, strict=True)
        }
        lines = {
            label: line if sum(map(bool, line)) > 1 else [None] * len(line)
            for label, line in lines.items()
        }
        if any(point for line in lines.values() for point in line):
            text = f"Accuracy against {name} of {reference.head}, {title}"
            panels.append(
                figure(
                    escape(title),
                    series(xs, lines, name=text, x_title=name, y_title="accuracy (%)"),
                )
            )
    others = ", ".join(f"{key} {show(value)}" for key, value in reference.setting if key != name)
    title = f"{escape(name)} of {escape(reference.head)}<small> {escape(str(block))}; {_way(reference)}{escape('; ' + others if others else '')}</small>"
    return panel_group(title, names, panels)


def _heat(
    study: Study, block: Block, reference: Method, pair: tuple[str, str], family: Sequence[Method]
) -> str:
    """Accuracy where two hyper-parameters vary, at the most shots, over all data sets."""
    row_values, column_values = (
        [*sorted({dict(m.setting)[name] for m in family}, key=size_of)] for name in pair
    )
    if min(len(row_values), len(column_values)) < 2:
        return ""
    n = study.shots(block)[-1]
    mean = {
        tuple(dict(m.setting)[name] for name in pair): study.average(block, m, n) for m in family
    }
    have = [cell.mean for cell in mean.values() if cell]
    if len(have) < 2:
        return ""
    low, high = min(have), max(have)

    def shade(cell: Summary | None) -> str:
        share = 0 if cell is None or high == low else (cell.mean - low) / (high - low)
        text = "–" if cell is None else f"{100 * cell.mean:.1f}"
        return f'<span class="heat" style="--share:{share:.2f}">{text}</span>'

    lines = [
        [f"{escape(show(a))}", *(shade(mean.get((a, b))) for b in column_values)]
        for a in row_values
    ]
    heads = [f"{escape(pair[0])} ↓ {escape(pair[1])} →", *(escape(show(b)) for b in column_values)]
    sets = (
        f", average over {len(study.datasets(block))} data sets"
        if len(study.datasets(block)) > 1
        else f", {study.datasets(block)[0]}"
    )
    title = escape(f"{pair[0]} and {pair[1]} of {reference.head}")
    below = escape(f"{show_shots(n)}{sets}; {block}; ") + _way(reference)
    return f"<h3>{title}<small> {below}</small></h3>" + html_table(heads, lines, kind="heatmap")


def _tables(study: Study) -> str:
    """Method by shots and method by data set, all settings."""
    parts = []
    for block in study.blocks:
        sets = study.datasets(block)
        every = [*by_shots(study, block), *(by_dataset(study, block) if len(sets) > 1 else ())]
        made = [_method_table(table) for table in every if table.methods]
        open_first = " open" if sum(len(table.methods) for table in every) <= 60 else ""
        parts.append(
            f"<details{open_first}><summary>{escape(str(block))}: {len(made)} table{'s' * (len(made) > 1)}</summary>{''.join(made)}</details>"
        )
    note = "<p>Test accuracy in %, mean ± standard deviation over seeds. Best in bold; ≈ lies within the best one's 95 % interval.</p>"
    return section("tables", "Tables", note, *parts)


def _method_table(table: Table) -> str:
    marks = {"best": "<b>{}</b>", "tie": "≈\u00a0{}", "": "{}"}
    lines = [
        [
            _name(method),
            escape(method.selected_on),
            *(
                marks[table.mark(i, j)].format(percent(cell))
                for j, cell in enumerate(table.cells[i])
            ),
        ]
        for i, method in enumerate(table.methods)
    ]
    columns = [escape(name).replace("_", "_<wbr>") for name in table.columns]
    return html_table(
        [escape(table.corner), "selected on", *columns], lines, caption=escape(table.title), names=2
    )


def _reliability(study: Study) -> str:
    """Accuracy against confidence at the most shots, all data sets and seeds of a block together."""
    parts = []
    for block in study.blocks:
        n = study.shots(block)[-1]
        methods = [m for m in study.leading(block) if _bins(study, block, m, n)]
        methods.sort(
            key=lambda m: m.head == "zero-shot"
        )  # last: all others have the colour of their curve of accuracy
        if methods:
            lines = {
                name: _bins(study, block, m, n)
                for name, m in zip(_distinct(methods), methods, strict=True)
            }
            names = {"x_title": "confidence (%)", "y_title": "accuracy (%)", "diagonal": "perfect"}
            chart = scatter(
                lines, name=f"Accuracy against confidence, {block}, {show_shots(n)}", **names
            )
            errors = [
                _calibration_line(study, block, name, m, n)
                for name, m in zip(_distinct(methods), methods, strict=True)
            ]
            heads = ["method", "ECE", "ECE, temperature-scaled", "NLL"]
            table = html_table(
                heads, errors, caption=f"Calibration, {escape(str(block))}, {show_shots(n)}"
            )
            panel = figure(show_shots(n), chart)
            parts.append(
                f"<h3>{escape(str(block))}</h3>{legend(['perfect', *lines], dashed=0)}<div class='panels'>{panel}<div>{table}</div></div>"
            )
    note = "<p>How often a prediction is right, against how sure the head was: 15 bins of confidence over all test images, before temperature scaling; bins with fewer than 5 images are left out.</p>"
    return section("reliability", "Calibration", *([note] if parts else []), *parts)


def _bins(study: Study, block: Block, method: Method, shots: int) -> list[tuple[float, float]]:
    total = defaultdict(lambda: [0.0, 0.0, 0.0])
    for (at, _, of, n), rows in study.cells.items():
        for count, confidence, right in (
            bins
            for row in rows
            for bins in row.get("reliability") or ()
            if (at, of, n) == (block, method, shots)
        ):
            bin = total[min(int(confidence * 15), 14)]
            bin[0], bin[1], bin[2] = (
                bin[0] + count,
                bin[1] + count * confidence,
                bin[2] + count * right,
            )
    return [
        (100 * c / count, 100 * r / count)
        for _, (count, c, r) in sorted(total.items())
        if count >= 5
    ]


def _calibration_line(
    study: Study, block: Block, name: str, method: Method, shots: int
) -> list[str]:
    rows = [
        row
        for key, of in study.cells.items()
        if (key[0], key[2], key[3]) == (block, method, shots)
        for row in of
    ]
    mean = lambda word: (
        statistics.fmean(v)
        if (v := [row[word] for row in rows if row.get(word) is not None])
        else None
    )
    text = lambda value, form: "–" if value is None else form.format(value)
    ece, scaled = (text(mean(word), "{:.1%}").replace("%", "\u00a0%") for word in ("ece", "ece_t"))
    return [escape(name), ece, scaled, text(mean("nll"), "{:.3f}")]


def _time(study: Study) -> str:
    """Training seconds per run, by head and shots; a run that is scored on other data sets too counts once."""
    runs, seconds = [row for row in study.rows if not row["source"]], defaultdict(list)
    for row in runs:
        if row.get("train_seconds") is not None:
            seconds[row["head"], row["shots"]].append(row["train_seconds"])
    if not seconds:
        return ""
    mean = {key: statistics.fmean(values) for key, values in seconds.items()}
    shots, top = sorted({key[1] for key in mean}), max(mean.values()) or 1
    bar = lambda value: (
        f'<span class="bar" style="--share:{value / top:.3f}">{_seconds(value)}</span>'
    )
    lines = [
        [escape(head), *(bar(mean[head, n]) if (head, n) in mean else "–" for n in shots)]
        for head in dict.fromkeys(key[0] for key in mean)
    ]
    total = sum(row.get("train_seconds") or 0 for row in runs)
    devices = ", ".join(sorted({str(row.get("device", "?")) for row in runs}))
    note = f"<p>Mean training time of a run; a run of a group has the group's time divided by its runs. All {len(runs)} runs: {_seconds(total)} on {escape(devices)}.</p>"
    return section("time", "Time", note, html_table(["head", *map(show_shots, shots)], lines))


def _seconds(value: float) -> str:
    return (
        f"{value / 60:.1f} min"
        if value >= 120
        else f"{value:.3g} s"
        if value >= 1
        else f"{1000 * value:.3g} ms"
    )


def _reproduce(study: Study) -> str:
    """The commands that make these rows, and the ids of what they were made from."""
    commands = "\n".join(
        dict.fromkeys(line for block in study.blocks for line in _commands(study, block))
    )
    prints = sorted(
        {(row["dataset"], row["encoder"], row["prompts"], row["fingerprint"]) for row in study.rows}
    )
    versions = sorted(
        {
            ", ".join(f"{k} {v}" for k, v in row["versions"].items())
            for row in study.rows
            if row.get("versions")
        }
    )
    heads = ["data set", "encoder", "prompts", "fingerprint"]
    table = html_table(
        heads, [[escape(str(word)) for word in line] for line in prints], names=4, caption="Caches"
    )
    made = f"<p>Made with {escape('; '.join(versions))}.</p>" if versions else ""
    return section(
        "reproduce", "How to reproduce", f'<pre tabindex="0">{escape(commands)}</pre>', table, made
    )


def _commands(study: Study, block: Block) -> Iterator[str]:
    """`cliad grid` lines for the rows of a block: one for each head, way of selecting and hyper-parameters set; they cover all of them."""
    rows = [row for key, of in study.cells.items() if key[0] == block for row in of]
    by_head = defaultdict(list)
    for row in rows:
        by_head[row["head"], row["selected_on"], tuple(sorted(row["hyper"]))].append(row)
    for (head, select, names), of in by_head.items():
        listed = {
            name: [show(value) for value in sorted({row["hyper"][name] for row in of}, key=size_of)]
            for name in names
        }
        words = (
            [("dataset", "source"), ("test", "test_dataset")]
            if block.source
            else [("dataset", "dataset")]
        )
        words += [
            ("encoder", "encoder"),
            ("prompts", "prompts"),
            ("shots", "shots"),
            ("seeds", "seed"),
        ]
        parts = ["cliad", "grid", "--head", head, "--protocol", block.protocol, "--select", select]
        for option, word in words:
            found = sorted({row[word] for row in of})
            parts += [f"--{option}", ",".join(str(value).split(" (")[0] for value in found)]
        for name, values in listed.items():
            text = ",".join(values)
            parts += (
                [f"--{name}", text]
                if name in ("alpha", "beta", "lr", "epochs", "hidden")
                else ["--set", f"{name}={text}"]
            )
        yield shlex.join(parts)


COLUMNS = (
    *(
        ("data set", "dataset"),
        ("encoder", "encoder"),
        ("prompts", "prompts"),
        ("head", "head"),
        ("setting", ""),
        ("shots", "shots"),
    ),
    *(
        ("seed", "seed"),
        ("protocol", "protocol"),
        ("selected on", "selected_on"),
        ("top-1 %", "top1"),
        ("zero-shot %", "zero_shot_top1"),
    ),
    *(
        ("class mean %", "mean_class"),
        ("ECE %", "ece"),
        ("NLL", "nll"),
        ("seconds", "train_seconds"),
        ("fingerprint", "fingerprint"),
    ),
)


def _all_rows(study: Study) -> str:
    """Every row; the page's script sorts and filters it."""
    lines = [[escape(_row_text(study, row, word)) for _, word in COLUMNS] for row in study.rows]
    tool = '<p class="tool"><label>Filter <input type="search" id="filter" placeholder="words, all must occur"></label> <span id="count"></span></p>'
    return section(
        "rows",
        "All runs",
        tool,
        html_table([name for name, _ in COLUMNS], lines, names=5, kind="rows"),
    )


def _row_text(study: Study, row: dict, word: str) -> str:
    if not word:
        return ", ".join(
            f"{name} {show(value)}"
            for name, value in {**dict(study.method(row).setting), **row["hyper"]}.items()
        )
    value = row.get(word)
    if value is None:
        return "–"
    if word in ("top1", "zero_shot_top1", "mean_class", "ece"):
        return f"{100 * value:.2f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

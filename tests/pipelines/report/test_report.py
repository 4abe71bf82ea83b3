"""The verb `report`: numbers, tables, and a page that a browser shows without complaint."""

import base64
import csv
import io
import json
import re
import statistics
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import pytest
from browser import complaints, set_media, set_size
from conftest import result_row, toy_cache

from cliad.pipelines.experiments.grid import grid
from cliad.pipelines.experiments.results_file import RowsError
from cliad.pipelines.report.clean_rows import study_of
from cliad.pipelines.report.notes import notes_of
from cliad.pipelines.report.report import ReportError, read_study, report
from cliad.pipelines.report.statistics import paired, summarise

EVIL = "<script>alert(1)</script>&\"'|_$%"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A grid over two data sets, three heads, two axes."""
    folder = tmp_path_factory.mktemp("report")
    for seed, name in enumerate(("pets", "flowers")):
        toy_cache(folder / "caches", dataset=name, noise=1.2, seed=seed)
    words = {
        "dataset": "pets,flowers",
        "head": "zero-shot,clip-adapter",
        "alpha": "0,0.2,0.6",
        "hidden": "D/4,D/2",
        "shots": "1,4",
    }
    grid(folder=folder / "caches", words=words | {"epochs": "4"}, out=folder / "r.jsonl")
    words = {
        "dataset": "pets,flowers",
        "head": "linear-probe",
        "shots": "1,4",
        "set": {"max_iter": 10},
    }
    grid(folder=folder / "caches", words=words, out=folder / "r.jsonl")
    return folder / "r.jsonl"


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_mean_and_interval():
    found = summarise([0.5, 0.6, 0.7])
    assert (
        found.mean == pytest.approx(0.6)
        and found.std == pytest.approx(0.1)
        and found.half == pytest.approx(4.302653 * 0.1 / 3**0.5)
    )
    assert summarise([0.5]).half is None and paired([0.5, 0.6], [0.4, 0.5]).mean == pytest.approx(
        0.1
    )
    assert (
        summarise([0.45]).within(found)
        and not summarise([0.3]).within(found)
        and not found.within(summarise([0.7]))
    )


def test_csv_holds_the_means_of_the_rows(results):
    cells = list(csv.DictReader(io.StringIO(report([results], form="csv"))))
    rows = rows_of(results)
    picked = [
        r["top1"]
        for r in rows
        if (r["dataset"], r["shots"], r["alpha"], r["hyper"].get("hidden"))
        == ("pets", 4, 0.6, "D/4")
    ]
    (cell,) = [
        c
        for c in cells
        if c["dataset"] == "pets" and c["shots"] == "4" and c["setting"] == "alpha=0.6 hidden=D/4"
    ]
    assert (
        float(cell["top1_mean"]) == pytest.approx(statistics.mean(picked), abs=1e-6)
        and cell["n_seed"] == "3"
    )
    assert {c["dataset"] for c in cells} == {"pets", "flowers", "average"}
    assert sum(c["mark"] == "best" for c in cells) == 6


def test_tables_for_papers(results):
    text = report([results], form="md")
    assert (
        "### 4 shots" in text
        and "| shots | selected on | 1 | 4 |" in text
        and "**" in text
        and "±" in text
        and "Average" in text
    )
    tex = report([results], form="latex")
    assert (
        tex.count(r"\begin{tabular}") == 5 == tex.count(r"\bottomrule")
        and r"\textbf{" in tex
        and "–" not in tex
    )


def test_rows_that_may_not_be_compared_are_not_mixed(tmp_path):
    rows = [
        result_row(seed=s, top1=0.5, protocol=p, selected_on=o)
        for s in (1, 2)
        for p in ("coop", "tip")
        for o in ("fixed", "val")
    ]
    rows += [result_row(seed=s, top1=0.9, fingerprint="g") for s in (1, 2)]
    study = read_study([write(tmp_path / "r.jsonl", rows)], print)
    assert all(
        len({(r["protocol"], r["selected_on"], r["fingerprint"]) for r in cell}) == 1
        for cell in study.cells.values()
    )
    assert len(study.cells) == 5 and all(len(cell) == 2 for cell in study.cells.values())
    text = report([tmp_path / "r.jsonl"], form="md")
    assert (
        "2 protocols (coop, tip)" in text and "lines of their own" in text and "fingerprint" in text
    )
    assert "2 protocols" in report([tmp_path / "r.jsonl"])


def test_rows_of_other_test_sets_stand_apart(tmp_path):
    other = {
        "test_fingerprint": "g",
        "top1": 0.1,
        "zero_shot_top1": 0.05,
        "reliability": [[9, 0.5, 0.1]],
        "train_seconds": 60.0,
    }
    own = {"reliability": [[9, 0.5, 0.5]], "train_seconds": 60.0}
    rows = [result_row(seed=s, dataset=name, **own) for s in (1, 2) for name in ("d", "e")]
    rows += [
        result_row(seed=s, test_dataset=name, **other)
        for s in (1, 2)
        for name in ("v2", "sketch", "d")
    ]
    path = write(tmp_path / "r.jsonl", rows)
    study = read_study([path], print)
    plain, shifted = study.blocks
    assert study.datasets(plain) == ["d", "e"] and study.datasets(shifted) == [
        "d -> d",
        "d -> sketch",
        "d -> v2",
    ]
    (method,) = study.methods(plain)
    assert study.average(plain, method, 1).mean == 0.5 and study.average(
        shifted, method, 1
    ).mean == pytest.approx(0.1)
    assert study.zero_shot(plain, "d") == 0.4 and study.zero_shot(shifted, "d -> v2") == 0.05
    assert any("A -> B: trained on A" in note for note in notes_of(study))
    cells = {
        c["dataset"]: float(c["top1_mean"])
        for c in csv.DictReader(io.StringIO(report([path], form="csv")))
    }
    assert cells == {"d": 0.5, "e": 0.5, "average": 0.5} | dict.fromkeys(
        ("d -> d", "d -> sketch", "d -> v2", "d -> average"), 0.1
    )
    assert r"d -\textgreater{} v2" in report([path], form="latex") and "### d -> v2 (e, " in report(
        [path], form="md"
    )
    page = report([path])
    assert (
        "d -&gt; sketch" in page
        and "--dataset d --test d,sketch,v2" in page
        and "All 4 runs: 4.0 min" in page
    )


def test_two_caches_of_one_test_set_are_told_apart():
    rows = [
        result_row(seed=s, test_dataset="v2", test_fingerprint=p, top1=t)
        for s in (1, 2)
        for p, t in (("g", 0.1), ("h", 0.2))
    ]
    study = study_of([*rows, result_row()])
    assert (
        study.datasets(study.blocks[1]) == ["d -> v2 (f -> g)", "d -> v2 (f -> h)"]
        and len(study.rows) == 5
    )


def test_a_diverged_run_leaves_no_mean_and_a_repeated_one_counts_once():
    rows = [
        result_row(seed=1),
        result_row(seed=2, top1=None, diverged=True),
        result_row(seed=1, shots=2, top1=0.1),
        result_row(seed=1, shots=2, top1=0.3),
    ]
    study = study_of(rows)
    (block,), (method,) = study.blocks, study.methods(study.blocks[0])
    assert (
        study.cell(block, "d", method, 1) is None and study.cell(block, "d", method, 2).mean == 0.3
    )
    assert any("diverged" in note for note in notes_of(study)) and any(
        "repeat" in note for note in notes_of(study)
    )


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.scripts, self.addresses = 0, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.addresses += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "action") or name.startswith("on")
        ]


def test_names_in_rows_are_harmless(tmp_path):
    hyper = {"alpha": 0.2, EVIL: EVIL}
    rows = [
        result_row(
            dataset=EVIL,
            encoder=EVIL,
            prompts=EVIL,
            head=head,
            seed=s,
            hyper=hyper | {"beta": b},
            protocol=EVIL,
            device=EVIL,
            fingerprint=EVIL,
        )
        for s in (1, 2)
        for b in (1, 2)
        for head in (EVIL, "clip-adapter")
    ]
    rows = [
        r
        | {
            "versions": {EVIL: EVIL},
            "reliability": [[9, 0.5, 0.4]],
            "train_seconds": 0.1,
            "selected_on": EVIL,
        }
        for r in rows
    ]
    path = write(tmp_path / "r.jsonl", rows)
    found = Tags(report([path]))
    assert found.scripts == 1 and not found.addresses
    assert "<script>" not in report([path], form="md") and "$%" not in report([path], form="latex")


@pytest.mark.parametrize(
    "text, error, said",
    [
        ("{}\n", RowsError, "line 1: it is not a result row"),
        ('{"dataset": \n{}\n', RowsError, "line 1"),
        ("", ReportError, "has no rows"),
        (
            json.dumps({"dataset": "d", "head": "h", "shots": 1, "seed": 1, "top1": 1}) + "\n",
            ReportError,
            "lacks encoder",
        ),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, text, error, said):
    (tmp_path / "r.jsonl").write_text(text)
    with pytest.raises(error) as caught:
        report([tmp_path / "r.jsonl"])
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "word, value",
    [
        ("top1", float("nan")),
        ("top1", "high"),
        ("shots", "one"),
        ("seed", "a"),
        ("hyper", None),
        ("found", "x"),
        ("dataset", 3),
        ("head", None),
        ("fingerprint", ["f"]),
        ("zero_shot_top1", "high"),
    ],
)
def test_an_invalid_value_is_one_line(tmp_path, word, value):
    (tmp_path / "r.jsonl").write_text(json.dumps(result_row() | {word: value}) + "\n")
    said = "NaN is not a number" if value != value else f"invalid {word}"
    with pytest.raises(RowsError, match=f"line 1: {said}") as caught:
        report([tmp_path / "r.jsonl"])
    assert "\n" not in str(caught.value)


def test_other_bad_input(results, tmp_path):
    with pytest.raises(ReportError, match="holds the results"):
        report([results], out=results)
    with pytest.raises(ReportError, match="did you mean latex"):
        report([results], form="latx")
    with pytest.raises(RowsError, match="there is no file"):
        report([tmp_path / "none.jsonl"])
    with pytest.raises(ReportError, match="--out"):
        report([results], out=results / "r.html")
    said = []
    (tmp_path / "torn.jsonl").write_bytes(results.read_bytes() + b'{"data')
    assert (
        report([tmp_path / "torn.jsonl"], form="csv", log=said.append)
        == report([results], form="csv")
        and "the last line is incomplete" in said[0]
    )


def test_a_folder_is_never_replaced_by_a_report(results, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("years of work")
    with pytest.raises(ReportError, match="thesis: Is a directory"):
        report([results], out=folder)
    with pytest.raises(ReportError, match="cannot write"):
        report([results], out=Path(""))
    assert (folder / "chapter.tex").read_text() == "years of work"


def test_the_page_needs_nothing_else(results):
    page = report([results])
    assert (
        not Tags(page).addresses
        and "http" not in re.sub(r"http://www\.w3\.org\S*", "", page)
        and "@import" not in page
    )


CHARTS = """return [...document.querySelectorAll('figure svg')].map(
    svg => [svg.getBoundingClientRect().width, svg.querySelectorAll('path.line').length])"""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page(browser, results, tmp_path, width, scheme):
    report([results], out=tmp_path / "r.html")
    set_media(browser, scheme)
    set_size(browser, width, 900)
    browser.get((tmp_path / "r.html").as_uri())
    ask = browser.execute_script
    assert complaints(browser) == []
    assert ask("return document.documentElement.scrollWidth") <= width
    charts = ask(CHARTS)
    assert len(charts) == 3 + 2 * 3 + 1 and all(
        drawn_width > 250 and lines for drawn_width, lines in charts
    )
    assert ask("return document.querySelectorAll('.heat').length") == 6
    assert all(
        ask(f"return document.querySelector('#{name} h2') !== null")
        for name in ("summary", "tables", "time", "reproduce", "rows")
    )
    shade = ask("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", shade)[:3])) < 200) == (scheme == "dark")
    colours = ask(
        "return [...document.querySelectorAll('figure svg .series path.line')].map(p => getComputedStyle(p).stroke)"
    )
    assert all(colour not in ("none", shade) for colour in colours)


PAPER = 720  # CSS pixels between the margins of an A4 page


def test_on_paper_all_is_shown_and_nothing_is_cut(browser, tmp_path):
    sets = [
        "caltech101",
        "stanford_cars",
        "fgvc_aircraft",
        "oxford_flowers",
        *(f"data_set_{i}" for i in range(7)),
    ]
    heads = [("clip-adapter", {"alpha": alpha}) for alpha in (0.1, 0.2, 0.3, 0.4)] + [
        ("gda", {"alpha": 1.0})
    ]
    rows = [
        result_row(
            dataset=name,
            head=head,
            hyper=hyper,
            seed=seed,
            shots=shots,
            top1=0.5 + seed / 50,
            encoder=encoder,
        )
        for name, (head, hyper), seed, shots, encoder in product(
            sets, heads, (1, 2, 3), (1, 16), ("ViT-B-32", "RN50")
        )
    ]
    report([write(tmp_path / "r.jsonl", rows)], out=tmp_path / "r.html")
    set_size(browser, PAPER, 1000)
    browser.get((tmp_path / "r.html").as_uri())
    set_media(browser, "dark", "print")
    ask = browser.execute_script
    assert ask("return document.querySelector('details:not([open])') !== null")
    assert ask("return document.documentElement.scrollWidth") <= PAPER
    assert ask(
        "return [...document.querySelectorAll('#tables table')].every(t => t.checkVisibility({contentVisibilityAuto: true}))"
    )
    charts = ask(CHARTS)
    assert charts and all(250 < drawn_width < PAPER / 2 and lines for drawn_width, lines in charts)
    assert ask("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert (
        ask("return getComputedStyle(document.querySelector('.color-1 path.line')).stroke")
        == "rgb(0, 114, 178)"
    )
    set_media(browser, "light")
    assert base64.b64decode(browser.print_page()).startswith(b"%PDF")


def test_rows_sort_and_filter(browser, results, tmp_path):
    report([results], out=tmp_path / "r.html")
    browser.get((tmp_path / "r.html").as_uri())
    ask = browser.execute_script
    column = "[...document.querySelectorAll('table.rows tbody tr:not([hidden])')].map(r => r.cells[{}].textContent)"
    press = "[...document.querySelectorAll('table.rows th button')].find(b => b.textContent == 'top-1 %').click();"
    for direction in (1, -1):
        top1 = [float(text) * direction for text in ask(press + "return " + column.format(9))]
        assert top1 == sorted(top1)
    ask(
        "const f = document.getElementById('filter'); f.value = 'pets LINEAR'; f.dispatchEvent(new Event('input'))"
    )
    assert set(ask("return " + column.format(0))) == {"pets"} and set(
        ask("return " + column.format(3))
    ) == {"linear-probe"}
    assert ask("return document.getElementById('count').textContent") == "6 of 96 runs"


def test_one_run_is_counted_in_the_singular():
    rows = [result_row(), result_row(), result_row(seed=2, top1=None, diverged=True)]
    notes = notes_of(study_of(rows))
    assert any(note.startswith("1 row repeats a run") for note in notes)
    assert any(note.startswith("1 run diverged") for note in notes)

"""Which setting stands for a head, and reports of names that would like to be more than names."""

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import fields

import pytest
from conftest import result_row

from cliad.adapters import HEADS
from cliad.pipelines.report.best_against_next import compare_best
from cliad.pipelines.report.clean_rows import study_of
from cliad.pipelines.report.csv_cells import as_csv
from cliad.pipelines.report.html import page
from cliad.pipelines.report.latex import latex
from cliad.pipelines.report.markdown import markdown
from cliad.pipelines.report.methods import Method, show, size_of
from cliad.pipelines.report.notes import notes_of
from cliad.pipelines.report.report import ReportError, report
from cliad.pipelines.report.reproduce import reproduce
from cliad.pipelines.report.zero_shot_settings import equals_zero_shot


def adapter_rows(alphas, head="clip-adapter", **words):
    """A row for each alpha; the nearer alpha is to 0.6, the better."""
    rows = []
    for alpha in alphas:
        top1 = round(0.7 - abs(alpha - 0.6) / 10, 6)
        for seed in (1, 2):
            setting = {"hyper": {"alpha": alpha}, "found": {"alpha": alpha}}
            rows.append(result_row(head=head, top1=top1, seed=seed, **setting, **words))
    return rows


def leading(rows):
    study = study_of(rows)
    return [method.label for method in study.leading(study.blocks[0])]


# ------------------------------------------------------------------------------ nearest in value


def test_the_nearest_value_stands_for_a_head_and_never_zero_shot():
    # The default is 0.2; 0 differs from it by less than 0.5 does.
    assert leading(adapter_rows((0, 0.25, 0.5, 0.75, 1))) == ["clip-adapter, alpha 0.25"]
    assert leading(adapter_rows((0, 0.5, 1))) == ["clip-adapter, alpha 0.5"]
    # Nothing but zero-shot: no setting stands for the head.
    assert leading(adapter_rows((0,)) + adapter_rows((0,), "taskres")) == []


@pytest.mark.parametrize(
    "head, name, nearer, farther",
    [
        ("clip-adapter", "alpha", 0.1, 0.4),  # from 0 to 1: differences count
        ("gda", "alpha", 8.0, 0.1),  # its search leads over decades: ratios count
        ("gda", "alpha", None, 1.0),  # the natural scale is the default
        ("tip-adapter", "alpha", 2.0, 0.3),
        ("linear-probe", "C", 10.0, 0.01),
        ("clip-adapter", "lr", 0.002, 0.0003),
        ("clip-adapter", "lr", 0.03, 0.0),
        ("clip-adapter", "hidden", "D/8", "D/32"),
        ("clip-adapter", "branch", "visual", "text"),
        ("clip-adapter", "epochs", 30, 100),  # None: 43 passes
        ("taskres", "epochs", 100, 10),  # 0: 200 passes
        ("cross-modal", "wise", 0.1, 0.5),
    ],
)
def test_distance_is_measured_on_the_scale_of_the_hyper_parameter(head, name, nearer, farther):
    near = Method(head, "fixed", ((name, nearer),))
    far = Method(head, "fixed", ((name, farther),))
    assert near.distance < far.distance


def test_all_defaults_are_at_distance_zero():
    for head, kind in HEADS.items():
        untouched = kind()
        setting = tuple((spec.name, getattr(untouched, spec.name)) for spec in fields(kind))
        assert Method(head, "fixed", setting).distance == 0


@pytest.mark.parametrize(
    "head, setting, expected",
    [
        ("clip-adapter", {"alpha": 0}, True),
        ("clip-adapter", {"alpha": 0.0, "hidden": 10**12}, True),
        ("clip-adapter", {"alpha": 0, "branch": "text"}, False),
        ("clip-adapter", {"beta": 0, "branch": "text"}, True),
        ("clip-adapter", {"alpha": 0, "beta": 0.2, "branch": "both"}, False),
        ("clip-adapter", {"alpha": 0, "beta": 0, "branch": "both"}, True),
        ("clip-adapter", {"lr": 0}, False),  # its first weights are random
        ("taskres", {"lr": 0}, True),
        ("tip-adapter-f", {"alpha": 0}, True),
        ("gda", {"alpha": 1e-4}, False),
        ("gda", {"alpha": 0}, True),
        ("gda", {"alpha": None}, False),
        ("cross-modal", {"wise": 1}, True),
        ("zero-shot", {}, False),
        ("mine", {"alpha": 0}, False),
        ("clip-adapter", {"alpha": "x"}, False),
        ("linear-probe", {"C": 1e-12}, False),
    ],
)
def test_the_head_itself_says_which_settings_are_zero_shot(head, setting, expected):
    assert equals_zero_shot(head, setting) == expected


def test_comparisons_tables_and_notes_agree_on_what_stands_for_a_head():
    rows = adapter_rows((0, 0.25, 0.5)) + adapter_rows((0, 2, 30), "tip-adapter")
    study = study_of(rows)
    found = compare_best(study, study.blocks[0], "d", 1)
    assert {found.best.label, found.other.label} == {
        "clip-adapter, alpha 0.25",
        "tip-adapter, alpha 2",
    }
    said = "stands for a head: clip-adapter, alpha 0.25; tip-adapter, alpha 2."
    zero = "Zero-shot under another name, which stands for no head: clip-adapter, alpha 0; tip-adapter, alpha 0."
    for text in (page(study), markdown(study), latex(study)):
        assert said in text
        assert zero in text
    cells = list(csv.DictReader(io.StringIO(as_csv(study))))
    standing = [(cell["head"], cell["setting"]) for cell in cells if cell["stands_for_head"]]
    assert standing == [("clip-adapter", "alpha=0.25"), ("tip-adapter", "alpha=2")]


def test_the_curve_of_a_head_is_not_the_line_of_zero_shot():
    study = study_of(adapter_rows((0, 0.25, 0.5), zero_shot_top1=0.64))
    curves = page(study).partition('<section id="accuracy">')[2].partition("</section>")[0]
    assert "clip-adapter, alpha 0.25" in curves
    assert "clip-adapter, alpha 0<" not in curves
    best = page(study).partition("clip-adapter, alpha 0.5</small>")
    assert best[1]  # the best on test is one that is not zero-shot


def test_a_head_below_zero_shot_is_noted_with_how_often():
    rows = adapter_rows((0.2,), zero_shot_top1=0.7) + adapter_rows((0.2,), dataset="e")
    assert (
        "clip-adapter is below zero-shot in 1 of 2 cells, most on d at 1 shot (-4.0 points)."
        in (notes_of(study_of(rows)))
    )
    assert "below zero-shot" not in " ".join(notes_of(study_of(adapter_rows((0.2,)))))


# ------------------------------------------------------------------------------ names from outside


@pytest.mark.parametrize(
    "name", ["=1+1", "+1", "-1", "@SUM(1)", "\tx", "\rx", "=cmd|' /C calc'!A0"]
)
def test_no_cell_of_a_csv_table_is_a_formula(name):
    words = dict.fromkeys(("dataset", "encoder", "prompts", "protocol", "selected_on"), name)
    study = study_of([result_row(head=name, **words)])
    (cells,) = csv.DictReader(io.StringIO(as_csv(study), newline=""))
    for word in (*words, "head"):
        assert cells[word] == "'" + name


def test_markup_in_names_is_text_in_every_format():
    name = "<script>x</script>[l](http://x)`$a$`|\\[*"
    study = study_of([result_row(dataset=name, head=name, encoder=name) for _ in range(2)])
    assert "<script>x" not in page(study)
    text = markdown(study)
    assert "<script>" not in text
    assert r"&lt;script>x&lt;/script>\[l\](http://x)\`\$a\$\`\|\\\[\*" in text
    assert r"{[}l](http://x)`\$a\$`|\textbackslash{}{[}{*}" in latex(study)


def test_control_characters_reach_no_page_and_no_terminal(tmp_path):
    row = result_row(dataset="d\x1b[31m\u202e", hyper={"a\x1b": "\x1b"}, versions={"\x1b": "\x1b"})
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
    for form in ("html", "md", "latex", "csv"):
        text = report([tmp_path / "r.jsonl"], form=form)
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_the_command_that_reproduces_names_a_data_set_whole():
    rows = [result_row(dataset="cars (196)"), result_row(dataset="cars (196)", fingerprint="g")]
    assert "--dataset &#x27;cars (196)&#x27; --encoder" in reproduce(study_of(rows))


def test_a_value_is_shown_with_all_its_digits():
    assert [show(value) for value in (0.2, 1e-3, 0.1234567891, 3, 1e300)] == [
        "0.2",
        "0.001",
        "0.1234567891",
        "3",
        "1e+300",
    ]
    assert size_of("²")[0] == 2
    assert size_of("D/²")[0] == 2


# ------------------------------------------------------------------------------ places


@pytest.mark.parametrize("name", ["", "..", "pipe", "file/r.html", "a\0b"])
def test_a_place_for_a_report_is_tried_before_rows_are_read(tmp_path, monkeypatch, name):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ReportError, match="give another file with --out FILE"):
        report([tmp_path / "none.jsonl"], out=tmp_path / name if name else tmp_path.parent / "..")
    assert sorted(tmp_path.iterdir()) == before


FULL_DISK = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
from cliad.pipelines.report.report import report
report([Path(sys.argv[1])], out=Path(sys.argv[2]))
"""


def test_a_report_that_finds_no_room_leaves_the_old_one_as_it_was(tmp_path):
    pytest.importorskip("resource", reason="limits of files are POSIX")
    rows = tmp_path / "r.jsonl"
    rows.write_text(json.dumps(result_row()) + "\n")
    page_file = tmp_path / "r.html"
    page_file.write_text("the old page")
    command = [sys.executable, "-c", FULL_DISK, str(rows), str(page_file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "ReportError: cannot write" in done.stderr
    assert page_file.read_text() == "the old page"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["r.html", "r.jsonl"]

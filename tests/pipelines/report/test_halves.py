"""Rows of base-to-new in reports: apart from all others, and by what is known of the new classes."""

from conftest import result_row

from cliad.pipelines.report.best_against_next import compare_best
from cliad.pipelines.report.clean_rows import study_of
from cliad.pipelines.report.csv_cells import as_csv
from cliad.pipelines.report.html import page
from cliad.pipelines.report.markdown import markdown
from cliad.pipelines.report.notes import notes_of


def halves_row(**words):
    """A row of base-to-new as the command prints it, of four shots."""
    of_halves = {
        "task": "base-to-new",
        "shots": 4,
        "top1": None,
        "zero_shot_top1": None,
        "base_top1": 0.9,
        "new_top1": 0.6,
        "harmonic": 0.72,
        "zero_shot_harmonic": 0.5,
        "new_shots": 0,
    }
    return result_row(**of_halves | words)


def mixed():
    """The same run over all classes and in halves, and heads with images of the new classes."""
    return [
        result_row(shots=4, top1=0.8),
        halves_row(),
        halves_row(head="prototype", new_shots=4, harmonic=0.81),
        halves_row(head="meta-adapter", new_shots=4, harmonic=0.82, selected_on="val"),
        halves_row(head="meta-adapter", new_shots=2, harmonic=0.77),
    ]


def test_heads_with_images_of_new_classes_meet_no_head_without_them():
    study = study_of(mixed())
    found = {}
    for key, rows in study.cells.items():
        known = {(row.get("task"), row.get("new_shots")) for row in rows}
        found.setdefault(key.block.protocol, set()).update(known)
    assert found == {
        "coop": {(None, None)},
        "coop (base to new)": {("base-to-new", 0)},
        "coop (base to new, new classes with images)": {("base-to-new", 4)},
        "coop (base to new, 2 images of each new class)": {("base-to-new", 2)},
    }
    assert study.repeated == 0


def test_no_comparison_of_the_best_head_goes_across_it():
    study = study_of(mixed())
    names = [compare_best(study, block, "d", 4).names for block in study.blocks]
    assert names == [
        "clip-adapter over zero-shot",
        "clip-adapter over zero-shot",
        "meta-adapter over zero-shot",
        "meta-adapter (selected on val) over prototype",
    ]
    assert "meta-adapter over clip-adapter" not in markdown(study)


def test_the_accuracy_of_halves_is_their_harmonic_mean():
    study = study_of(mixed())
    by_protocol = {row["protocol"]: row for row in study.rows if row["head"] == "clip-adapter"}
    assert by_protocol["coop"]["top1"] == 0.8
    assert by_protocol["coop (base to new)"]["top1"] == 0.72
    assert by_protocol["coop (base to new)"]["zero_shot_top1"] == 0.5
    assert "0.72" in as_csv(study)
    (note,) = [note for note in notes_of(study) if "harmonic mean" in note]
    assert "not comparable" in note
    (note,) = [note for note in notes_of(study_of([halves_row()])) if "harmonic mean" in note]
    assert "not comparable" not in note


def test_a_run_in_halves_that_diverged_has_no_mean():
    study = study_of([halves_row(harmonic=None, diverged=True)])
    assert any("1 run diverged" in note for note in notes_of(study))


def test_the_command_of_a_run_in_halves_is_written_out():
    text = page(study_of([halves_row(hyper={"lr": 0.01}, head="meta-adapter", new_shots=4)]))
    assert (
        "cliad train --base-to-new --head meta-adapter --protocol coop --select fixed --dataset d"
        " --encoder e --prompts p --shots 4 --seed 1 --set lr=0.01"
    ) in text

"""Notes: what a reader of a report has to know of its rows, a sentence each."""

from __future__ import annotations

from collections.abc import Iterator

from cliad.pipelines.experiments.spec import TRANSDUCTIVE
from cliad.pipelines.report.clean_rows import IN_HALVES
from cliad.pipelines.report.methods import ZERO_SHOT, Method, show_shots
from cliad.pipelines.report.study import Block, Study, values_of

# Words of which each value makes blocks of its own, and how they are called in a sentence.
WORDS = {"protocol": "protocols", "encoder": "encoders", "prompts": "prompt sets"}
MOST_NAMES = 4  # of settings in one note


def notes_of(study: Study) -> list[str]:
    """The notes on a study, how the rows were cleaned first."""
    notes = []
    if study.repeated:
        rows = "1 row repeats" if study.repeated == 1 else f"{study.repeated} rows repeat"
        notes.append(f"{rows} a run that stands further down; the last one counts.")
    if study.several_caches:
        notes.append(
            "A data set with several caches stands once for each, with the cache's fingerprint."
        )
    if any(row["source"] for row in study.rows):
        notes.append(
            "A -> B: trained on A, scored on the test split of B; such rows stand in tables of"
            " their own, outside the average of all others."
        )
    if any(row["protocol"].endswith(TRANSDUCTIVE) for row in study.rows):
        notes.append(
            "Transductive: heads saw all test images at once, without labels, and took their"
            " classes to come in like number. Such accuracies are not comparable with those of"
            " heads that see one image at a time, and stand in tables and curves of their own."
        )
    notes += _halves(study)
    notes += _several_blocks(study)
    if len(values_of(study.rows, "selected_on")) > 1:
        notes.append(
            "Some runs use fixed hyper-parameters, others chose them on validation images (val) or"
            " by folds of the training images (cv): they stand in lines of their own."
        )
    diverged = _count_diverged(study)
    if diverged:
        runs = "1 run" if diverged == 1 else f"{diverged} runs"
        notes.append(f"{runs} diverged; a cell with one of them shows no mean.")
    # The summary shows the best setting, which only the test set tells apart from the others.
    if study.varying:
        notes.append(
            "Where a head stands with several settings, the best of them on test is chosen with"
            " knowledge of the test set: a comparison, not a result."
        )
        notes += _stand_ins(study)
    notes += _zero_shot_settings(study)
    notes += _below_zero_shot(study)
    notes.append(_seed_counts(study))
    return notes


def _halves(study: Study) -> list[str]:
    """What the accuracies of base-to-new are, and which of them may be compared."""
    if not any(IN_HALVES in row["protocol"] for row in study.rows):
        return []
    note = (
        "Base to new: trained on half of the classes; the accuracy is the harmonic mean of those on"
        " either half, each among its own classes."
    )
    if any(row.get("new_shots") for row in study.rows):
        note += (
            " Heads that have labelled images of the new classes are not comparable with those that"
            " have their texts alone, and stand in tables and curves of their own."
        )
    return [note]


def _stand_ins(study: Study) -> list[str]:
    """Which setting stands for a head that has several, a note for each block that differs."""
    notes: dict[str, list[str]] = {}
    for block in study.blocks:
        labels = [_named(method) for method in study.leading(block) if method.setting]
        if labels:
            notes.setdefault("; ".join(labels), []).append(str(block))
    texts = []
    for names, blocks in notes.items():
        where = f" ({'; '.join(blocks)})" if len(notes) > 1 else ""
        texts.append(
            "In curves and comparisons, the setting nearest to its defaults in value stands for a"
            f" head{where}: {names}."
        )
    return texts


def _named(method: Method) -> str:
    if method.selected_on == "fixed":
        return method.label
    return f"{method.label} (selected on {method.selected_on})"


def _zero_shot_settings(study: Study) -> list[str]:
    """A note on settings that are zero-shot under the name of another head."""
    labels = [_named(method) for method in sorted(study.zero_shot_settings, key=Method.sort_key)]
    if not labels:
        return []
    shown = "; ".join(labels[:MOST_NAMES])
    if len(labels) > MOST_NAMES:
        shown += f"; and {len(labels) - MOST_NAMES} more"
    return [f"Zero-shot under another name, which stands for no head: {shown}."]


def _below_zero_shot(study: Study) -> list[str]:
    """A note for each head that does worse than without training, with how often and where most."""
    notes = []
    for block in study.blocks:
        for method in study.leading(block):
            losses = list(_losses(study, block, method))
            below = [loss for loss in losses if loss[0] < 0]
            if not below:
                continue
            loss, where = min(below)
            text = (
                f"{_named(method)} is below zero-shot in {len(below)} of {len(losses)} cells,"
                f" most on {where} ({100 * loss:+.1f} points)."
            )
            if len(study.blocks) > 1:
                text = f"{block}: {text}"
            notes.append(text)
    return notes


def _losses(study: Study, block: Block, method: Method) -> Iterator[tuple[float, str]]:
    """How much better than zero-shot a method is in each cell, and the cell's name."""
    if method.head == ZERO_SHOT.head:
        return
    for dataset in study.datasets(block):
        zero_shot = study.zero_shot(block, dataset)
        for shots in study.shots(block):
            cell = study.cell(block, dataset, method, shots)
            if cell is not None and zero_shot is not None:
                # Rounded, as a mean of equal accuracies may differ from them in the last bit.
                yield round(cell.mean - zero_shot, 9), f"{dataset} at {show_shots(shots)}"


def _count_diverged(study: Study) -> int:
    count = 0
    for row in study.rows:
        # Rows of other tools may say it in one of these ways only.
        if row.get("diverged") or row["top1"] is None:
            count += 1
    return count


def _several_blocks(study: Study) -> list[str]:
    """A note for each word of which the rows have several values."""
    notes = []
    for word, plural in WORDS.items():
        values = values_of(study.rows, word)
        if len(values) > 1:
            notes.append(
                f"The rows are of {len(values)} {plural} ({', '.join(values)}): each has tables"
                " and curves of its own."
            )
    return notes


def _seed_counts(study: Study) -> str:
    counts = sorted(set(map(len, study.cells.values())))
    if counts == [1]:
        return "Each cell is one seed: there is no spread and no interval."
    if len(counts) > 1:
        return f"Cells have between {counts[0]} and {counts[-1]} seeds."
    return f"Each cell is the mean of {counts[0]} seeds."

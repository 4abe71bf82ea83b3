"""Notes: what a reader of a report has to know of its rows, a sentence each."""

from __future__ import annotations

from cliad.pipelines.report.study import Study, values_of

# Words of which each value makes blocks of its own, and how they are called in a sentence.
WORDS = {"protocol": "protocols", "encoder": "encoders", "prompts": "prompt sets"}


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
    notes += _several_blocks(study)
    if len(values_of(study.rows, "selected_on")) > 1:
        notes.append(
            "Some runs use fixed hyper-parameters, others chose them on validation images: they"
            " stand in lines of their own."
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
    notes.append(_seed_counts(study))
    return notes


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

"""Comparisons in a report: the best head against the next over the same seeds, and encoders or prompt sets side by side."""

import statistics

import pytest
from conftest import result_row
from scipy import stats

from cliad.pipelines.report.across_blocks import side_by_side
from cliad.pipelines.report.best_against_next import compare_best, comparison_tables
from cliad.pipelines.report.clean_rows import study_of
from cliad.pipelines.report.html import page
from cliad.pipelines.report.markdown import markdown

A, B = (0.70, 0.80, 0.75), (0.69, 0.73, 0.70)


def runs(head, values, seeds=None, **words):
    """A row for each value, with seeds 1, 2, ... and draws of the same names."""
    seeds = seeds or range(1, len(values) + 1)
    return [
        result_row(head=head, top1=v, seed=s, index_hash=f"h{s}", **words)
        for v, s in zip(values, seeds, strict=True)
    ]


def only(rows, dataset="d", shots=1):
    study = study_of(rows)
    (block,) = study.blocks
    return compare_best(study, block, dataset, shots)


def test_the_best_head_is_paired_with_the_next_over_the_same_seeds():
    found = only(runs("gda", A) + runs("clip-adapter", B) + runs("tip-adapter", (0.6, 0.6, 0.6)))
    low, high = stats.ttest_rel(A, B).confidence_interval()
    assert found.names == "gda over clip-adapter" and found.gain.mean == pytest.approx(
        statistics.fmean(A) - statistics.fmean(B)
    )
    assert (found.gain.mean - found.gain.half, found.gain.mean + found.gain.half) == (
        pytest.approx(low),
        pytest.approx(high),
    )
    assert found.points == f"{100 * found.gain.mean:+.2f} ± {100 * found.gain.half:.2f}"


@pytest.mark.parametrize("b", [B, (0.66, 0.75, 0.71), (0.5, 0.61, 0.55), A])
def test_an_interval_with_zero_in_it_is_said_in_words(b):
    rows = runs("gda", A) + runs("clip-adapter", b)
    found, includes = only(rows), b == A or stats.ttest_rel(A, b).pvalue >= 0.05
    assert (found.verdict == "interval includes zero") == includes
    for text in (page(study_of(rows)), markdown(study_of(rows))):
        assert (
            text.count("interval includes zero") == 1 + includes and found.points in text
        )  # the text above it has the words too
        assert "with 3 seeds half of it is 2.5 standard deviations" in text


def test_one_seed_has_no_interval_and_says_so():
    rows = runs("gda", [0.7]) + runs("clip-adapter", [0.6])
    assert (only(rows).points, only(rows).verdict) == ("+10.00", "one seed, no interval")
    assert "with one seed there is none" in markdown(study_of(rows))


def test_the_next_is_another_head_not_another_setting_or_way_of_selecting():
    rows = runs("clip-adapter", A, hyper={"alpha": 0.2}) + runs(
        "clip-adapter", B, hyper={"alpha": 0.9}
    )
    rows += runs("clip-adapter", B, selected_on="val", hyper={"alpha": 0.2}) + runs(
        "gda", (0.6, 0.6, 0.6), selected_on="val"
    )
    assert only(rows).names == "clip-adapter, alpha 0.2 over gda (selected on val)"


def test_zero_shot_takes_part_without_runs_of_its_own():
    assert only(runs("gda", A)).names == "gda over zero-shot" and only(
        runs("gda", A)
    ).gain.mean == pytest.approx(0.35)
    worse = only(runs("gda", (0.3, 0.3, 0.2)) + runs("clip-adapter", (0.2, 0.2, 0.2)))
    assert worse.names == "zero-shot over gda" and worse.gain.mean == pytest.approx(0.4 - 0.8 / 3)
    assert (
        only(runs("zero-shot", (0.4, 0.4, 0.4))) is None
        and only(runs("gda", A, zero_shot_top1=None)) is None
    )


@pytest.mark.parametrize(
    "other",
    [
        runs("clip-adapter", B, seeds=(1, 2, 4)),
        runs("clip-adapter", B[:2]),
        runs("clip-adapter", B, shots=1)[:2],
    ],
)
def test_other_seeds_are_not_compared(other):
    found = only(runs("gda", A) + other)
    assert (found.gain, found.points, found.verdict) == (None, "–", "not the same seeds and images")


def test_other_images_and_diverged_runs_are_not_compared():
    other = [row | {"index_hash": "x"} for row in runs("clip-adapter", B)]
    assert only(runs("gda", A) + other).gain is None
    assert (
        only(runs("gda", A) + runs("clip-adapter", (0.9, None, 0.9))).names == "gda over zero-shot"
    )


@pytest.mark.parametrize("word", ["encoder", "prompts", "protocol"])
def test_only_rows_of_one_block_are_compared(word):
    study = study_of(
        runs("gda", A)
        + runs("clip-adapter", B)
        + runs("tip-adapter", (0.9, 0.9, 0.9), **{word: "other"})
    )
    names = [
        one.names
        for table in comparison_tables(study).values()
        for line in table.values()
        for one in line
    ]
    assert sorted(names) == ["gda over clip-adapter", "tip-adapter over zero-shot"]


def test_over_data_sets_the_averages_are_compared_seed_by_seed():
    rows = (
        runs("gda", A)
        + runs("clip-adapter", B)
        + runs("gda", (0.9, 0.8, 0.9), dataset="e")
        + runs("clip-adapter", A, dataset="e")
    )
    found = only(rows, dataset=None)
    gain = [(a - b + c - d) / 2 for a, b, c, d in zip(A, B, (0.9, 0.8, 0.9), A, strict=True)]
    assert found.gain.mean == pytest.approx(
        statistics.fmean(gain)
    ) and found.gain.std == pytest.approx(statistics.stdev(gain))
    assert "Average over 2 data sets" in next(iter(comparison_tables(study_of(rows)).values()))
    assert (
        only(
            rows
            + runs("gda", A, dataset="f", seeds=(1, 2, 9))
            + runs("clip-adapter", B, dataset="f", seeds=(1, 2, 9)),
            None,
        )
        is None
    )
    assert "seeds, not over data sets" in markdown(
        study_of(rows)
    ) and "seeds, not over data sets" not in markdown(study_of(runs("gda", A)))


@pytest.mark.parametrize("word, name", [("encoder", "encoder"), ("prompts", "prompt set")])
def test_encoders_and_prompt_sets_stand_side_by_side(word, name):
    rows = [
        row
        for value, plus in (("one", 0), ("two", 0.1))
        for row in runs("gda", [a + plus for a in A], **{word: value})
    ]
    rows += runs("clip-adapter", B, **{word: "one"})
    (found,) = side_by_side(study_of(rows))
    assert (
        found.title.startswith(f"Accuracy by {name}: d (")
        and found.column == name
        and found.shots == [1]
    )
    lines = {(line.head, line.value): (line.cells[0].mean, line.best[0]) for line in found.lines}
    mean = statistics.fmean(A)
    zero = {("zero-shot", "one"): (0.4, True), ("zero-shot", "two"): (0.4, False)}
    assert lines == zero | {
        ("gda", "one"): (pytest.approx(mean), False),
        ("gda", "two"): (pytest.approx(mean + 0.1), True),
    }
    for text in (page(study_of(rows)), markdown(study_of(rows))):
        assert f"Accuracy by {name}" in text and "comparison across blocks" in text


def test_blocks_that_differ_in_more_than_one_word_stand_apart():
    rows = (
        runs("gda", A) + runs("gda", A, encoder="f", prompts="q") + runs("gda", A, protocol="tip")
    )
    assert not list(side_by_side(study_of(rows))) and "across blocks" not in page(study_of(rows))


def test_side_by_side_stands_one_setting_that_the_encoders_share():
    rows = [
        row
        for e, alphas in (("e", (0.2, 0.6)), ("f", (0.6, 0.9)))
        for a in alphas
        for row in runs("clip-adapter", A, encoder=e, hyper={"alpha": a})
    ]
    (found,) = side_by_side(study_of(rows))
    assert [line.head for line in found.lines] == ["zero-shot"] * 2 + [
        "clip-adapter, alpha 0.6"
    ] * 2


def test_side_by_side_has_an_average_where_all_have_the_same_data_sets():
    rows = [row for e in "ef" for d in "ab" for row in runs("gda", A, encoder=e, dataset=d)]
    assert [found.title.partition(": ")[2][:8] for found in side_by_side(study_of(rows))] == [
        "average ",
        "a (promp",
        "b (promp",
    ]
    assert len(list(side_by_side(study_of(rows + runs("gda", A, encoder="e", dataset="c"))))) == 2


def test_many_tables_side_by_side_fold_away_after_the_average():
    rows = [row for e in "ef" for d in "abcdef" for row in runs("gda", A, encoder=e, dataset=d)]
    section = page(study_of(rows)).partition('<section id="across">')[2].partition("</section>")[0]
    before, folded, _ = section.partition("<details><summary>3 more</summary>")
    assert folded and "average over 6 data sets" in before and before.count("<table") == 4


def test_scores_on_other_data_sets_are_compared_among_themselves():
    rows = runs("gda", A) + runs("clip-adapter", B)
    rows += runs("gda", B, test_dataset="v2", zero_shot_top1=0.3) + runs(
        "clip-adapter", A, test_dataset="v2", zero_shot_top1=0.3
    )
    names = {
        title: line[0].names
        for table in comparison_tables(study_of(rows)).values()
        for title, line in table.items()
    }
    assert names == {"d": "gda over clip-adapter", "d -> v2": "clip-adapter over gda"}
    found = list(side_by_side(study_of(rows + [row | {"encoder": "f"} for row in rows])))
    assert [one.title for one in found] == [
        f"Accuracy by encoder: {d} (prompts p, protocol coop{t})"
        for d, t in (("d", ""), ("d -> v2", ", trained on d"))
    ]
    assert [one.lines[0].cells[0].mean for one in found] == [0.4, 0.3]


def test_a_default_that_was_typed_is_the_same_run_and_a_preset_fills_defaults_in():
    fast = {"found": {"lr": 1e-3}, "head": "clip-adapter", "seed": 1}
    rows = [result_row(**fast, hyper={}), result_row(**fast, hyper={"lr": 1e-3})]
    assert len(study_of(rows).rows) == 1
    study = study_of(
        [*rows, result_row(head="clip-adapter", seed=1, hyper={"lr": 3e-3}, found={"lr": 3e-3})]
    )
    assert [method.label for method in study.leading(study.blocks[0])] == ["clip-adapter, lr 0.001"]


def test_data_sets_with_different_seeds_are_compared_each_alone_but_not_on_average():
    rows = runs("gda", A) + runs("clip-adapter", B)
    other = {"dataset": "e", "seeds": (4, 5, 6)}
    rows += runs("gda", (0.9, 0.8, 0.9), **other) + runs("clip-adapter", A, **other)
    assert only(rows, dataset="d").gain.n == 3
    assert only(rows, dataset="e").gain.mean == pytest.approx((0.2 + 0.0 + 0.15) / 3)
    assert only(rows, dataset=None) is None
    (table,) = comparison_tables(study_of(rows)).values()
    assert list(table) == ["d", "e"]


def test_the_same_seeds_in_another_order_are_paired_seed_by_seed():
    rows = runs("gda", A, seeds=(3, 1, 2)) + runs("clip-adapter", B, seeds=(1, 2, 3))
    # seed 1: 0.80 - 0.69, seed 2: 0.75 - 0.73, seed 3: 0.70 - 0.70
    found = only(rows)
    assert found.gain.mean == pytest.approx((0.11 + 0.02 + 0.0) / 3)
    assert found.gain.std == pytest.approx(statistics.stdev([0.11, 0.02, 0.0]))


def test_on_average_a_data_set_with_other_images_is_not_compared():
    rows = runs("gda", A) + runs("clip-adapter", B)
    rows += runs("gda", A, dataset="e")
    rows += [row | {"index_hash": "x"} for row in runs("clip-adapter", B, dataset="e")]
    found = only(rows, dataset=None)
    assert (found.gain, found.verdict) == (None, "not the same seeds and images")
    assert only(rows, dataset="d").gain is not None


def test_on_average_over_data_sets_zero_shot_is_the_mean_of_each():
    rows = runs("gda", (0.3, 0.2), zero_shot_top1=0.5)
    rows += runs("gda", (0.4, 0.1), dataset="e", zero_shot_top1=0.7)
    found = only(rows, dataset=None)
    assert found.names == "zero-shot over gda"
    # seed 1: 0.6 - 0.35, seed 2: 0.6 - 0.15
    assert found.gain.mean == pytest.approx(0.35)
    assert found.gain.std == pytest.approx(statistics.stdev([0.25, 0.45]))

"""Means, intervals and paired comparisons beside scipy; calibration beside torchmetrics."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from cliad.adapters.core.metrics import calibration
from cliad.pipelines.report.statistics import Summary, paired, summarise, t_quantile


def test_mean_deviation_and_t_interval():
    values = [0.61, 0.64, 0.66]
    found = summarise(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (
        found.n == 3
        and math.isclose(found.mean, np.mean(values))
        and math.isclose(found.std, np.std(values, ddof=1))
    )
    assert math.isclose(found.mean - found.half, low) and math.isclose(
        found.mean + found.half, high
    )


def test_a_single_value_has_no_spread():
    assert (summarise([0.5]).std, summarise([0.5]).half) == (None, None)


def test_a_pair_differs_where_its_interval_leaves_out_zero():
    a, b = [0.7, 0.8, 0.75], [0.6, 0.72, 0.66]
    found = paired(a, b)
    assert (abs(found.mean) > found.half) == (stats.ttest_rel(a, b).pvalue < 0.05)


@pytest.mark.parametrize("n_class, sharp", [(3, 1.0), (10, 4.0)])
def test_calibration_error_is_torchmetrics(n_class, sharp):
    torchmetrics = pytest.importorskip(
        "torchmetrics.classification", reason="torchmetrics is not installed"
    )
    g = torch.Generator().manual_seed(0)
    logits = sharp * torch.randn(500, n_class, generator=g)
    y = torch.where(
        torch.rand(500, generator=g) < 0.6,
        logits.argmax(dim=1),
        torch.randint(n_class, (500,), generator=g),
    )
    expected = torchmetrics.MulticlassCalibrationError(n_class, n_bins=15, norm="l1")(
        logits.softmax(dim=1), y
    )
    assert math.isclose(calibration(logits, y)["ece"], expected.item(), abs_tol=1e-6)


@pytest.mark.parametrize(
    "dof, quantile",
    [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (30, 2.0423)],
)
def test_the_t_quantile_is_that_of_the_printed_table(dof, quantile):
    assert t_quantile(dof) == pytest.approx(quantile, abs=1e-4)


def test_a_summary_worked_out_on_paper():
    # mean 4, squared deviations 4 + 0 + 4, variance 8 / 2, half 4.3027 * 2 / sqrt(3)
    found = summarise([2.0, 4.0, 6.0])
    assert (found.mean, found.std, found.n) == (4.0, 2.0, 3)
    assert found.half == pytest.approx(4.9683, abs=1e-4)


def test_two_values_have_an_interval():
    # mean 1.5, deviation 1 / sqrt(2), half 12.7062 * deviation / sqrt(2)
    found = summarise([1.0, 2.0])
    assert found.std == pytest.approx(0.7071, abs=1e-4)
    assert found.half == pytest.approx(6.3531, abs=1e-4)


def test_a_pair_is_the_first_minus_the_second():
    found = paired([3.0, 5.0], [1.0, 2.0])
    assert (found.mean, found.n) == (2.5, 2)
    assert found.std == pytest.approx(0.7071, abs=1e-4)
    with pytest.raises(ValueError):
        paired([1.0, 2.0], [1.0])


@pytest.mark.parametrize("mean, tie", [(0.9, True), (0.85, True), (0.75, True), (0.74, False)])
def test_a_mean_within_the_interval_of_the_best_is_a_tie(mean, tie):
    best = Summary(0.875, 0.1, 0.125, 3)  # its interval begins at 0.75
    assert Summary(mean, 0.2, 0.5, 3).within(best) is tie


def test_nothing_ties_with_a_best_that_has_no_interval():
    assert not Summary(0.9, None, None, 1).within(Summary(0.9, None, None, 1))

"""Means, intervals and paired comparisons beside scipy; calibration beside torchmetrics."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from cliad.adapters.metrics import calibration
from cliad.pipelines.summary import paired, summarise


def test_mean_deviation_and_t_interval():
    values = [0.61, 0.64, 0.66]
    found = summarise(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert found.n == 3 and math.isclose(found.mean, np.mean(values)) and math.isclose(found.std, np.std(values, ddof=1))
    assert math.isclose(found.mean - found.half, low) and math.isclose(found.mean + found.half, high)


def test_a_single_value_has_no_spread():
    assert (summarise([0.5]).std, summarise([0.5]).half) == (None, None)


def test_a_pair_differs_where_its_interval_leaves_out_zero():
    a, b = [0.7, 0.8, 0.75], [0.6, 0.72, 0.66]
    found = paired(a, b)
    assert (abs(found.mean) > found.half) == (stats.ttest_rel(a, b).pvalue < 0.05)


@pytest.mark.parametrize("n_class, sharp", [(3, 1.0), (10, 4.0)])
def test_calibration_error_is_torchmetrics(n_class, sharp):
    torchmetrics = pytest.importorskip("torchmetrics.classification", reason="torchmetrics is not installed")
    g = torch.Generator().manual_seed(0)
    logits = sharp * torch.randn(500, n_class, generator=g)
    y = torch.where(torch.rand(500, generator=g) < 0.6, logits.argmax(dim=1), torch.randint(n_class, (500,), generator=g))
    expected = torchmetrics.MulticlassCalibrationError(n_class, n_bins=15, norm="l1")(logits.softmax(dim=1), y)
    assert math.isclose(calibration(logits, y)["ece"], expected.item(), abs_tol=1e-6)

"""Means, intervals and paired comparisons beside scipy; calibration beside torchmetrics."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from cliad.adapters.metrics import calibration
from cliad.pipelines.summary import compare, over_seeds, paired, summary


def test_mean_deviation_and_t_interval():
    values = [0.61, 0.64, 0.66]
    found = summary(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert found["n"] == 3 and math.isclose(found["mean"], np.mean(values)) and math.isclose(found["std"], np.std(values, ddof=1))
    assert math.isclose(found["mean"] - found["interval"], low) and math.isclose(found["mean"] + found["interval"], high)


def test_one_value_has_no_spread_and_a_diverged_run_is_left_out():
    assert summary([0.5]) == {"n": 1, "missing": 0, "mean": 0.5, "std": None, "interval": None}
    assert summary([0.5, None, float("nan"), 0.7])["n"] == 2 and summary([None])["mean"] is None


def test_pairs_are_of_equal_seeds():
    a, b = {1: 0.7, 2: 0.8, 3: 0.75, 4: 0.1}, {1: 0.6, 2: 0.75, 3: 0.75, 5: 0.9}
    found = paired(a, b)
    expected = stats.ttest_rel([0.7, 0.8, 0.75], [0.6, 0.75, 0.75])
    assert (found["n"], found["wins"], found["ties"], found["missing"]) == (3, 2, 1, 2) and math.isclose(found["p"], expected.pvalue)
    assert paired({1: 0.5}, {1: 0.4})["p"] is None and paired({1: 0.5, 2: 0.5}, {1: 0.5, 2: 0.5})["p"] == 1.0


def rows():
    common = {"dataset": "toy", "encoder": "e", "shots": 4}
    for head, tops in (("a", (0.5, 0.6)), ("b", (0.4, 0.5))):
        for seed, top1 in enumerate(tops, 1):
            yield common | {"head": head, "seed": seed, "index_hash": f"h{seed}", "top1": top1}


def test_rows_over_seeds_and_heads_compared():
    table = over_seeds(rows())
    assert [(line["head"], line["n"], round(line["mean"], 6)) for line in table] == [("a", 2, 0.55), ("b", 2, 0.45)]
    (line,) = compare(rows(), "a", "b")
    assert line["wins"] == 2 and math.isclose(line["mean"], 0.1)
    other = [row | ({"index_hash": "x"} if row["head"] == "b" else {}) for row in rows()]
    assert compare(other, "a", "b")[0]["n"] == 0


@pytest.mark.parametrize("n_class, sharp", [(3, 1.0), (10, 4.0)])
def test_calibration_error_is_torchmetrics(n_class, sharp):
    torchmetrics = pytest.importorskip("torchmetrics.classification", reason="torchmetrics is not installed")
    g = torch.Generator().manual_seed(0)
    logits = sharp * torch.randn(500, n_class, generator=g)
    y = torch.where(torch.rand(500, generator=g) < 0.6, logits.argmax(dim=1), torch.randint(n_class, (500,), generator=g))
    expected = torchmetrics.MulticlassCalibrationError(n_class, n_bins=15, norm="l1")(logits.softmax(dim=1), y)
    assert math.isclose(calibration(logits, y)["ece"], expected.item(), abs_tol=1e-6)

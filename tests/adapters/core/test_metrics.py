"""Metrics against torchmetrics, loops, scipy's minimiser, and numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
)

from cliad.adapters.core.metrics import (
    calibration,
    fit_temperature,
    metrics,
    reliability,
    supported_temperature,
)

N_CLASS = 9
COUNTS = (30, 1, 12, 0, 7, 25, 3, 18, 4)  # items of each class; class 3 has none


def scored(seed=0):
    """Logits (100, 9) that are right for about half of the items, and uneven labels."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.repeat_interleave(torch.arange(N_CLASS), torch.tensor(COUNTS))
    y = y[torch.randperm(len(y), generator=generator)]
    logits = 1.5 * torch.randn(len(y), N_CLASS, generator=generator)
    logits[torch.arange(len(y)), y] += 1.5
    return logits, y


def test_top1_and_top5_equal_torchmetrics():
    logits, y = scored()
    found = metrics(logits, y)
    options = {"num_classes": N_CLASS, "average": "micro"}
    for name, top in (("top1", 1), ("top5", 5)):
        theirs = multiclass_accuracy(logits, y, top_k=top, **options).item()
        assert found[name] == pytest.approx(theirs, abs=1e-6)
    for top in (3, 4, 6):
        theirs = multiclass_accuracy(logits, y, top_k=top, **options).item()
        assert abs(found["top5"] - theirs) > 0.005
    assert 0.3 < found["top1"] < found["top5"] < 1


def test_top5_of_fewer_classes_is_all_of_them():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    found = metrics(logits, torch.tensor([0, 2]))
    assert found["top1"] == 0.5 and found["top5"] == 1


def test_mean_class_is_the_mean_of_the_accuracies_of_the_classes_there_are():
    logits, y = scored()
    predicted = logits.argmax(dim=1)
    accuracies = []
    for label in range(N_CLASS):
        own = y == label
        if own.any():
            accuracies.append((predicted[own] == label).float().mean().item())
    assert len(accuracies) == N_CLASS - 1
    found = metrics(logits, y)
    assert found["mean_class"] == pytest.approx(sum(accuracies) / len(accuracies), abs=1e-6)
    assert abs(found["mean_class"] - found["top1"]) > 0.01


def test_metrics_of_four_items_are_as_worked_out_by_hand():
    logits = torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]])
    y = torch.tensor([0, 1, 1, 1])
    found = metrics(logits, y)
    assert (found["top1"], found["top5"]) == (0.5, 1.0)
    assert found["mean_class"] == pytest.approx((1 + 1 / 3) / 2)
    right = math.exp(2) / (math.exp(2) + 2)
    wrong = 1 / (math.exp(2) + 2)
    assert found["ece"] == pytest.approx(right - 0.5)
    assert found["nll"] == pytest.approx(-(math.log(right) + math.log(wrong)) / 2)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_calibration_error_equals_torchmetrics(scale):
    logits, y = scored()
    found = calibration(scale * logits, y)
    theirs = multiclass_calibration_error((scale * logits).softmax(dim=1), y, N_CLASS, n_bins=15)
    assert found["ece"] == pytest.approx(theirs.item(), abs=1e-6)
    log_p = (scale * logits).double().log_softmax(dim=1)
    total = 0.0
    for row, label in enumerate(y.tolist()):
        total -= log_p[row, label].item()
    assert found["nll"] == pytest.approx(total / len(y), rel=1e-5)


def test_reliability_is_a_loop_over_the_items():
    logits, y = scored()
    bins = {}
    for row, label in zip(logits.softmax(dim=1).tolist(), y.tolist(), strict=True):
        confidence = max(row)
        number = math.floor(confidence * 15)
        bins.setdefault(number, []).append((confidence, row.index(confidence) == label))
    expected = []
    for number in sorted(bins):
        items = bins[number]
        confidence = sum(item[0] for item in items) / len(items)
        accuracy = sum(item[1] for item in items) / len(items)
        assert abs(confidence - accuracy) > 1e-3
        expected.append([len(items), pytest.approx(confidence, abs=1e-4), accuracy])
    found = reliability(logits, y)
    assert 5 < len(expected) < 15  # bins without items are left out
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == [*theirs[:2], pytest.approx(theirs[2], abs=1e-4)]


def test_a_confidence_of_one_is_in_the_last_bin():
    logits = torch.tensor([[1000.0, 0.0], [0.0, 1000.0], [0.0, 0.0]])
    found = reliability(logits, torch.tensor([0, 0, 1]))
    assert found == [[1, 0.5, 0.0], [2, 1.0, 0.5]]
    assert calibration(logits, torch.tensor([0, 1, 1]))["ece"] == pytest.approx(0.5 / 3)


def test_the_last_bin_begins_at_fourteen_fifteenths():
    # confidences 0.9, 0.93 and 0.94, all right
    margins = torch.tensor([0.9, 0.93, 0.94]).logit()
    logits = torch.stack([margins, torch.zeros(3)], dim=1)
    found = reliability(logits, torch.tensor([0, 0, 0]))
    assert found == [[2, pytest.approx(0.915, abs=1e-4), 1.0], [1, pytest.approx(0.94), 1.0]]


def likeliest(logits, y, weight):
    """scipy's temperature of one run, by the objective written out: losses and log t's prior."""
    values = logits.double().numpy()

    def objective(log_t):
        scaled = values / math.exp(log_t)
        top = scaled.max(axis=1)
        log_sum = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        losses = log_sum - scaled[np.arange(len(y)), y]
        return (losses * weight).sum() + log_t**2 / 2

    bounds = (math.log(1e-2), math.log(1e2))
    found = minimize_scalar(objective, bounds=bounds, method="bounded", options={"xatol": 1e-10})
    return math.exp(found.x)


def test_temperatures_of_several_runs_are_the_minima_that_scipy_finds():
    runs = [scored(seed) for seed in range(4)]
    logits = torch.stack([run[0] for run in runs]).double()
    logits *= torch.tensor([0.2, 1.0, 3.0, 10.0])[:, None, None]
    y = torch.stack([run[1] for run in runs])
    weight = torch.ones(4, 100, dtype=torch.float64)
    for run, n in enumerate((100, 50, 3, 10)):
        weight[run, n:] = 0  # padding
    found = fit_temperature(logits, y, weight)
    for run in range(4):
        theirs = likeliest(logits[run], y[run].numpy(), weight[run].numpy())
        assert found[run].item() == pytest.approx(theirs, rel=1e-6)
    assert len({round(value, 2) for value in found.tolist()}) == 4
    # single precision, in which runs are scored, is good to its last digits but one
    single = fit_temperature(logits.float(), y, weight.float())
    torch.testing.assert_close(single, found.float(), rtol=3e-6, atol=0)


def test_the_last_bits_of_the_logits_change_only_those_of_the_temperature():
    """Other company in a batch and other threads change logits so."""
    runs = [scored(seed) for seed in range(20)]
    logits = torch.stack([run[0] for run in runs])
    y = torch.stack([run[1] for run in runs])
    generator = torch.Generator().manual_seed(0)
    shaken = logits * (1 + 1e-7 * torch.randn(logits.shape, generator=generator))
    assert not torch.equal(shaken, logits)
    found = fit_temperature(logits, y)
    torch.testing.assert_close(fit_temperature(shaken, y), found, rtol=3e-6, atol=0)


def test_without_weights_every_item_counts():
    logits, y = scored()
    theirs = likeliest(logits, y.numpy(), np.ones(100))
    assert fit_temperature(logits.double()[None], y[None]).item() == pytest.approx(theirs, rel=1e-6)


def test_temperatures_of_one_item_are_as_worked_out_by_hand():
    # u = log t, margin m = z / t: the loss log(1 + exp(-m)) + u^2 / 2 is flat where
    # u = -m sigmoid(-m) if the item is right, u = m sigmoid(m) if it is wrong; take m = 1
    right = math.exp(-1 / (1 + math.e))  # 0.7642
    wrong = math.exp(1 / (1 + math.exp(-1)))  # 2.0773
    logits = torch.tensor([[[right, 0.0]], [[wrong, 0.0]]], dtype=torch.float64)
    found = fit_temperature(logits, torch.tensor([[0], [1]]))
    assert found.tolist() == [pytest.approx(0.76419, abs=1e-4), pytest.approx(2.07728, abs=1e-4)]
    assert found.tolist() == [pytest.approx(right, rel=1e-6), pytest.approx(wrong, rel=1e-6)]


def test_without_any_counting_item_the_temperature_is_one():
    logits, y = scored()
    nothing = torch.zeros(1, 100, dtype=torch.float64)
    assert fit_temperature(logits.double()[None], y[None], nothing).item() == pytest.approx(1)


def test_the_temperature_lies_between_a_hundredth_and_a_hundred():
    margin = torch.tensor([1e-3, 1e3], dtype=torch.float64)
    logits = torch.zeros(2, 10_000, 2, dtype=torch.float64)
    logits[..., 0] = margin[:, None]
    y = torch.zeros(2, 10_000, dtype=torch.long)
    y[1] = 1
    assert fit_temperature(logits, y).tolist() == pytest.approx([0.01, 100.0], rel=1e-6)


def bent(seed, n, n_class=4, by=1.0):
    """Logits (n, n_class) whose labels are drawn from their own softmax, and then times `by`."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, n_class, generator=generator, dtype=torch.float64)
    y = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]
    return by * logits, y


def out_of_fold_gain(logits, y):
    """Nats that scipy's temperatures of the other folds save on each fold, in a plain loop."""
    gain = 0.0
    for fold in range(5):
        inside = torch.arange(len(y)) % 5 == fold
        t = likeliest(logits, y.numpy(), (~inside).double().numpy())
        plain = torch.nn.functional.cross_entropy(logits[inside], y[inside], reduction="sum")
        cooled = torch.nn.functional.cross_entropy(logits[inside] / t, y[inside], reduction="sum")
        gain += (plain - cooled).item()
    return gain


def test_a_temperature_is_used_only_where_it_helps_items_it_was_not_fitted_to():
    runs = []
    for seed in range(6):
        for n in (20, 60):
            runs += [bent(seed, n, by=by) for by in (1.0, 1.5, 4.0)]
    logits = torch.zeros(len(runs), 60, 4, dtype=torch.float64)
    y = torch.zeros(len(runs), 60, dtype=torch.long)
    weight = torch.zeros(len(runs), 60, dtype=torch.float64)
    for number, (own, labels) in enumerate(runs):
        logits[number, : len(labels)] = own
        y[number, : len(labels)] = labels
        weight[number, : len(labels)] = 1
    found = supported_temperature(logits, y, weight).tolist()
    used = 0
    for (own, labels), temperature in zip(runs, found, strict=True):
        # 1.92 nats: half the 95 % quantile of chi-squared with one degree of freedom, 3.84
        if out_of_fold_gain(own, labels) > 1.92:
            theirs = likeliest(own, labels.numpy(), np.ones(len(labels)))
            assert temperature == pytest.approx(theirs, rel=1e-6)
            used += 1
        else:
            assert temperature == 1
    assert 6 < used < len(runs) - 6


def test_a_few_items_that_are_all_right_do_not_make_a_run_more_certain():
    logits = torch.zeros(1, 20, 10)
    logits[0, :, 0] = 5
    y = torch.zeros(1, 20, dtype=torch.long)
    weight = torch.ones(1, 20)
    assert fit_temperature(logits, y).item() < 0.8
    assert supported_temperature(logits, y, weight).item() == 1


def test_a_run_without_two_items_has_no_temperature_of_its_own():
    logits = torch.tensor([[[9.0, 0.0], [0.0, 0.0]]])
    y = torch.tensor([[1, 0]])
    assert supported_temperature(logits, y, torch.tensor([[1.0, 0.0]])).item() == 1
    assert supported_temperature(logits, y, torch.zeros(1, 2)).item() == 1

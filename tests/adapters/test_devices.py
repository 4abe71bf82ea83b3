"""Heads on a GPU that is not there: torch traces what they do with tensors that have no values.

A tensor of such a mode knows its shape, type and device. To ask for its values is an error, as it
is a wait for the device on a real GPU; so is a product of tensors on two devices.
"""

import itertools
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import DIM, N_CLASS, ToyTower, World

from cliad.adapters import HEADS, auto
from cliad.adapters.core import lbfgs, logistic, ops, transductive
from cliad.adapters.core.calibrate import Calibration
from cliad.adapters.core.classifier import logits_of
from cliad.adapters.core.episode import Episode, stack
from cliad.adapters.core.fit import Run, fit
from cliad.adapters.core.head import Hypers
from cliad.adapters.core.metrics import supported_temperature
from cliad.adapters.core.select import fit_selected
from cliad.adapters.core.stacking import Judgement, stacking_weights

NAMES = tuple(f"class {label}" for label in range(N_CLASS))
LABELS = torch.arange(3 * N_CLASS) % N_CLASS
ROWS = torch.arange(3 * N_CLASS)
# Made here, where tensors have values.
FIRST_ROWS, LAST_ROWS = ROWS[:10], ROWS[5:]
FIRST_LABELS, LAST_LABELS = LABELS[:10], LABELS[5:]
# A head that ends by a rule on its values: L-BFGS stops where it has converged.
STOPS_BY_VALUE = {"linear-probe", "offset-lr", "whitened-lr"}
# A head that is made of others: these are traced by themselves, and what it adds to them below.
# It deals the items to folds on the host, where this mode has no values either.
MADE_OF_HEADS = {"auto"}
TRACED = sorted(set(HEADS) - STOPS_BY_VALUE - MADE_OF_HEADS)
FEW = {"epochs": 2, "steps": 3, "max_iter": 2}


@pytest.fixture
def cuda(monkeypatch):
    """The device; all tensors that are made in a test are without values.

    Without a driver, torch's engine of gradients does not run for it: a gradient is a tensor like
    its parameter here. The way back is followed on the CPU, below.
    """
    monkeypatch.setattr(torch.autograd, "grad", _like_parameters)
    with FakeTensorMode(allow_non_fake_inputs=True), FusedSgd():
        yield torch.device("cuda")


def _like_parameters(loss, parameters):
    assert loss.shape == ()
    return [torch.empty_like(parameter) for parameter in parameters]


class FusedSgd(TorchDispatchMode):
    """The one kernel that torch cannot trace: it changes its lists in place and returns nothing."""

    KERNELS = {
        torch.ops.aten._fused_sgd_.default,
        torch.ops.aten._fused_sgd_.tensor_lr,
    }

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in self.KERNELS:
            return func(*args, **(kwargs or {}))
        lists = [*args[:3], [value for value in kwargs.values() if isinstance(value, torch.Tensor)]]
        for tensor in itertools.chain(*lists):
            assert tensor.device.type == "cuda"
        return None


class NoValues(TorchDispatchMode):
    """Refuses every operation whose result, or its shape, depends on the values of a tensor."""

    REFUSED = {
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten._unique2.default,
        torch.ops.aten.bincount.default,
        torch.ops.aten.equal.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.unique_dim.default,
    }

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in self.REFUSED:
            raise DataDependentOutputException(func)
        masks = [x for x in args if isinstance(x, list)]
        if func is torch.ops.aten.index.Tensor and any(
            x is not None and x.dtype == torch.bool for x in masks[0]
        ):
            raise DataDependentOutputException(func)
        return func(*args, **(kwargs or {}))


def episodes(device, *, views):
    """Two runs over one matrix of features on the device; row numbers and labels have values."""
    n_row = len(ROWS)
    first = Episode(
        features=torch.empty(n_row, DIM, device=device),
        index=FIRST_ROWS,
        y=FIRST_LABELS,
        val_index=LAST_ROWS,
        val_y=LAST_LABELS,
        text=torch.empty(2, N_CLASS, DIM, device=device),
        logit_scale=20.0,
        seed=1,
        n_class=N_CLASS,
        views=torch.empty(2, n_row, DIM, device=device) if views else None,
        pre_projection=torch.empty(n_row, DIM + 8, device=device),
        tokens=torch.empty(n_row, 3, DIM, dtype=torch.float16, device=device),
        names=NAMES,
        tower=ToyTower(NAMES, torch.empty(N_CLASS, DIM, device=device)),
    )
    return first, replace(first, index=LAST_ROWS, y=LAST_LABELS, seed=2)


def head_of(name, **changes):
    """The head, trained for a few steps."""
    known = HEADS[name].__dataclass_fields__
    few = {key: value for key, value in FEW.items() if key in known}
    return HEADS[name](**few, **changes)


def runs_of(name, device, *, views=False):
    """Two runs of one group whose learning rates, seeds and items differ."""
    known = HEADS[name].__dataclass_fields__
    heads = [head_of(name), head_of(name, **({"lr": 0.01} if "lr" in known else {}))]
    return [Run(*pair) for pair in zip(heads, episodes(device, views=views), strict=True)]


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("name", TRACED)
def test_a_head_is_fitted_and_scored_without_asking_for_a_value(cuda, name, views):
    runs = runs_of(name, cuda, views=views)
    fitted = fit(runs, validate=True)
    for classifier in fitted:
        constants = [value for value in classifier.c.values() if isinstance(value, torch.Tensor)]
        for tensor in (*classifier.p.values(), *constants, classifier.failed):
            assert tensor.device.type == "cuda"
    widths = {"pre_projection": DIM + 8, "tokens": 3 * DIM}
    width = DIM + sum(widths[column] for column in HEADS[name].columns())
    x = torch.empty(7, width, device=cuda)
    alone = fitted[0].logits(x)
    together = logits_of(fitted, x)
    assert (alone.device.type, alone.shape) == ("cuda", (7, N_CLASS))
    assert (together.device.type, together.shape) == ("cuda", (2, 7, N_CLASS))


@pytest.mark.parametrize("name", sorted(STOPS_BY_VALUE))
def test_only_the_stopping_rule_of_lbfgs_asks_for_values(cuda, name):
    with pytest.raises(DataDependentOutputException) as caught:
        fit(runs_of(name, cuda))
    assert who_asked(caught.value) == ["lbfgs.py", "ops.py on_host"]


def who_asked(error):
    """The module that asked for a value, and what it asked through."""
    ours = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).parent.name == "core"
    ]
    *_, caller, asked = ours
    return [Path(caller.filename).name, f"{Path(asked.filename).name} {asked.name}"]


@pytest.mark.parametrize("name", TRACED)
def test_selection_asks_for_a_value_only_to_compare_its_candidates(cuda, name):
    runs = [Run(head_of(name), episode) for episode in episodes(cuda, views=False)]
    with pytest.raises(DataDependentOutputException) as caught:
        fit_selected(runs)
    assert who_asked(caught.value) == ["select.py", "ops.py on_host"]


def test_what_auto_adds_to_its_parts_asks_for_none(cuda):
    judgement = Judgement(
        torch.empty(2, 3, 7, N_CLASS, device=cuda),
        y=torch.empty(2, 7, dtype=torch.long, device=cuda),
        weight=torch.empty(2, 7, device=cuda),
    )
    weights = stacking_weights([judgement], torch.empty(3, device=cuda), 1.0)
    assert (weights.device.type, weights.shape) == ("cuda", (2, 3))
    Calibration.of(judgement.stacked(weights)[0], judgement.y[0], judgement.weight[0])

    runs = [Run(HEADS["auto"](), episode) for episode in episodes(cuda, views=False)]
    fitted = {
        name: fit([Run(head_of(name), run.episode) for run in runs])
        for name in ("text-ridge", "clip-adapter")
    }
    shares = {name: torch.empty(2, device=cuda) for name in fitted}
    p = auto._summed(fitted, shares, torch.eye(DIM, device=cuda))
    assert {value.device.type for value in p.values()} == {"cuda"}
    support, _ = stack([run.episode for run in runs], runs[0].episode.features)
    c = runs[0].head.bind(support, Hypers({}, support.x))
    logits = runs[0].head.logits(p, c, Hypers({}, support.x), support.x)
    assert (logits.device.type, logits.shape[-1]) == ("cuda", N_CLASS)


def test_temperatures_are_found_without_asking_for_a_value(cuda):
    logits = torch.empty(2, 7, N_CLASS, device=cuda)
    y = torch.empty(2, 7, dtype=torch.long, device=cuda)
    weight = torch.empty(2, 7, device=cuda)
    assert supported_temperature(logits, y, weight).device.type == "cuda"


def test_all_else_of_the_linear_probe_asks_for_none(cuda):
    x = torch.empty(2, 6, DIM, device=cuda)
    reduced, basis = logistic.reduced_basis(x)
    objective = logistic.Objective.of(
        reduced,
        onehot=torch.empty(2, 6, N_CLASS, device=cuda),
        mask=torch.empty(2, 6, device=cuda),
        C=torch.empty(2, device=cuda),
        bias_C=torch.empty(2, device=cuda),
        offset=torch.empty(2, 6, N_CLASS, device=cuda),
    )
    run = torch.empty(2, dtype=torch.long, device=cuda)
    start = objective.zeros()
    old = lbfgs._Point(start, *objective(start, run))
    new = lbfgs._Point(start + 1, *objective(start + 1, run))
    pairs = [lbfgs._Pair.between(old, new)] * 2
    metric = objective.inverse_hessian(start, run)
    step = lbfgs._inverse_hessian_times(new.grad, pairs, metric)
    w = logistic.in_full_space(step[..., :-1], basis)
    assert (w.device.type, w.shape) == ("cuda", (2, N_CLASS, DIM))
    head = HEADS["linear-probe"]()
    p = {"w": w, "b": step[..., -1]}
    logits = head.logits(p, {}, Hypers({}, x), x)
    assert (logits.device.type, logits.shape) == ("cuda", (2, 6, N_CLASS))


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("name", TRACED)
def test_a_head_is_trained_without_asking_for_a_value_on_the_way_back_either(name, views):
    world = World(n_view=2 if views else 0)
    head = head_of(name)
    runs = [Run(head, world.episode(shots=2, seed=seed)) for seed in (1, 2)]
    expected = fit(runs)
    with NoValues():
        fitted = fit(runs)
    for one, other in zip(fitted, expected, strict=True):
        assert not one.diverged
        for key, value in one.p.items():
            torch.testing.assert_close(value, other.p[key], rtol=0, atol=0)


def test_the_trace_finds_a_wait_and_a_mixture_of_devices(cuda):
    x = torch.empty(3, device=cuda)
    with pytest.raises(DataDependentOutputException):
        x.tolist()
    with pytest.raises(RuntimeError, match="two devices"):
        x + torch.empty(3)
    # a tensor that was made before, with values
    with pytest.raises(RuntimeError, match="two devices"):
        x + ROWS[:3]


def test_what_depends_on_values_is_refused_on_the_cpu_as_well():
    x = torch.arange(3.0)
    for ask in (lambda: x[0].item(), lambda: x[x > 1], lambda: x.unique(), lambda: bool(x.sum())):
        with NoValues(), pytest.raises(DataDependentOutputException):
            ask()


class LacksKernels(TorchDispatchMode):
    """What torch has on mps: no double precision, no factorisation of matrices.

    torch traces no device that it was not built for, so that cuda stands for it here.
    """

    NAMES = ("cholesky", "eigh", "linalg_qr", "linalg_svd")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in (*args, result) if isinstance(x, torch.Tensor)]
        there = [x for x in tensors if x.device.type == "cuda"]
        if any(x.dtype == torch.float64 for x in there):
            raise TypeError(f"{func}: double precision")
        if there and any(name in str(func) for name in self.NAMES):
            raise NotImplementedError(f"{func}")
        return result


@pytest.mark.parametrize("name", TRACED)
def test_a_head_works_on_a_device_that_lacks_kernels(cuda, monkeypatch, name):
    monkeypatch.setattr(ops, "LACKING", {"cuda"})
    with LacksKernels():
        fitted = fit(runs_of(name, cuda), validate=True)
    for classifier in fitted:
        constants = [value for value in classifier.c.values() if isinstance(value, torch.Tensor)]
        for tensor in (*classifier.p.values(), *constants):
            assert tensor.device.type == "cuda"


@pytest.mark.parametrize("lacking", [set(), {"cuda"}])
def test_a_batch_is_adapted_to_on_any_device_without_waiting(cuda, monkeypatch, lacking):
    monkeypatch.setattr(ops, "LACKING", lacking)
    # The one question that waits, before all else: whether all numbers are finite.
    monkeypatch.setattr(transductive, "_is_finite", taken_for_finite)
    x = torch.empty(50, DIM, device=cuda)
    labels = torch.empty(10, dtype=torch.long, device=cuda)
    with LacksKernels() if lacking else NoValues():
        logits = torch.empty(50, N_CLASS, device=cuda)
        adapted = transductive.adapt_to_batch(logits, x, x[:10], labels)
    assert (adapted.shape, adapted.device, adapted.dtype) == (
        logits.shape,
        logits.device,
        torch.float32,
    )


def taken_for_finite(values):
    return True


def test_heads_with_a_factorisation_need_the_way_round(cuda):
    for name in ("gda", "lp++", "linear-probe", "offset-lr", "text-ridge", "whitened-lr"):
        with LacksKernels(), pytest.raises((NotImplementedError, TypeError)):
            fit(runs_of(name, cuda))


@pytest.mark.parametrize(
    "name", ["gda", "linear-probe", "lp++", "text-ridge", "offset-lr", "whitened-lr", "auto"]
)
def test_the_way_round_missing_kernels_gives_the_same_numbers(monkeypatch, name):
    run = Run(head_of(name), World().episode(shots=2))
    (expected,) = fit([run])
    monkeypatch.setattr(ops, "LACKING", {"cpu"})
    (found,) = fit([run])
    x = World().test[0]
    torch.testing.assert_close(found.logits(x), expected.logits(x), rtol=0, atol=0)

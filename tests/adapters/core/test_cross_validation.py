"""`--select cv`: hyper-parameters by folds of the support, without a validation image."""

from dataclasses import fields, replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F
from worlds import World

from cliad.adapters import HEADS
from cliad.adapters.clip_adapter import ClipAdapter
from cliad.adapters.core.folds import folds_of
from cliad.adapters.core.head import HeadError
from cliad.adapters.core.select import fit_all, fit_cross_validated
from cliad.adapters.gda import Gda
from cliad.adapters.linear_probe import LinearProbe
from cliad.adapters.reg_linear import RegLinear
from cliad.adapters.tip_adapter import TipAdapter
from cliad.adapters.zero_shot import ZeroShot

HARD = World(noise=2.5)
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def quick(name):
    """The head with few steps."""
    few = {"epochs": 6, "steps": 12, "max_iter": 20}
    known = {spec.name for spec in fields(HEADS[name])}
    return HEADS[name](**{field: value for field, value in few.items() if field in known})


def poisoned(episode):
    """The episode with validation of wrong labels and of features that are no numbers."""
    features = episode.features.clone()
    features[episode.val_index] = torch.nan
    wrong = (episode.val_y + 1) % episode.n_class
    return replace(episode, features=features, val_y=wrong)


@pytest.mark.parametrize("name", HEADS)
def test_no_validation_item_is_read(name):
    head, episode = quick(name), HARD.episode(4, seed=3)
    none = replace(episode, val_index=episode.val_index[:0], val_y=episode.val_y[:0])
    x, _ = HARD.scored_on(HEADS[name])
    (expected,) = fit_cross_validated([(head, episode)])
    for other in (none, poisoned(episode)):
        (found,) = fit_cross_validated([(head, other)])
        assert found.head == expected.head
        assert torch.equal(found.logits(x), expected.logits(x))


@pytest.mark.parametrize("name", HEADS)
def test_a_run_alone_chooses_as_among_others(name):
    head = quick(name)
    x, _ = HARD.scored_on(HEADS[name])
    runs = [(head, HARD.episode(4, seed)) for seed in (3, 7)]
    for run, together in zip(runs, fit_cross_validated(runs, largest=3), strict=True):
        (alone,) = fit_cross_validated([run])
        assert alone.head == together.head
        torch.testing.assert_close(alone.logits(x), together.logits(x), **CLOSE)


def test_the_strength_with_the_least_loss_out_of_fold_wins():
    """The linear probe beside scikit-learn, fold by fold, over the powers of ten."""
    episode = HARD.episode(4, seed=5)
    head = LinearProbe(tol=1e-6, max_iter=2000)
    x = episode.features[episode.index]
    folds = folds_of(episode.y, 4, episode.seed)
    losses = {}
    for C in (1e-6, 1e-4, 1e-2, 1.0, 1e2):
        losses[C] = 0.0
        for fold in range(4):
            kept = folds != fold
            theirs = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(x[kept], episode.y[kept])
            log_p = torch.from_numpy(theirs.predict_log_proba(x[~kept]))
            losses[C] += F.nll_loss(log_p, episode.y[~kept], reduction="sum").item()
    best = min(losses, key=losses.get)
    (ours,) = fit_cross_validated([(head, episode)])
    # the bisection moves within a power of ten of the best
    assert best / 10.1 < ours.head.C < best * 10.1


def test_a_weight_that_only_logits_read_is_chosen_on_the_folds_too():
    """GDA's alpha by hand: every candidate on every fold."""
    episode = HARD.episode(4, seed=2)
    folds = folds_of(episode.y, 4, episode.seed)
    losses = {}
    for alpha in Gda().searches()["alpha"]:
        losses[alpha] = 0.0
        for fold in range(4):
            kept = folds != fold
            part = replace(episode, index=episode.index[kept], y=episode.y[kept])
            (classifier,) = fit_all([(Gda(alpha=alpha), part)])
            logits = classifier.logits(episode.features[episode.index[~kept]])
            losses[alpha] += F.cross_entropy(logits, episode.y[~kept], reduction="sum").item()
    (ours,) = fit_cross_validated([(Gda(), episode)])
    assert ours.head.alpha == min(losses, key=losses.get)


def test_what_was_chosen_is_fitted_on_the_whole_support():
    episode = HARD.episode(4, seed=2)
    (ours,) = fit_cross_validated([(RegLinear(steps=12), episode)])
    (again,) = fit_all([(ours.head, episode)])
    assert torch.equal(ours.p["residual"], again.p["residual"])


def test_what_is_given_is_not_searched():
    (ours,) = fit_cross_validated([(TipAdapter(alpha=3.0), HARD.episode(4))], given={"alpha"})
    assert ours.head.alpha == 3.0


def test_at_one_shot_heads_that_know_no_class_are_judged_by_classes_not_seen():
    (ours,) = fit_cross_validated([(ClipAdapter(epochs=6), HARD.episode(1))])
    assert ours.head.alpha in ClipAdapter().searches()["alpha"] and ours.calibration is None


@pytest.mark.parametrize("name", ["linear-probe", "tip-adapter", "meta-adapter", "taskres", "lp++"])
def test_at_one_shot_others_say_why_not(name):
    with pytest.raises(HeadError, match="nothing can be left out"):
        fit_cross_validated([(quick(name), HARD.episode(1))])


def test_at_one_shot_three_classes_cannot_be_halved():
    few = World(n_class=3)
    with pytest.raises(HeadError, match="at least 4 classes"):
        fit_cross_validated([(RegLinear(steps=2), few.episode(1))])


def test_the_temperature_is_that_of_the_folds_and_the_scores_are_of_each_item():
    """Zero-shot knows nothing of the support: its logits out of fold are its logits."""
    episode = replace(HARD.episode(4), logit_scale=200.0)  # far too sure
    (ours,) = fit_cross_validated([(ZeroShot(), episode)])
    logits = ours.logits(episode.features[episode.index])
    t = ours.calibration.temperature
    grid = torch.exp(torch.linspace(0, 4, 4001))
    losses = torch.stack(
        [F.cross_entropy(logits / one, episode.y, reduction="sum") for one in grid]
    )
    losses = losses + grid.log().square() / 2  # the prior
    assert t.item() == pytest.approx(grid[losses.argmin()].item(), rel=2e-3)
    own = (logits / t).softmax(dim=-1)[torch.arange(len(episode.y)), episode.y]
    torch.testing.assert_close(ours.calibration.scores, (1 - own).sort().values)


@pytest.mark.parametrize("name", ["gda", "clip-adapter", "linear-probe", "taskres", "auto"])
def test_a_temperature_never_raises_the_loss_it_was_found_on(name):
    episode = HARD.episode(8, seed=4)
    (ours,) = fit_cross_validated([(quick(name), episode)])
    assert ours.calibration.temperature > 0
    assert len(ours.calibration.scores) == len(episode.y)
    assert (ours.calibration.scores.diff() >= 0).all()

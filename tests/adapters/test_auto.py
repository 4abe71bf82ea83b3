"""Auto: a stack of heads whose weights are found out of fold."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.nn import functional as F
from worlds import DIM, N_CLASS, World, without

from cliad.adapters.auto import MEMBERS, OF_ONE_SHOT, Auto
from cliad.adapters.core.episode import Support
from cliad.adapters.core.fit import fit
from cliad.adapters.core.folds import class_halves, item_folds
from cliad.adapters.core.head import HeadError
from cliad.adapters.core.select import fit_all
from cliad.adapters.offset_lr import OffsetLr

WORLD = World(noise=1.5)
CLOSE = {"rtol": 1e-3, "atol": 1e-2}


def alone(member, episode):
    """A member fitted by itself."""
    seen = episode if member.takes_text else replace(episode, text=None)
    (classifier,) = fit_all([(member.head, seen)])
    return classifier


def most_probable(logits, y, prior):
    """Weights >= 0 of members' logits (m, n, k) on y (n,), by a general solver."""
    z = logits.double().numpy()

    def value(w):
        stacked = torch.from_numpy(np.einsum("m,mnk->nk", w, z))
        loss = F.cross_entropy(stacked, y, reduction="sum").item()
        return loss + (((w - prior) / prior) ** 2).sum() / 2

    bounds = [(0, None)] * len(prior)
    found = scipy.optimize.minimize(
        value, prior, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14}
    )
    return found.x


def test_its_logits_are_the_members_by_weights_of_a_general_solver():
    episode = WORLD.episode(4, seed=3)
    x = WORLD.test[0]
    judged = []
    labels = []
    for trial in item_folds(episode, 4):
        part = trial.fitted_on
        held_out = episode.features[trial.judged_on.val_index]
        said = [alone(member, part).logits(held_out) for member in MEMBERS.values()]
        judged.append(torch.stack(said))
        labels.append(trial.judged_on.val_y)
    prior = np.array([member.prior for member in MEMBERS.values()])
    w = most_probable(torch.cat(judged, dim=1), torch.cat(labels), prior)
    whole = torch.stack([alone(member, episode).logits(x) for member in MEMBERS.values()])
    expected = torch.einsum("m,mnk->nk", torch.from_numpy(w).float(), whole)
    (ours,) = fit([(Auto(), episode)])
    torch.testing.assert_close(ours.logits(x), expected, rtol=2e-2, atol=5e-2)
    assert torch.equal(ours.logits(x).argmax(dim=1), expected.argmax(dim=1))


def test_at_one_shot_members_are_judged_by_the_other_half_of_the_classes():
    episode = WORLD.episode(1, seed=3)
    x = WORLD.test[0]
    halves = class_halves(N_CLASS)
    prior = np.array([member.prior for member in OF_ONE_SHOT.values()])
    total = []
    for seen, unseen in (halves, halves[::-1]):
        chosen = torch.isin(episode.y, seen)
        others = torch.isin(episode.y, unseen)
        part = replace(
            episode,
            index=episode.index[chosen],
            y=torch.searchsorted(seen, episode.y[chosen]),
            text=episode.text[:, seen],
            n_class=len(seen),
        )
        held_out = episode.features[episode.index[others]]
        y = torch.searchsorted(unseen, episode.y[others])
        new = Support.of_text(episode.text[:, unseen], 20.0)
        said = [alone(member, part).rebind(new).logits(held_out) for member in OF_ONE_SHOT.values()]
        total.append((torch.stack(said).double(), y))

    def value(w):
        loss = sum(
            F.cross_entropy(torch.einsum("m,mnk->nk", torch.from_numpy(w), z), y, reduction="sum")
            for z, y in total
        )
        return loss.item() + (((w - prior) / prior) ** 2).sum() / 2

    bounds = [(0, None)] * len(prior)
    w = scipy.optimize.minimize(value, prior, bounds=bounds, options={"ftol": 1e-14}).x
    said = {name: alone(member, episode).logits(x) for name, member in OF_ONE_SHOT.items()}
    (offset,) = fit_all([(OffsetLr(), episode)])
    said["clip-adapter"] = (said["clip-adapter"] + offset.logits(x)) / 2
    expected = sum(float(share) * logits for share, logits in zip(w, said.values(), strict=True))
    (ours,) = fit([(Auto(), episode)])
    torch.testing.assert_close(ours.logits(x), expected, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_it_has_less_loss_than_zero_shot_and_is_the_same_alone_and_among_others(shots):
    runs = [(Auto(), WORLD.episode(shots, seed)) for seed in (1, 2, 5)]
    x, y = WORLD.test[0], WORLD.labels
    zero_shot = alone(MEMBERS["zero-shot"], WORLD.episode()).logits(x)
    losses = []
    for run, together in zip(runs, fit(runs), strict=True):
        (by_itself,) = fit([run])
        torch.testing.assert_close(by_itself.logits(x), together.logits(x), **CLOSE)
        losses.append(F.cross_entropy(together.logits(x), y).item())
    if shots > 1:  # one image of each of five classes is no evidence
        assert np.mean(losses) < F.cross_entropy(zero_shot, y).item()


def uneven(episode, counts):
    """The episode with so many images of each class."""
    kept = []
    for label, count in enumerate(counts):
        kept.append((episode.y == label).nonzero()[:count, 0])
    rows = torch.cat(kept)
    return replace(episode, index=episode.index[rows], y=episode.y[rows])


@pytest.mark.parametrize("counts", [(8, 1, 3, 5, 8), (1, 1, 1, 1, 2), (16, 2, 2, 2, 2)])
@pytest.mark.parametrize("has_text", [True, False])
def test_uneven_classes_and_a_class_of_one_image_work(counts, has_text):
    episode = uneven(WORLD.episode(16), counts)
    if not has_text:
        episode = replace(episode, text=None)
    (ours,) = fit([(Auto(), episode)])
    right = (ours.logits(WORLD.test[0]).argmax(dim=1) == WORLD.labels).float().mean()
    assert not ours.diverged and right > 2 / N_CLASS


@pytest.mark.parametrize("shots", [1, 4])
def test_without_text_it_is_the_members_that_need_none(shots):
    episode = replace(WORLD.episode(shots), text=None)
    (ours,) = fit([(Auto(), episode)])
    assert set(ours.p) == {"w", "b"} and "text" not in ours.c
    right = (ours.logits(WORLD.test[0]).argmax(dim=1) == WORLD.labels).float().mean()
    assert right > 2 / N_CLASS


def test_what_is_kept_is_one_linear_map_and_the_adapter():
    (ours,) = fit([(Auto(), WORLD.episode(4))])
    shapes = {name: tuple(value.shape) for name, value in ours.p.items()}
    assert shapes == {
        "w": (1, N_CLASS, DIM),
        "b": (1, N_CLASS),
        "w1": (1, DIM, DIM // 4),
        "w2": (1, DIM // 4, DIM),
        "share": (1,),
    }
    assert set(ours.c) == {"text", "scale"}


def test_its_out_of_fold_logits_need_no_temperature():
    """The weights are fitted to the loss: what one factor could still gain is next to nothing."""
    (ours,) = fit([(Auto(), WORLD.episode(8))])
    assert ours.calibration.temperature == 1.0
    assert len(ours.calibration.scores) == 8 * N_CLASS


def test_other_classes_cannot_be_served():
    (ours,) = fit([(Auto(), WORLD.episode(2))])
    with pytest.raises(HeadError, match="cannot serve others"):
        ours.rebind(Support.of_text(WORLD.text, 20.0))


@pytest.mark.parametrize("folds", [2, 3, 8])
def test_the_number_of_folds_is_a_choice_that_hardly_matters(folds):
    episode = WORLD.episode(8)
    x = WORLD.test[0]
    (few,) = fit([(Auto(folds=folds), episode)])
    (four,) = fit([(Auto(), episode)])
    same = few.logits(x).argmax(dim=1) == four.logits(x).argmax(dim=1)
    assert same.float().mean() > 0.9
    assert len(few.calibration.scores) == len(episode.y)


@pytest.mark.parametrize("n_class", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 3])
def test_few_classes_work(n_class, shots):
    world = World(n_class=n_class)
    (ours,) = fit([(Auto(), world.episode(shots))])
    assert torch.isfinite(ours.logits(world.test[0])).all() and not ours.diverged


def test_one_image_a_class_that_counts_thrice_is_one_shot():
    episode = WORLD.episode(1)
    thrice = replace(episode, index=episode.index.repeat(3), y=episode.y.repeat(3))
    (classifier,) = fit([(Auto(), thrice)])
    assert not classifier.diverged and classifier.calibration is None


@pytest.mark.parametrize("shots", [1, 2])
def test_classes_that_only_texts_know_stop_nothing(shots):
    episode = WORLD.episode(shots)
    absent = (episode.y > 1).nonzero()[:, 0].tolist()
    (classifier,) = fit([(Auto(), without(episode, *absent))])
    assert torch.isfinite(classifier.logits(WORLD.test[0])).all()

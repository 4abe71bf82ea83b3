"""Choosing on validation: which candidate wins, where the bisection goes, what stays as given."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F
from walking import Walker, walk
from worlds import World

from cliad.adapters.core import select
from cliad.adapters.core.episode import Episode
from cliad.adapters.core.fit import fit
from cliad.adapters.core.folds import Judged
from cliad.adapters.core.head import Head, HeadError, hyper
from cliad.adapters.core.select import Candidate, _first_best, _scores, fit_all, fit_selected
from cliad.adapters.linear_probe import LinearProbe
from cliad.adapters.taskres import TaskRes
from cliad.adapters.tip_adapter import TipAdapter

HARD = World(noise=2.5)
NAN = math.nan
CHOICES = (0.0, 1.0, 2.0)


@dataclass(frozen=True)
class Lookup(Head):
    """The features are the logits of three candidates side by side; `choice` says which to take."""

    choice: float = hyper(0.0, "which candidate")

    vary: ClassVar[frozenset[str]] = frozenset({"choice"})
    space: ClassVar[Mapping[str, tuple]] = {"choice": CHOICES}
    needs: ClassVar[frozenset[str]] = frozenset({"raw"})

    def bind(self, support, h):
        return {}

    def logits(self, p, c, h, x):
        blocks = x[0].unflatten(-1, (len(CHOICES), -1))
        return blocks[:, h["choice"].long()].movedim(1, 0)


@dataclass(frozen=True)
class TunedLookup(Lookup):
    """The same, where the candidates need no training of their own."""

    tuned: ClassVar[frozenset[str]] = frozenset({"choice"})


BOTH_WAYS = pytest.mark.parametrize("head", [Lookup(), TunedLookup()])


def candidates(*margins):
    """Three candidates on items of class 1 of 2, by their margins: above 0 is right."""
    blocks = []
    for values in margins:
        margin = torch.tensor(values)
        blocks += [torch.zeros_like(margin), margin]
    features = torch.stack(blocks, dim=1)
    n = len(features)
    rows, y = torch.arange(n), torch.ones(n, dtype=torch.long)
    return Episode(features, rows, y, rows, y, None, 1.0, 1, 2)


def chosen(head, *margins):
    """The choice that wins on validation."""
    (classifier,) = fit_selected([(head, candidates(*margins))])
    return classifier.head.choice


SURE_BUT_WRONG_ONCE = [9.0, 9.0, -0.1]  # little loss
HARDLY_RIGHT = [0.1, 0.1, 0.1]
RIGHT = [0.5, 0.5, 0.5]
WRONG = [-1.0, -1.0, -9.0]
WORSE = [-2.0, -2.0, -9.0]
NOTHING = [NAN, NAN, NAN]
PARTLY_NOTHING = [1.0, NAN, 1.0]


@BOTH_WAYS
@pytest.mark.parametrize(
    "margins, winner",
    [
        ((SURE_BUT_WRONG_ONCE, HARDLY_RIGHT, WRONG), 1),  # more right, with more loss
        ((HARDLY_RIGHT, SURE_BUT_WRONG_ONCE, WRONG), 0),
        ((HARDLY_RIGHT, RIGHT, SURE_BUT_WRONG_ONCE), 1),  # as many right, with less loss
        ((WORSE, WRONG, WORSE), 1),
        ((WRONG, RIGHT, RIGHT), 1),  # the first of equals
        ((RIGHT, RIGHT, RIGHT), 0),
    ],
)
def test_more_right_wins_then_less_loss_then_the_first(head, margins, winner):
    assert chosen(head, *margins) == winner


@BOTH_WAYS
@pytest.mark.parametrize("last_bits", [1e-7, 1e-6, -1e-6])
def test_the_last_bits_of_a_loss_do_not_choose(head, last_bits):
    nearly = [margin + last_bits for margin in RIGHT]
    assert nearly != RIGHT
    assert chosen(head, RIGHT, nearly, WRONG) == 0
    assert chosen(head, nearly, RIGHT, WRONG) == 0
    assert chosen(head, HARDLY_RIGHT, RIGHT, nearly) == 1
    # what makes a difference does choose
    assert chosen(head, RIGHT, [margin + 0.01 for margin in RIGHT], WRONG) == 1


@BOTH_WAYS
def test_a_candidate_that_is_not_a_number_does_not_win_beside_a_good_one(head):
    assert chosen(head, NOTHING, RIGHT, NOTHING) == 1
    assert chosen(head, RIGHT, NOTHING, NOTHING) == 0
    assert chosen(head, PARTLY_NOTHING, NOTHING, RIGHT) == 2


@BOTH_WAYS
def test_a_candidate_that_is_not_a_number_does_not_win_beside_a_bad_one(head):
    assert chosen(head, NOTHING, WRONG, NOTHING) == 1
    assert chosen(head, PARTLY_NOTHING, WORSE, WRONG) == 2


@BOTH_WAYS
def test_a_candidate_of_infinite_loss_does_not_win_though_more_of_it_is_right(head):
    infinitely_wrong_once = [9.0, 9.0, -math.inf]
    assert chosen(head, infinitely_wrong_once, WRONG, WORSE) == 1


@BOTH_WAYS
def test_where_no_candidate_is_a_number_the_first_stays(head):
    assert chosen(head, NOTHING, PARTLY_NOTHING, NOTHING) == 0


def test_a_candidate_that_diverged_never_wins_beside_a_bad_one():
    episode = candidates(RIGHT, WRONG, WORSE)
    best, bad, worse = fit([(Lookup(choice=choice), episode) for choice in CHOICES])
    diverged = replace(best, failed=torch.tensor(True))
    judged = [[Judged(classifier, episode)] for classifier in (diverged, bad, worse)]
    scores = _scores(judged)
    tried = [
        Candidate(of_run[0].classifier.head, of_run, *score)
        for of_run, score in zip(judged, scores, strict=True)
    ]
    for order in itertools.permutations(tried):
        assert _first_best(order).judged[0].classifier is bad


@BOTH_WAYS
def test_each_run_chooses_on_its_own_items_and_all_may_share_a_batch(head):
    first = candidates(WRONG + RIGHT, RIGHT + WRONG, HARDLY_RIGHT + HARDLY_RIGHT)
    parts = []
    for rows in ([3, 4, 5], [0, 1, 2], [0, 5]):
        index = torch.tensor(rows)
        parts.append(replace(first, val_index=index, val_y=torch.ones_like(index)))
    for largest in (1, 2, 4, 100):
        found = fit_selected([(head, part) for part in parts], largest=largest)
        assert [one.head.choice for one in found] == [0, 1, 2]


def test_candidates_compared_in_parts_are_those_compared_at_once(monkeypatch):
    runs = [(TipAdapter(), HARD.episode(2))]
    (whole,) = fit_selected(runs)
    monkeypatch.setattr(select, "SWEEP_FLOATS", 1)
    monkeypatch.setattr(select, "LEAST_ROWS", 7)  # seven rows at a time
    (parts,) = fit_selected(runs)
    assert whole.head == parts.head


def brute_force(classifier, episode, space):
    """The first best head over a space, one candidate at a time."""
    x, y = episode.val
    best, best_score = None, None
    for values in itertools.product(*space.values()):
        head = replace(classifier.head, **dict(zip(space, values, strict=True)))
        logits = replace(classifier, head=head).logits(x)
        score = ((logits.argmax(dim=1) == y).sum().item(), -F.cross_entropy(logits, y).item())
        if best is None or score > best_score:
            best, best_score = head, score
    return best


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_values_that_need_no_training_are_the_best_of_all(seed):
    episode = HARD.episode(4, seed)
    (ours,) = fit_selected([(TipAdapter(), episode)])
    assert ours.head == brute_force(fit([(TipAdapter(), episode)])[0], episode, TipAdapter.space)
    assert ours.head != TipAdapter()


def test_a_value_that_the_user_gave_is_not_searched():
    episode, head = HARD.episode(4), TipAdapter(alpha=2.0)
    (free,) = fit_selected([(head, episode)])
    assert free.head.alpha != 2
    (ours,) = fit_selected([(head, episode)], given={"alpha"})
    space = {"beta": TipAdapter.space["beta"]}
    assert ours.head == brute_force(fit([(head, episode)])[0], episode, space)
    assert ours.head.alpha == 2 and ours.head.beta != head.beta
    (none,) = fit_selected([(head, episode)], given={"alpha", "beta"})
    assert none.head == head


def test_a_value_given_to_a_trained_head_is_not_searched():
    head = Lookup(choice=1.0)
    (ours,) = fit_selected([(head, candidates(RIGHT, WRONG, WORSE))], given={"choice"})
    assert ours.head.choice == 1


def test_every_combination_is_trained():
    episode, head = HARD.episode(4), TaskRes(epochs=4, lr=1.0)
    space = {"alpha": (0.5, 0.1, 0.3, 1.0), "lr": (2e-3, 2e-4)}
    assert head.searches() == space
    best, best_score = None, None
    for alpha, lr in itertools.product(*space.values()):
        (one,) = fit([(replace(head, alpha=alpha, lr=lr), episode)])
        logits = one.logits(episode.val[0])
        right = (logits.argmax(dim=1) == episode.val_y).sum().item()
        score = (right, -F.cross_entropy(logits, episode.val_y).item())
        if best is None or score > best_score:
            best, best_score = one, score
    (ours,) = fit_selected([(head, episode)])
    assert ours.head == best.head
    torch.testing.assert_close(ours.p["residual"], best.p["residual"], rtol=1e-4, atol=1e-6)


def test_nothing_can_be_chosen_without_validation_items():
    episode = HARD.episode(1)
    none = replace(episode, val_index=episode.val_index[:0], val_y=episode.val_y[:0])
    with pytest.raises(HeadError, match="no validation images"):
        fit_selected([(TipAdapter(), episode), (TipAdapter(), none)])


TRIED = []


@dataclass(frozen=True)
class Peak(Head):
    """Validation loss is least where log10 of `C` is `peak`; it notes every C that is tried."""

    C: float = hyper(1.0, "what is searched", 0)
    peak: float = hyper(2.0, "where it is best")

    vary: ClassVar[frozenset[str]] = frozenset({"C", "peak"})
    space: ClassVar[Mapping[str, tuple]] = LinearProbe.space
    refine: ClassVar[int] = 8
    needs: ClassVar[frozenset[str]] = frozenset()

    def bind(self, support, h):
        TRIED.append(h["C"].double().log10().tolist())
        return {"one": support.x.new_ones(1)}

    def logits(self, p, c, h, x):
        away = (h["C"].double().log10() - h["peak"]).abs()[:, None].float()
        # So steep that the loss of neighbours differs by more than the rounding that selection allows.
        first = -1000 * away.expand(-1, x.shape[1])
        return torch.stack([first, torch.zeros_like(first)], dim=-1)


def peaks(*values):
    """What was tried for each of these peaks, as exponents of ten, and what was found."""
    rows = torch.tensor([0])
    episode = Episode(torch.ones(1, 1), rows, rows, rows, rows, None, 1.0, 1, 2)
    TRIED.clear()
    found = fit_selected([(Peak(peak=value), episode) for value in values])
    return [one.head.C for one in found]


FROM_RIGHT = [2, 2.5, 2.25, 2.375, 2.3125, 2.28125, 2.296875, 2.3046875]
FROM_LEFT = [2, 1.5, 1.75, 1.625, 1.6875, 1.71875, 1.703125, 1.6953125]


@pytest.mark.parametrize(
    "peak, middles",
    [
        # each end that is worse moves to the middle of the exponents; worked out by hand
        (2.302, FROM_RIGHT),
        (1.698, FROM_LEFT),
    ],
)
def test_the_bisection_halves_the_exponents_around_the_best_power_of_ten(peak, middles):
    (found,) = peaks(peak)
    powers, (left,), (right,), *steps = TRIED
    assert powers == pytest.approx([-6, -4, -2, 0, 2, 4, 6])
    assert (left, right) == (pytest.approx(1), pytest.approx(3))
    assert [step[0] for step in steps] == pytest.approx(middles, abs=1e-5)
    assert math.log10(found) == pytest.approx(middles[-1], abs=1e-5)


def test_the_last_bisection_step_is_not_taken_where_it_is_worse():
    (found,) = peaks(2.2985)
    assert [step[0] for step in TRIED[3:]] == pytest.approx(FROM_RIGHT, abs=1e-5)
    assert math.log10(found) == pytest.approx(2.296875, abs=1e-5)


def test_the_bisection_never_ends_below_where_it_began():
    assert peaks(2.0) == [100.0]
    # from 1e-6 on the left end of the powers it may go on to a tenth
    assert math.log10(peaks(-9.0)[0]) == pytest.approx(-7, abs=1e-5)


def test_runs_bisect_side_by_side():
    found = peaks(2.302, 1.698, 5.6)
    steps = TRIED[3:]
    assert len(steps) == 8
    assert [step[0] for step in steps] == pytest.approx(FROM_RIGHT, abs=1e-5)
    assert [step[1] for step in steps] == pytest.approx(FROM_LEFT, abs=1e-5)
    assert [math.log10(value) for value in found[:2]] == pytest.approx([2.3046875, 1.6953125])
    assert math.log10(found[2]) == pytest.approx(5.6, abs=0.01)


def test_a_field_that_is_given_is_not_bisected():
    rows = torch.tensor([0])
    episode = Episode(torch.ones(1, 1), rows, rows, rows, rows, None, 1.0, 1, 2)
    (found,) = fit_selected([(Peak(C=5.0, peak=2.0), episode)], given={"C"})
    assert found.head.C == 5


def coop_script(train, val):
    """CoOp's lpclip search with scikit-learn's probe: seven powers of ten, then eight bisections.

    Of equally accurate values the one with less loss counts as better, by a thousandth of a nat at
    least; else the smaller one stays, as in ours.
    """
    x, y = train
    val_x, val_y = val
    tried = []

    def score(exponent):
        tried.append(exponent)
        probe = LogisticRegression(C=10.0**exponent, solver="newton-cg", max_iter=2000, tol=1e-10)
        log_p = probe.fit(x, y).predict_log_proba(val_x)
        right = int((log_p.argmax(axis=1) == val_y).sum())
        return right, log_p[np.arange(len(val_y)), val_y].mean()

    def beats(one, other):
        return one[0] > other[0] or (one[0] == other[0] and one[1] > other[1] + 1e-3)

    powers = [-6, -4, -2, 0, 2, 4, 6]
    scores = [score(power) for power in powers]
    peak = 0
    for place in range(1, 7):
        if beats(scores[place], scores[peak]):
            peak = place
    left, right = powers[peak] - 1, powers[peak] + 1
    score_left, score_right = score(left), score(right)
    for _ in range(8):
        middle = (left + right) / 2
        if beats(score_right, score_left):
            left, score_left = middle, score(middle)
        else:
            right, score_right = middle, score(middle)
    end, score_end = (right, score_right) if beats(score_right, score_left) else (left, score_left)
    return (end if beats(score_end, scores[peak]) else powers[peak]), tried


# in the last of these the eighth bisection is the best
@pytest.mark.parametrize("shots, seed", [(2, 1), (4, 2), (4, 12)])
def test_the_probes_c_is_the_one_that_coops_script_finds(shots, seed):
    episode = HARD.episode(shots, seed)
    x = episode.features[episode.index].double().numpy()
    val_x, val_y = episode.val
    val = (val_x.double().numpy(), val_y.numpy())
    expected, tried = coop_script((x, episode.y.numpy()), val)
    assert len(tried) == 7 + 2 + 8
    (ours,) = fit_selected([(LinearProbe(tol=1e-8, max_iter=2000), episode)])
    assert math.log10(ours.head.C) == pytest.approx(expected, abs=1e-6)


@dataclass(frozen=True)
class Counted(Head):
    """Its parameter says how many runs were fitted together."""

    share: float = hyper(0.0, "what varies")
    kind: str = hyper("a", "what keeps runs apart")

    vary: ClassVar[frozenset[str]] = frozenset({"share"})
    needs: ClassVar[frozenset[str]] = frozenset()

    def bind(self, support, h):
        return {"share": h["share"][:, None]}

    def start(self, c, h, generators):
        return {"together": torch.full((len(generators), 1), float(len(generators)))}


def test_runs_keep_their_order_and_are_fitted_in_batches_of_at_most_largest():
    runs = []
    for number, kind in enumerate("abaabaaab"):
        runs.append((Counted(share=float(number), kind=kind), HARD.episode(1, seed=number)))
    sizes = {
        1: [1] * 9,
        4: [4, 3, 4, 4, 3, 4, 2, 2, 3],
        6: [6, 3, 6, 6, 3, 6, 6, 6, 3],
        100: [6, 3, 6, 6, 3, 6, 6, 6, 3],
    }
    for largest, together in sizes.items():
        found = fit_all(runs, largest)
        assert [one.head for one in found] == [head for head, _ in runs]
        assert [one.c["share"].item() for one in found] == list(range(9))
        assert [one.p["together"].item() for one in found] == together
    assert [one.p["together"].item() for one in fit_all(runs)] == sizes[100]


@dataclass(frozen=True)
class Bisected(Walker):
    """A walker whose target is bisected, from a power of ten that it never reaches."""

    space: ClassVar[Mapping[str, tuple]] = {"target": (60.0,)}
    refine: ClassVar[int] = 1


def test_candidates_are_compared_and_kept_at_their_best_step():
    given = fit_selected([(Walker(target=3), walk())], given={"target"})[0]
    assert given.p["a"].item() == 3
    free = fit_selected([(Walker(target=7), walk())])[0]
    assert (free.head.target, free.p["a"].item()) == (3, 3)
    bisected = fit_selected([(Bisected(), walk())])[0]
    assert (bisected.head.target, bisected.p["a"].item()) == (6, 6)


def test_fit_all_looks_at_validation_only_with_validate():
    runs = [(Walker(target=3), walk())]
    assert fit_all(runs)[0].p["a"].item() == 7
    assert fit_all(runs, validate=True)[0].p["a"].item() == 3

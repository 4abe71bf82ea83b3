"""The training loop against torch's optimisers, a plain loop and literals; runs do not meet."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch.nn import functional as F
from walking import Walker, walk
from worlds import World

from cliad.adapters.clip_adapter import ClipAdapter
from cliad.adapters.core.batches import Batches, draw_epoch
from cliad.adapters.core.classifier import can_stack, inputs, logits_of, validation
from cliad.adapters.core.episode import Episode, Support, stack
from cliad.adapters.core.fit import fit, group
from cliad.adapters.core.head import Head, HeadError, Hypers, Plan, hyper, hypers
from cliad.adapters.core.optimiser import Optimiser, rate
from cliad.adapters.core.progress import steps_go_to
from cliad.adapters.core.train import Best
from cliad.adapters.linear_probe import LinearProbe
from cliad.adapters.lp_plus_plus import LpPlusPlus
from cliad.adapters.taskres import TaskRes
from cliad.adapters.zero_shot import ZeroShot

HARD = World(noise=2.5)
OPTIMISERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def stepped(plan, start, grads, lr, decay):
    """Stacked parameters (n_run, 3, 4) after some steps of our optimiser."""
    p = {"w": start.clone().requires_grad_()}
    h = Hypers({"lr": lr, "weight_decay": decay}, torch.zeros(1))
    optimiser = Optimiser(plan, p, h, {})
    for step, grad in enumerate(grads):
        p["w"].grad = grad
        optimiser.step(step)
    return p["w"].detach()


def stepped_by_torch(plan, start, grads, lr, decay):
    """One run's parameters (3, 4) after some steps of torch's optimiser at the plan's rates."""
    w = start.clone().requires_grad_()
    options = {"momentum": plan.momentum} if plan.optimiser == "sgd" else {"eps": plan.eps}
    optimiser = OPTIMISERS[plan.optimiser]([w], lr=lr, weight_decay=decay, **options)
    for step, grad in enumerate(grads):
        optimiser.param_groups[0]["lr"] = rate(plan, step, lr)
        w.grad = grad
        optimiser.step()
    return w.detach()


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("lr, decay", [([0.1, 0.1], [0.2, 0.2]), ([0.1, 0.01], [0.2, 0.0])])
def test_each_run_moves_as_torch_moves_it_alone(name, schedule, lr, decay):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 3, 4, generator=generator)
    grads = torch.randn(5, 2, 3, 4, generator=generator)
    plan = Plan(steps=5, optimiser=name, schedule=schedule, warmup=1, momentum=0.7, eps=0.05)
    ours = stepped(plan, start, grads, lr, decay)
    for run in range(2):
        theirs = stepped_by_torch(plan, start[run], grads[:, run], lr[run], decay[run])
        torch.testing.assert_close(ours[run], theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("word", ["optimiser", "schedule", "keep"])
def test_an_unknown_word_of_a_plan_is_named(word):
    with pytest.raises(ValueError, match=f"expected {word} .*, got lion"):
        Plan(**{word: "lion"})


def test_a_parameter_without_a_gradient_is_named():
    p = {"w": torch.ones(1, 2, requires_grad=True)}
    optimiser = Optimiser(Plan(optimiser="adam"), p, Hypers({"lr": [0.1]}, torch.zeros(1)), {})
    with pytest.raises(ValueError, match="a gradient of w, got none"):
        optimiser.step(0)


def test_a_parameter_may_have_a_rate_of_its_own_or_plain_steps_now_and_then():
    start = {name: torch.ones(2, 3) for name in ("w", "fast", "plain")}
    p = {name: value.clone().requires_grad_() for name, value in start.items()}
    h = Hypers({"lr": [0.1, 0.2]}, torch.zeros(1))
    rates = {
        "fast": (torch.tensor([1.0, 2.0]), 1),
        "plain": (torch.tensor([0.5, 0.25]), 3),
    }
    optimiser = Optimiser(Plan(optimiser="sgd", momentum=0.0, schedule="constant"), p, h, rates)
    after = []
    for step in range(7):
        for value in p.values():
            value.grad = torch.ones(2, 3)
        optimiser.step(step)
        after.append(p["plain"].detach().clone())
    torch.testing.assert_close(p["w"][:, 0].detach(), 1 - 7 * torch.tensor([0.1, 0.2]))
    torch.testing.assert_close(p["fast"][:, 0].detach(), 1 - 7 * torch.tensor([1.0, 2.0]))
    plain = [value[:, 0].tolist() for value in after]
    assert plain == [[1, 1]] * 2 + [[0.5, 0.75]] * 3 + [[0, 0.5]] * 2


def rates_of(plan, lr=1.0):
    """The learning rate at every step of a plan."""
    return [rate(plan, step, lr) for step in range(plan.steps)]


def test_the_rate_rises_in_even_steps_and_then_falls_by_a_cosine():
    values = rates_of(Plan(steps=7, warmup=3))
    assert values == pytest.approx([0.25, 0.5, 0.75, 1, 0.8535534, 0.5, 0.1464466])
    assert rates_of(Plan(steps=7, warmup=3), 4.0) == pytest.approx([4 * value for value in values])


def test_the_rate_of_other_schedules_is_as_written_down():
    assert rates_of(Plan(steps=4)) == pytest.approx([1, 0.8535534, 0.5, 0.1464466])
    assert rates_of(Plan(steps=3, schedule="constant"), 0.3) == [0.3, 0.3, 0.3]
    held = Plan(steps=3, schedule="constant", warmup=2, warmup_rate=0.0)
    assert rates_of(held, 0.3) == [0, 0, 0.3]


def test_coops_rate_is_constant_within_an_epoch():
    plan = Plan(steps=8, per_epoch=2, schedule="cosine-epoch", warmup=2, warmup_rate=1e-5)
    assert rates_of(plan)[:2] == [1e-5, 1e-5]
    assert rates_of(plan)[2:] == pytest.approx([1, 1, 0.8535534, 0.8535534, 0.5, 0.5])
    # torch's own schedule, which CoOp's trainer steps once an epoch
    w = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.SGD([w], lr=2.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 4)
    for epoch in range(3):
        assert rate(plan, 2 + 2 * epoch, 2.0) == pytest.approx(theirs.get_last_lr()[0])
        optimiser.step()
        theirs.step()


def numbered(sizes, n_view=0):
    """Batches of runs with these many items; each feature says which row and view it is."""
    n_row = sum(sizes)
    angle = torch.arange(n_row) / 100.0
    features = torch.stack([angle.cos(), angle.sin()], dim=1)
    views = None
    if n_view:
        turned = angle + torch.arange(1, n_view + 1)[:, None] / 10.0
        views = 5 * torch.stack([turned.cos(), turned.sin()], dim=-1)
    episodes, start = [], 0
    for size in sizes:
        index = torch.arange(start, start + size)
        episodes.append(Episode(features, index, index, index, index, None, 1.0, 0, n_row))
        start += size
    support, rows = stack(episodes, features)
    return features, replace(support, rows=rows, all_views=views), rows


def shown(batches, step):
    """(row, view, label, weight) of each item with a weight in a step, by run; view 0 is plain."""
    batch = batches(step)
    x, y, weight = batch.x, batch.y, batch.weight
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(y.shape))
    number = (torch.atan2(x[..., 1], x[..., 0]) * 100).round().long()
    runs = []
    for run in range(len(y)):
        items = []
        for item in weight[run].nonzero()[:, 0].tolist():
            view, row = divmod(number[run, item].item(), 10)
            items.append((row, view, y[run, item].item(), weight[run, item].item()))
        runs.append(items)
    return runs


def generators_of(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("n_view", [0, 1])
def test_an_epoch_shows_each_item_once_in_the_order_of_the_runs_own_generator(n_view):
    features, support, rows = numbered([5, 4], n_view)
    plan = Plan(steps=6, per_epoch=3, batch=2)
    batches = Batches(features, support, rows, plan, generators_of(7, 8))
    mine = generators_of(7, 8)
    for epoch in range(2):
        parts = []
        for generator, size in zip(mine, (5, 4), strict=True):
            parts.append(torch.randperm(size, generator=generator).tensor_split(3))
        for step in range(3):
            first, second = shown(batches, 3 * epoch + step)
            assert [item[0] for item in first] == parts[0][step].tolist()
            assert [item[0] for item in second] == (5 + parts[1][step]).tolist()


def test_an_epoch_pads_its_shorter_minibatches_with_weight_zero():
    epoch = draw_epoch([3, 2], generators_of(7, 8), per_epoch=2, n_view=1)
    assert epoch.position.shape == epoch.view.shape == (2, 2, 2)
    assert epoch.weight.tolist() == [[[0.5, 0.5], [1, 0]], [[1, 0], [1, 0]]]
    assert sorted(epoch.position[0][epoch.weight[0] > 0].tolist()) == [0, 1, 2]
    assert sorted(epoch.position[1][epoch.weight[1] > 0].tolist()) == [0, 1]
    assert not epoch.view.any()
    many = draw_epoch([40, 2], generators_of(7, 8), per_epoch=2, n_view=3)
    assert set(many.view[0].flatten().tolist()) == {0, 1, 2}


@pytest.mark.parametrize("n_view", [0, 3])
def test_the_weights_of_uneven_batches_sum_to_one_in_each_step(n_view):
    features, support, rows = numbered([5, 4], n_view)
    plan = Plan(steps=3, per_epoch=3, batch=2)
    batches = Batches(features, support, rows, plan, generators_of(7, 8))
    seen = [[], []]
    for step in range(3):
        for run, items in enumerate(shown(batches, step)):
            assert len(items) == ((2, 2, 1), (2, 1, 1))[run][step]
            for row, _, label, weight in items:
                assert row == label and weight == pytest.approx(1 / len(items))
                seen[run].append(row)
    assert sorted(seen[0]) == [0, 1, 2, 3, 4] and sorted(seen[1]) == [5, 6, 7, 8]
    assert seen[0] + seen[1] != list(range(9))


def test_a_view_is_drawn_anew_for_each_item_and_epoch():
    features, support, rows = numbered([5, 4], n_view=3)
    plan = Plan(steps=60, per_epoch=2, batch=3)
    batches = Batches(features, support, rows, plan, generators_of(7, 8))
    views = {row: [] for row in range(9)}
    for step in range(plan.steps):
        for items in shown(batches, step):
            for row, view, _, _ in items:
                views[row].append(view)
    for drawn in views.values():
        assert len(drawn) == 30 and set(drawn) == {1, 2, 3}
    assert len({tuple(drawn) for drawn in views.values()}) == 9


def test_views_are_drawn_where_the_batch_is_the_whole_support():
    features, support, rows = numbered([5, 4], n_view=3)
    batches = Batches(features, support, rows, Plan(steps=9), generators_of(7, 8))
    views = set()
    for step in range(9):
        first, second = shown(batches, step)
        assert sorted(item[0] for item in first) == [0, 1, 2, 3, 4]
        assert sorted(item[0] for item in second) == [5, 6, 7, 8]
        views |= {item[1] for item in first}
    assert views == {1, 2, 3}


def test_a_full_batch_is_the_support_as_it_is():
    features, support, rows = numbered([3, 2])
    for plan in (Plan(steps=2, batch=None, per_epoch=1), Plan(steps=2, batch=3, per_epoch=1)):
        batches = Batches(features, support, rows, plan, generators_of(7, 8))
        batch = batches(1)
        assert torch.equal(batch.x, support.x) and torch.equal(batch.y, support.y)
        weight = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]])
        torch.testing.assert_close(batch.weight, weight)
        assert batch.at.tolist() == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("n_view", [0, 3])
def test_a_minibatch_says_which_places_of_the_support_it_shows(n_view):
    features, support, rows = numbered([5, 4], n_view)
    plan = Plan(steps=6, per_epoch=3, batch=2)
    batches = Batches(features, support, rows, plan, generators_of(7, 8))
    for step in range(6):
        batch = batches(step)
        # a label is the number of its item's row, and the second run's rows begin behind 5
        for run, begin in ((0, 0), (1, 5)):
            shown_at = batch.at[run][batch.weight[run] > 0]
            assert (shown_at + begin).tolist() == batch.y[run][batch.weight[run] > 0].tolist()


def unit_rows(x):
    return x / x.norm(dim=-1, keepdim=True)


def plain_clip_adapter(episode, epochs, batch, lr, alpha):
    """CLIP-Adapter trained by a plain loop of PyTorch: its first and last weights."""
    generator = torch.Generator().manual_seed(episode.seed)
    dim, n = episode.features.shape[1], len(episode.index)
    start = []
    for n_in, n_out in ((dim, dim // 4), (dim // 4, dim)):
        start.append((torch.rand(n_in, n_out, generator=generator) * 2 - 1) / n_in**0.5)
    w1, w2 = (w.clone().requires_grad_() for w in start)
    optimiser = torch.optim.AdamW([w1, w2], lr=lr, weight_decay=0.01)
    text = unit_rows(unit_rows(episode.text).mean(dim=0))
    x = unit_rows(episode.features[episode.index])
    per_epoch = -(-n // batch)
    steps = epochs * per_epoch
    plan = Plan(steps=steps, warmup=steps * 3 // 10)
    for step in range(steps):
        if step % per_epoch == 0:
            parts = torch.randperm(n, generator=generator).tensor_split(per_epoch)
        part = parts[step % per_epoch]
        adapted = ((x[part] @ w1).relu() @ w2).relu()
        blend = alpha * adapted + (1 - alpha) * x[part]
        logits = episode.logit_scale * unit_rows(blend) @ text.T
        optimiser.param_groups[0]["lr"] = rate(plan, step, lr)
        optimiser.zero_grad()
        F.cross_entropy(logits, episode.y[part]).backward()
        optimiser.step()
    return start, (w1.detach(), w2.detach())


def test_a_run_starts_from_its_own_seed_and_trains_as_a_plain_loop():
    head = ClipAdapter(alpha=0.6, lr=1e-2, epochs=5, batch=8)
    runs = [(head, HARD.episode(4, seed)) for seed in (1, 7)]
    fitted = fit(runs)
    for (_, episode), classifier in zip(runs, fitted, strict=True):
        start, expected = plain_clip_adapter(episode, 5, 8, 1e-2, 0.6)
        for name, first, last in zip(("w1", "w2"), start, expected, strict=True):
            movement = (last - first).norm()
            error = (classifier.p[f"visual_{name}"][0] - last).norm()
            assert movement > 0.1 and error < 1e-3 * movement
    assert (fitted[0].p["visual_w1"] - fitted[1].p["visual_w1"]).abs().max() > 0.1


@pytest.mark.parametrize("target, kept", [(3, 3), (6, 6), (7, 7), (2, 7), (5, 7)])
def test_the_best_step_is_looked_for_at_every_third_and_the_last(target, kept):
    (classifier,) = fit([(Walker(target=target), walk())], validate=True)
    assert classifier.p["a"].item() == kept


def test_each_run_keeps_its_own_best_step():
    episode = walk()
    runs = [(Walker(target=target), episode) for target in (3, 6, 2)]
    assert [one.p["a"].item() for one in fit(runs, validate=True)] == [3, 6, 7]


def test_a_run_that_does_not_select_ends_with_the_last_step():
    assert fit([(Walker(target=3), walk())])[0].p["a"].item() == 7
    last = Walker(target=3, keep="last")
    assert fit([(last, walk())], validate=True)[0].p["a"].item() == 7
    none = replace(walk(), val_index=torch.tensor([], dtype=torch.long))
    assert fit([(Walker(target=3), none)], validate=True)[0].p["a"].item() == 7


def test_divergence_is_a_last_epoch_above_the_first_step_and_above_guessing():
    # loss log(1 + exp(-a)), a moves by push + sigmoid(-a); guessing is log 2 = 0.69
    cases = {
        "from 5.0 to 1.4": ({"begin": -5, "push": 1}, False),
        "from 0.05 to 0.3": ({"begin": 3, "push": -1}, False),
        "from 0.05 to 2.1": ({"begin": 3, "push": -2.7}, True),
        "from 5.0 to 7.0": ({"begin": -5, "push": -2}, True),
        "not a number": ({"begin": float("nan"), "push": 0}, True),
    }
    episode = walk()
    runs = []
    for change, _ in cases.values():
        runs.append((Walker(pull=1, steps=3, keep="last", **change), episode))
    found = [one.diverged for one in fit(runs)]
    assert found == [diverged for _, diverged in cases.values()]


def test_the_last_epochs_loss_is_the_mean_of_its_steps():
    # losses 0.009, 0.053, then 0.273 and 0.913, or 0.009, 0.064, then 0.380 and 1.250
    for push, diverged in ((-1.8, False), (-2.0, True)):
        head = Walker(pull=1, begin=4.7, push=push, steps=4, per_epoch=2, keep="last")
        assert fit([(head, walk(2))])[0].diverged == diverged


@dataclass(frozen=True)
class Slope(Head):
    """One weight; by hand: d/da of (log(1 + exp(-a x)) + decay a^2) at x = 1."""

    decay: float = hyper(0.0, "how much a squared costs", 0)
    vary: ClassVar[frozenset[str]] = frozenset({"decay"})
    needs: ClassVar[frozenset[str]] = frozenset()

    def plan(self, n, shots):
        return Plan(steps=1, optimiser="sgd", momentum=0.0, schedule="constant")

    def bind(self, support, h):
        return {}

    def start(self, c, h, generators):
        return {"a": torch.ones(len(generators))}

    def logits(self, p, c, h, x):
        first = p["a"][:, None] * x[..., 1]
        return torch.stack([first, torch.zeros_like(first)], dim=-1)

    def penalty(self, p, c, h):
        return h["decay"] * p["a"].square()

    def rates(self, c, h):
        return {"a": (torch.ones_like(h["decay"]), 1)}


@dataclass(frozen=True)
class Doubled(Slope):
    """The same at twice the loss, penalty included."""

    def loss(self, p, c, h, batch):
        return 2 * super().loss(p, c, h, batch)


def test_a_head_may_have_a_loss_of_its_own_which_by_default_is_cross_entropy_and_penalty():
    # a = 1 - slope: of the cross-entropy 1 / (1 + e) = 0.268941, of the penalty 2 decay
    episode = walk(3)
    for kind, factor in ((Slope, 1), (Doubled, 2)):
        fitted = fit([(kind(decay=decay), episode) for decay in (0.0, 0.25)])
        found = [one.p["a"].item() for one in fitted]
        assert found == pytest.approx(
            [1 + factor * 0.268941, 1 + factor * (0.268941 - 0.5)], abs=1e-5
        )


@dataclass(frozen=True)
class Table(Head):
    """Logits x W + b."""

    def logits(self, p, c, h, x):
        return x @ p["w"] + p["b"][:, None]


def test_of_equally_good_looks_the_last_is_kept_and_padding_does_not_count():
    features = torch.eye(3)
    full = torch.arange(3)
    episode = Episode(features, full, full, full, full, None, 1.0, 1, 3)
    short = replace(episode, val_index=torch.tensor([1]), val_y=torch.tensor([1]))
    best = Best(Table(), {}, {}, [episode, episode, episode, short], features)
    right, swapped = torch.eye(3), torch.eye(3)[[0, 2, 1]]
    none = torch.zeros(3)
    second = torch.tensor([0.0, 0.5, 0.0])  # padding, a row of zeros, is now of class 1
    looks = [
        ([right, right, swapped, swapped], [none, none, none, none]),
        ([right, swapped, right, right], [none, none, none, second]),
        ([right, right, swapped, swapped], [none, none, none, none]),
    ]
    for number, (w, b) in enumerate(looks, start=1):
        best.look({"w": number * torch.stack(w), "b": torch.stack(b)})
    expected = [3 * right, 3 * right, 2 * right, 2 * right]
    assert torch.equal(best.p["w"], torch.stack(expected))
    assert best.p["b"].tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0.5, 0]]


def test_the_kept_parameters_are_copies_that_later_steps_do_not_change():
    features = torch.eye(3)
    full = torch.arange(3)
    episode = Episode(features, full, full, full, full, None, 1.0, 1, 3)
    best = Best(Table(), {}, {}, [episode], features)
    w = torch.eye(3)[None]
    best.look({"w": w, "b": torch.zeros(1, 3)})
    w *= -1
    assert torch.equal(best.p["w"], torch.eye(3)[None])


def test_support_is_padded_with_zeros_to_the_longest_run():
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    index, y = torch.tensor([3, 1, 2]), torch.tensor([2, 0, 1])
    long = Episode(features, index, y, index, y, None, 30.0, 1, 3)
    short = replace(long, index=torch.tensor([2]), y=torch.tensor([1]))
    support, rows = stack([long, short], features)
    assert support.x.tolist() == [[[7, 8], [3, 4], [5, 6]], [[5, 6], [0, 0], [0, 0]]]
    assert support.y.tolist() == [[2, 0, 1], [1, 0, 0]]
    assert support.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert rows.tolist() == [[3, 1, 2], [2, 0, 0]]
    assert (support.logit_scale, support.n_class) == (30.0, 3)


def test_runs_train_together_where_shapes_and_shared_data_are_equal():
    head, episode = TaskRes(), HARD.episode(4)
    alike = [
        (head, episode),
        (replace(head, alpha=0.1, lr=1.0, weight_decay=0.0), episode),
        (head, HARD.episode(4, seed=2)),
    ]
    assert group(alike) == [[0, 1, 2]]
    others = {
        "head": (ZeroShot(), episode),
        "static field": (replace(head, epochs=3), episode),
        "plan": (head, HARD.episode(5)),
        "features": (head, replace(episode, features=episode.features.clone())),
        "text": (head, replace(episode, text=episode.text.clone())),
        "classes": (head, replace(episode, n_class=6)),
        "scale": (head, replace(episode, logit_scale=21.0)),
    }
    for other in others.values():
        assert group([alike[0], other, alike[1]]) == [[0, 2], [1]]
    with pytest.raises(ValueError, match="2"):
        fit([alike[0], others["text"]])
    # a head that does not train has one plan for all sizes
    assert group([(ZeroShot(), HARD.episode(shots)) for shots in (1, 4)]) == [[0, 1]]


def test_the_fields_that_vary_are_vectors_with_one_number_a_run():
    heads = [TaskRes(), TaskRes(alpha=0.25, lr=0.5, weight_decay=0.0)]
    found = {name: value.tolist() for name, value in hypers(heads, torch.zeros(1).double()).items()}
    assert found == {"alpha": [0.5, 0.25], "lr": [0.002, 0.5], "weight_decay": [0.0005, 0.0]}


@dataclass(frozen=True)
class Raw(Table):
    needs: ClassVar[frozenset[str]] = frozenset({"raw"})


@dataclass(frozen=True)
class Wide(Table):
    needs: ClassVar[frozenset[str]] = frozenset({"raw", "pre_projection"})


def test_a_head_is_given_the_features_that_it_needs():
    episode = HARD.episode(1)
    torch.testing.assert_close(inputs(Table(), episode), unit_rows(HARD.features))
    assert torch.equal(inputs(Raw(), episode), HARD.features)
    wide = torch.cat([HARD.features, HARD.pre_projection], dim=1)
    assert torch.equal(inputs(Wide(), episode), wide)
    x, y = validation(Wide(), episode)
    assert torch.equal(x, wide[episode.val_index]) and torch.equal(y, episode.val_y)
    x, _ = validation(Table(), episode)
    assert torch.equal(x, HARD.features[episode.val_index])


def test_features_before_the_projection_that_are_missing_are_named():
    episode = replace(HARD.episode(1), pre_projection=None)
    with pytest.raises(ValueError, match="before the projection"):
        inputs(Wide(), episode)
    with pytest.raises(ValueError, match="before the projection"):
        validation(Wide(), episode)


@pytest.mark.parametrize("name", ["taskres", "zero-shot", "linear-probe"])
def test_logits_of_many_runs_are_those_of_each(name):
    head = {"taskres": TaskRes(epochs=2), "zero-shot": ZeroShot(), "linear-probe": LinearProbe()}
    runs = [(head[name], HARD.episode(4, seed)) for seed in (1, 2, 3)]
    classifiers = fit(runs)
    x = HARD.test[0].repeat(35, 1) * torch.linspace(1, 2, 4200)[:, None]  # above 4096 rows
    own = torch.stack([x, x.flip(0), 3 * x])
    shared, separate = logits_of(classifiers, x), logits_of(classifiers, own)
    assert shared.shape == separate.shape == (3, 4200, 5)
    for run, classifier in enumerate(classifiers):
        torch.testing.assert_close(shared[run], classifier.logits(x), rtol=1e-4, atol=1e-4)
        alone = classifier.logits(own[run])
        torch.testing.assert_close(separate[run], alone, rtol=1e-4, atol=1e-4)
    assert name == "zero-shot" or (shared[0] - shared[1]).abs().max() > 1e-3


def test_a_classifiers_logits_are_its_heads_formula_on_many_rows():
    classifier = fit([(LinearProbe(), HARD.episode(4))])[0]
    x = HARD.test[0].repeat(35, 1) * torch.linspace(1, 2, 4200)[:, None]
    expected = x @ classifier.p["w"][0].T + classifier.p["b"][0]
    torch.testing.assert_close(classifier.logits(x), expected, rtol=1e-4, atol=1e-4)
    taskres = fit([(TaskRes(epochs=2), HARD.episode(4))])[0]
    text = taskres.c["text"][0] + 0.5 * taskres.p["residual"][0]
    expected = 20 * unit_rows(x) @ unit_rows(text).T
    torch.testing.assert_close(taskres.logits(x), expected, rtol=1e-4, atol=1e-4)


def test_classifiers_stack_where_only_values_differ():
    head, episode = ClipAdapter(epochs=1), HARD.episode(1)
    first = fit([(head, episode)])[0]
    other = fit([(replace(head, alpha=0.7, lr=0.1), HARD.episode(2, seed=3))])[0]
    assert can_stack([first]) and can_stack([first, other, first])
    unlike = [
        fit([(TaskRes(epochs=1), episode)])[0],
        fit([(replace(head, hidden="3"), episode)])[0],
        fit([(replace(head, final_relu=False), episode)])[0],
        replace(first, logit_scale=21.0),
        replace(first, c=first.c | {"text": first.c["text"][:, :4]}),
        replace(first, p=first.p | {"visual_w1": first.p["visual_w1"][..., :2]}),
    ]
    for one in unlike:
        assert not can_stack([first, other, one]) and not can_stack([first, one, other])


def test_a_head_serves_other_classes_where_no_parameter_is_a_classs_own():
    text = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(5))
    bound = fit([(ZeroShot(), HARD.episode(1))])[0].rebind(Support.of_text(text, 20.0))
    x = HARD.test[0]
    weights = unit_rows(unit_rows(text).mean(dim=0))
    torch.testing.assert_close(bound.logits(x), 20 * unit_rows(x) @ weights.T)
    with pytest.raises(HeadError, match="TaskRes has parameters for each of its classes"):
        fit([(TaskRes(epochs=1), HARD.episode(1))])[0].rebind(Support.of_text(text, 20.0))


def test_constants_that_served_training_only_are_left_behind():
    classifier = fit([(LpPlusPlus(), HARD.episode(1))])[0]
    assert classifier.c and not [name for name in classifier.c if name.startswith("_")]
    assert all(len(value) == 1 for value in (*classifier.p.values(), *classifier.c.values()))


def test_a_listener_hears_of_every_step_and_of_none_outside():
    heard = []
    with steps_go_to(lambda done, total: heard.append((done, total))):
        fit([(Walker(steps=3, keep="last"), walk())])
    fit([(Walker(steps=2, keep="last"), walk())])
    assert heard == [(1, 3), (2, 3), (3, 3)]

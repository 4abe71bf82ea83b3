"""One battery over every head of the table; what is special to a head has its own test file."""

import copy
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
import torch
from fitting import WORLD, fitted
from worlds import N_CLASS, World

import cliad
from cliad.adapters import HEADS
from cliad.adapters.core.classifier import support_of, validation
from cliad.adapters.core.episode import Support
from cliad.adapters.core.fit import fit, group
from cliad.adapters.core.head import Head, HeadError, default_of
from cliad.adapters.core.select import fit_all, fit_selected

HARD = World(noise=2.5)  # where gradients move, and the best step need not be the last
EVERY = pytest.mark.parametrize("name", HEADS)
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def published_way(head):
    """How the head selects where nothing is asked."""
    return "val" if head.select == "val" else "fixed"


def quick(name, **other):
    """The head with few steps, for what does not depend on training for long."""
    few = {"epochs": 6, "steps": 12, "max_iter": 20}
    known = {spec.name for spec in fields(HEADS[name])}
    steps = {field: value for field, value in few.items() if field in known}
    return HEADS[name](**steps | other)


@EVERY
def test_logits_are_finite_float32_of_the_right_shape(name):
    x, _ = WORLD.scored_on(HEADS[name])
    for shots, seed in ((1, 1), (4, 7)):
        logits = fitted(quick(name), WORLD.episode(shots, seed)).logits(x)
        assert logits.shape == (len(x), N_CLASS) and logits.dtype == torch.float32
        assert torch.isfinite(logits).all()


@EVERY
def test_the_same_episode_gives_the_same_logits_and_leaves_all_as_it_was(name):
    head, episode, x = quick(name), WORLD.episode(2, seed=7), WORLD.scored_on(HEADS[name])[0]
    before, state = copy.deepcopy(episode), torch.get_rng_state()
    first, second = (fitted(head, episode).logits(x) for _ in range(2))
    assert torch.equal(first, second) and head == quick(name)
    assert torch.equal(state, torch.get_rng_state())
    for spec in fields(episode):
        old, new = getattr(before, spec.name), getattr(episode, spec.name)
        assert torch.equal(old, new) if isinstance(old, torch.Tensor) else old == new
    for spec in fields(head):
        with pytest.raises(FrozenInstanceError):
            setattr(head, spec.name, 0)


def mixed_runs(head):
    """Runs of several shots, seeds and values of each field that may vary."""
    runs = [(head, WORLD.episode(shots, seed)) for shots, seed in ((4, 1), (4, 2), (1, 3), (7, 11))]
    for spec in fields(head):
        if spec.name in head.vary and isinstance(default_of(spec), float):
            low, high = (spec.metadata[key] for key in ("low", "high"))
            for factor in (0.5, 1.5):
                value = getattr(head, spec.name) * factor
                if low <= value <= (high or value):
                    runs.append((replace(head, **{spec.name: value}), WORLD.episode(4, 2)))
    return runs


@EVERY
def test_a_run_alone_equals_the_same_run_among_others(name):
    runs = mixed_runs(quick(name))
    x, _ = WORLD.scored_on(HEADS[name])
    together = fit_all(runs)
    assert max(map(len, group(runs))) > 1
    for run, classifier in zip(runs, together, strict=True):
        alone = fit([run])[0]
        torch.testing.assert_close(alone.logits(x), classifier.logits(x), **CLOSE)


def test_gradients_of_any_memory_order_step_alike():
    """torch's fused optimisers read a gradient's memory in the parameter's order."""
    world, head = World(n_view=2), HEADS["taskres"](epochs=2)
    runs = [(head, world.episode(4, seed)) for seed in (1, 2)]
    alone, among_others = fit(runs[:1])[0].p["residual"], fit(runs)[0].p["residual"]
    torch.testing.assert_close(alone, among_others, rtol=1e-3, atol=1e-7)


@EVERY
def test_a_run_alone_equals_the_same_run_among_others_on_views(name):
    world, head = World(n_view=3), quick(name)
    x, _ = world.scored_on(head)
    runs = [(head, world.episode(shots, seed)) for shots, seed in ((4, 5), (4, 2), (2, 7))]
    for run, classifier in zip(runs, fit_all(runs), strict=True):
        alone = fit([run])[0]
        torch.testing.assert_close(alone.logits(x), classifier.logits(x), **CLOSE)


@EVERY
def test_selection_among_others_is_selection_alone(name):
    head = quick(name)
    if not (head.searches() or head.plan(1, 1).keep == "best"):
        pytest.skip(f"{name} has nothing to select")
    x, _ = WORLD.scored_on(head)
    runs = [(head, WORLD.episode(4, seed)) for seed in (3, 7)]
    for run, classifier in zip(runs, fit_selected(runs), strict=True):
        alone = fitted(*run, "val")
        assert alone.head == classifier.head
        torch.testing.assert_close(alone.logits(x), classifier.logits(x), **CLOSE)


def poisoned(episode):
    """The episode with every validation label wrong."""
    return replace(episode, val_y=(episode.val_y + 1) % episode.n_class)


def patient(name):
    """The head with enough steps that its best step need not be the last."""
    known = {spec.name for spec in fields(HEADS[name])}
    return HEADS[name](**{"steps": 150, "lr": 3e-3} if {"steps", "lr"} <= known else {})


@EVERY
def test_fixed_values_never_look_at_validation(name):
    head, episode, x = patient(name), HARD.episode(4, seed=5), HARD.scored_on(HEADS[name])[0]
    expected = fitted(head, episode).logits(x)
    none = replace(episode, val_index=episode.val_index[:0], val_y=episode.val_y[:0])
    for other in (none, poisoned(episode)):
        assert torch.equal(fitted(head, other).logits(x), expected)


@EVERY
def test_a_run_that_selects_its_best_step_does_look_at_validation(name):
    head, episode, x = patient(name), HARD.episode(4, seed=5), HARD.scored_on(HEADS[name])[0]
    if head.plan(len(episode.index), episode.shots).keep != "best":
        pytest.skip(f"{name} keeps its last step")
    last = fitted(head, episode).logits(x)
    best, misled = (fit([(head, one)], validate=True)[0] for one in (episode, poisoned(episode)))
    assert not torch.equal(best.logits(x), last)
    assert not torch.equal(best.logits(x), misled.logits(x))
    val_x, val_y = validation(head, episode)
    right = (best.logits(val_x).argmax(dim=1) == val_y).sum()
    assert right > (misled.logits(val_x).argmax(dim=1) == val_y).sum()


def zero_shot_by_hand(world):
    """Logits on a world's test rows, as CLIP's paper has them, with nothing of ours."""
    mean = torch.zeros(world.n_class, world.text.shape[-1])
    for template in world.text:
        mean += template / template.norm(dim=-1, keepdim=True) / len(world.text)
    weights = mean / mean.norm(dim=-1, keepdim=True)
    x = world.test[0] / world.test[0].norm(dim=-1, keepdim=True)
    return 20 * x @ weights.T


def uneven_templates(n_template):
    """A hard world whose templates have very different lengths."""
    world = World(n_template=n_template, noise=2.5)
    world.text = world.text * torch.tensor([1.0, 9.0, 0.3])[:n_template, None, None]
    return world


def test_zero_shot_is_as_worked_out_by_hand():
    world = uneven_templates(3)
    got = fitted(HEADS["zero-shot"](), world.episode(4)).logits(world.test[0])
    torch.testing.assert_close(got, zero_shot_by_hand(world), rtol=1e-5, atol=1e-5)


@EVERY
@pytest.mark.parametrize("n_template", [1, 3])
def test_alpha_zero_is_zero_shot(name, n_template):
    known = {spec.name for spec in fields(HEADS[name])}
    if "alpha" not in known:
        pytest.skip(f"{name} has no alpha")
    if n_template > 1 and name == "taskres":
        pytest.skip("taskres starts from the raw mean over templates")
    world = uneven_templates(n_template)
    got = fitted(quick(name, alpha=0.0), world.episode(4, seed=7)).logits(world.test[0])
    expected = zero_shot_by_hand(world)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(got.argmax(dim=1), expected.argmax(dim=1))


@EVERY
def test_one_shot_and_a_class_without_validation_images_can_be_fitted(name):
    head, episode = HEADS[name](), WORLD.episode(1, seed=7)
    keep = episode.val_y != 3
    less = replace(episode, val_index=episode.val_index[keep], val_y=episode.val_y[keep])
    x, y = WORLD.scored_on(head)
    logits = fitted(head, less, published_way(head)).logits(x)
    assert torch.isfinite(logits).all() and (logits.argmax(dim=1) == y).float().mean() > 0.5


@EVERY
def test_sixteen_shots_solve_the_toy_world(name):
    head = HEADS[name]()
    x, y = WORLD.scored_on(head)
    logits = fitted(head, WORLD.episode(16, seed=7), published_way(head)).logits(x)
    assert (logits.argmax(dim=1) == y).float().mean() > 0.9


@EVERY
def test_an_input_that_the_episode_lacks_is_a_one_line_error(name):
    head = HEADS[name]
    for need in head.needs & {"text", "pre_projection", "views", "tower"}:
        with pytest.raises(HeadError, match="needs a cache with") as caught:
            fitted(head(), WORLD.episode(1, **{need: None}))
        assert "\n" not in str(caught.value)


@EVERY
def test_no_tensor_is_made_on_a_device_of_its_own(name):
    runs = [(quick(name), WORLD.episode(2, seed)) for seed in (1, 2)]
    x, _ = WORLD.scored_on(HEADS[name])
    # a tensor made without its neighbours' device would now be of no use to them
    torch.set_default_device("meta")
    try:
        together = fit_selected(runs) if published_way(HEADS[name]) == "val" else fit_all(runs)
        assert all(classifier.logits(x).device.type == "cpu" for classifier in together)
    finally:
        torch.set_default_device("cpu")


def test_no_head_names_a_device():
    for path in (Path(cliad.__file__).parent / "adapters").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not [word for word in ("cuda", ".half(", "float16") if word in text], path


@EVERY
def test_first_line_says_what_it_is_and_every_field_is_explained(name):
    head = HEADS[name]
    assert head.__doc__.splitlines()[0].endswith(".") and len(head.__doc__.splitlines()[0]) < 120
    assert all(spec.metadata.get("meaning") for spec in fields(head))
    known = {spec.name for spec in fields(head)}
    assert head.vary <= known and set(head.space) <= known and head.tuned <= head.vary
    searches = head().searches() or head().plan(1, 1).keep == "best"
    assert {"fixed": True, "val": searches, "cv": head.cross_fits}[head.select]


@EVERY
def test_a_run_with_far_too_large_steps_recovers_or_says_that_it_diverged(name):
    """A run that learnt nothing says that it diverged, one that found its way back has a number."""
    if "lr" not in HEADS[name].vary:
        pytest.skip(f"{name} has no learning rate")
    x, y = WORLD.scored_on(HEADS[name])
    episode = WORLD.episode(4, seed=7)
    wild, tame = fitted(quick(name, lr=1e6), episode), fitted(quick(name), episode)
    right = (wild.logits(x).argmax(dim=1) == y).float().mean()
    assert not tame.diverged and (wild.diverged or right > 1.5 / N_CLASS)


@pytest.mark.parametrize("name", ["clip-adapter", "taskres", "reg-linear", "cross-modal"])
def test_a_feature_that_is_not_finite_marks_the_run_as_diverged(name):
    episode = WORLD.episode(4)
    hit = torch.arange(len(episode.features))[:, None] == episode.index[0]
    spoiled = torch.where(hit, torch.nan, episode.features)
    assert fitted(quick(name), replace(episode, features=spoiled)).diverged


@EVERY
def test_what_serves_new_classes_serves_its_own_and_others_say_that_they_cannot(name):
    head, episode, x = quick(name), WORLD.episode(4, seed=7), WORLD.scored_on(HEADS[name])[0]
    classifier = fitted(head, episode)
    support, _ = support_of(head, [episode])
    if head.new_classes == "no":
        with pytest.raises(HeadError, match="it cannot serve others"):
            classifier.rebind(support)
        return
    again = classifier.rebind(support).rebind(support)
    assert torch.equal(again.logits(x), classifier.logits(x))
    if head.new_classes == "text":
        texts = Support.of_text(episode.text, episode.logit_scale, episode.names, episode.tower)
        by_text = classifier.rebind(texts)
        assert torch.equal(by_text.logits(x), classifier.logits(x))


@pytest.mark.parametrize("inputs", ["needs", "optional_inputs"])
def test_a_misspelt_input_of_a_head_is_named_where_it_is_written(inputs):
    with pytest.raises(ValueError, match=r"expected inputs of .*'views'.*, got \['view'\] in Odd"):
        type("Odd", (Head,), {inputs: frozenset({"view"})})


def test_a_misspelt_word_for_new_classes_is_named_where_it_is_written():
    with pytest.raises(ValueError, match="expected new_classes no or text or support, got yes"):
        type("Odd", (Head,), {"new_classes": "yes"})

"""CoOp on a toy tower, which computes every prompt whole and needs no open_clip."""

from dataclasses import replace

import pytest
import torch
from fitting import WORLD, at_start, fitted
from torch.nn import functional as F
from worlds import N_CLASS, ToyTower, World

from cliad.adapters.coop import CoOp
from cliad.adapters.core.classifier import Classifier, support_of
from cliad.adapters.core.episode import Support
from cliad.adapters.core.head import HeadError, hypers
from cliad.adapters.prompts import prompt_constants, prompt_features

HARD = World(noise=2.5)
X = WORLD.test[0]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def whole_prompt(tower, tokens):
    """The raw feature (dim,) of a prompt given as a list of embeddings, without start and end."""
    row = torch.stack([tower.start[0], *tokens, tower.end[0]])
    return tower(row[None, :1], row[None, None, 1:], torch.tensor([len(row) - 2]))[0, 0]


def words_of(tower, line):
    embeddings, (count,) = tower.words([line])
    return list(embeddings[0, :count])


def logits_by_hand(world, features):
    """Logits (n, n_class) on a world's test rows, of raw text features."""
    x = world.test[0]
    return 20 * F.normalize(x, dim=-1) @ F.normalize(features, dim=-1).T


def bound(head, episode):
    support, _ = support_of(head, [episode])
    return head.bind(support, hypers([head], episode.features))


def test_without_steps_it_is_zero_shot_by_the_template_of_its_words():
    tower = WORLD.tower
    lines = [f"a photo of a {name}." for name in WORLD.names]
    features = torch.stack([whole_prompt(tower, words_of(tower, line)) for line in lines])
    expected = logits_by_hand(WORLD, features)
    for csc in (False, True):
        got = fitted(CoOp(lr=0.0, csc=csc), WORLD.episode(4)).logits(X)
        torch.testing.assert_close(got, expected, **CLOSE)
    trained = fitted(CoOp(epochs=5), WORLD.episode(4)).logits(X)
    assert (trained - expected).abs().max() > 0.05


@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("position, n_before", [("end", 5), ("middle", 2), ("front", 0)])
def test_the_name_stands_where_it_should_among_the_words(position, n_before, csc):
    tower = WORLD.tower
    generator = torch.Generator().manual_seed(3)
    shape = (2, N_CLASS, 5, tower.width) if csc else (2, 5, tower.width)
    words = torch.randn(shape, generator=generator)
    support = Support.of_text(WORLD.text, 20.0, WORLD.names, tower)
    c = prompt_constants(support, n_word=5, position=position, per_class=csc)
    got = prompt_features(c, words)
    for run in range(2):
        for label, name in enumerate(WORLD.names):
            own = list(words[run, label] if csc else words[run])
            named = words_of(tower, name)
            prompt = own[:n_before] + named + own[n_before:] + words_of(tower, ".")
            torch.testing.assert_close(got[run, label], whole_prompt(tower, prompt), **CLOSE)


def test_a_prefix_that_all_classes_share_is_that_of_each_class():
    support = Support.of_text(WORLD.text, 20.0, WORLD.names, WORLD.tower)
    words = torch.randn(3, 4, WORLD.tower.width, generator=torch.Generator().manual_seed(1))
    features = []
    grads = []
    for per_class in (False, True):
        c = prompt_constants(support, n_word=4, position="end", per_class=per_class)
        learned = words.clone().requires_grad_()
        given = learned[:, None].expand(-1, N_CLASS, -1, -1) if per_class else learned
        features.append(prompt_features(c, given))
        (features[-1] ** 2).sum().backward()
        grads.append(learned.grad)
    torch.testing.assert_close(*features, **CLOSE)
    assert grads[0].abs().max() > 0.1
    torch.testing.assert_close(*grads, **CLOSE)


def test_permuted_classes_permute_the_logits():
    order = torch.tensor([3, 0, 4, 1, 2])
    episode = HARD.episode(4)
    place = order.argsort()
    permuted = replace(
        episode,
        y=place[episode.y],
        val_y=place[episode.val_y],
        text=episode.text[:, order],
        names=tuple(episode.names[label] for label in order),
    )
    x = HARD.test[0]
    got = fitted(CoOp(epochs=20), permuted).logits(x)
    expected = fitted(CoOp(epochs=20), episode).logits(x)[:, order]
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_what_is_kept_needs_no_tower_and_says_what_the_tower_says():
    episode = HARD.episode(4)
    head = CoOp(epochs=20)
    classifier = fitted(head, episode)
    assert set(classifier.c) == {"scale"} and set(classifier.p) == {"words", "weights"}
    unfolded = {"words": classifier.p["words"]}
    h = hypers([head], X)
    x = F.normalize(HARD.test[0], dim=-1)
    with torch.no_grad():
        expected = head.logits(unfolded, bound(head, episode), h, x[None])[0]
    torch.testing.assert_close(classifier.logits(x), expected, **CLOSE)


def test_new_classes_are_served_by_their_names_and_the_learned_words():
    names = tuple(f"thing {number}" for number in range(3))
    vectors = torch.randn(3, HARD.tower.width, generator=torch.Generator().manual_seed(2))
    tower = ToyTower(names, vectors)
    classifier = fitted(CoOp(epochs=20), HARD.episode(4))
    text = vectors[None]
    other = classifier.rebind(Support.of_text(text, 20.0, names, tower))
    words = list(classifier.p["words"][0])
    features = torch.stack(
        [whole_prompt(tower, words + words_of(tower, f"{name}.")) for name in names]
    )
    torch.testing.assert_close(other.logits(HARD.test[0]), logits_by_hand(HARD, features), **CLOSE)


def test_words_of_each_class_serve_no_other_class_and_new_classes_need_a_tower():
    support = Support.of_text(WORLD.text, 20.0, WORLD.names, WORLD.tower)
    with pytest.raises(HeadError, match="it cannot serve others"):
        fitted(CoOp(csc=True, epochs=1), WORLD.episode(1)).rebind(support)
    with pytest.raises(HeadError, match="makes the texts of other classes by a text tower"):
        fitted(CoOp(epochs=1), WORLD.episode(1)).rebind(Support.of_text(WORLD.text, 20.0))
    with pytest.raises(HeadError, match="need the names of the classes"):
        fitted(CoOp(epochs=1), WORLD.episode(1, names=()))


def test_random_words_are_drawn_by_the_run_and_small():
    long = ToyTower(WORLD.names, WORLD.text[0], length=210)
    head = CoOp(init="random", words=200, lr=0.0)
    starts = [fitted(head, WORLD.episode(1, seed, tower=long)).p["words"] for seed in (1, 1, 2)]
    assert starts[0].shape == (1, 200, WORLD.tower.width)
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    assert starts[0].std().item() == pytest.approx(0.02, rel=0.05)
    per_class = fitted(CoOp(init="random", words=3, csc=True, lr=0.0), WORLD.episode(1)).p["words"]
    assert per_class.shape == (1, N_CLASS, 3, WORLD.tower.width)


def test_a_prompt_that_is_too_long_names_its_class():
    names = ("0", "class 1 of many words", "2", "class 3", "4")
    fits = WORLD.episode(1, names=names, tower=ToyTower(names, WORLD.text[0], length=13))
    fitted(CoOp(epochs=1), fits)
    short = replace(fits, tower=ToyTower(names, WORLD.text[0], length=11))
    with pytest.raises(HeadError) as caught:
        fitted(CoOp(epochs=1), short)
    assert str(caught.value) == (
        "the prompt of class 'class 1 of many words' has 12 tokens with 4 learned words, the text"
        " tower takes 11; give fewer words, or shorten the name"
    )


def test_no_words_are_no_prompt():
    with pytest.raises(HeadError, match="expected init to be words, or random; got none"):
        CoOp(init=" ")


def test_the_words_are_in_the_graph_of_the_loss_and_the_tower_is_not():
    episode = HARD.episode(2)
    logits = at_start(CoOp(), episode, F.normalize(HARD.test[0], dim=-1))
    assert not logits.requires_grad
    classifier = fitted(CoOp(epochs=2), episode)
    assert isinstance(classifier, Classifier)
    assert not any(value.requires_grad for value in classifier.p.values())

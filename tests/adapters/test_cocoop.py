"""CoCoOp on a toy tower, which computes every prompt whole and needs no open_clip."""

import torch
from fitting import WORLD, fitted
from torch.nn import functional as F
from worlds import N_CLASS, World

from cliad.adapters.cocoop import PROMPTS_AT_ONCE, CoCoOp
from cliad.adapters.coop import CoOp
from cliad.adapters.core.classifier import support_of
from cliad.adapters.core.head import hypers

HARD = World(noise=2.5)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def parts(episode, head=None):
    """The head, its first parameters and its constants."""
    head = head or CoCoOp()
    support, _ = support_of(head, [episode])
    h = hypers([head], episode.features)
    c = head.bind(support, h)
    p = head.start(c, h, [torch.Generator().manual_seed(0)])
    return head, p, c, h


def test_each_image_has_prompts_whose_words_the_network_shifts():
    episode = HARD.episode(2)
    head, p, c, h = parts(episode)
    x = F.normalize(HARD.test[0][:6], dim=-1)
    got = head.logits(p, c, h, x[None])[0]
    tower = HARD.tower
    w1, b1, w2, b2, words = (p[name][0] for name in ("w1", "b1", "w2", "b2", "words"))
    assert w1.shape == (16, 1) and w2.shape == (1, tower.width)
    for row, image in enumerate(x):
        shift = torch.relu(image @ w1 + b1) @ w2 + b2
        for label, name in enumerate(HARD.names):
            own, (count,) = tower.words([f"{name}."])
            tokens = torch.cat([tower.start, words + shift, own[0, :count], tower.end])
            place = torch.tensor([len(tokens) - 2])
            feature = tower(tokens[None, :1], tokens[None, None, 1:], place)[0, 0]
            expected = 20 * F.cosine_similarity(image, feature, dim=0)
            torch.testing.assert_close(got[row, label], expected, **CLOSE)


def test_a_network_that_gives_zero_makes_it_coop():
    episode = HARD.episode(2)
    head, p, c, h = parts(episode)
    silent = p | {"w2": torch.zeros_like(p["w2"]), "b2": torch.zeros_like(p["b2"])}
    x = F.normalize(HARD.test[0], dim=-1)
    expected = fitted(CoOp(lr=0.0), episode).logits(HARD.test[0])
    torch.testing.assert_close(head.logits(silent, c, h, x[None])[0], expected, **CLOSE)
    assert (head.logits(p, c, h, x[None])[0] - expected).abs().max() > 0.1


def test_images_are_scored_in_parts_that_do_not_matter():
    episode = WORLD.episode(2)
    classifier = fitted(CoCoOp(epochs=1), episode)
    x = torch.cat([WORLD.test[0]] * 5)
    assert len(x) * N_CLASS > PROMPTS_AT_ONCE
    alone = torch.cat([classifier.logits(row[None]) for row in x[-3:]])
    torch.testing.assert_close(classifier.logits(x)[-3:], alone, **CLOSE)


def test_the_layers_begin_as_those_of_torch():
    episode = World(dim=64).episode(1)
    _, p, _, _ = parts(episode)
    for weight, bias, n_in in (("w1", "b1", 64), ("w2", "b2", 4)):
        for name in (weight, bias):
            assert p[name].abs().max() <= n_in**-0.5
        assert p[weight].abs().max() > 0.9 * n_in**-0.5
        assert p[weight].std().item() > 0.5 * n_in**-0.5

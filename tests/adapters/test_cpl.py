"""CPL on a toy tower: its loss, and the counterfactuals that it is a contrast to."""

from dataclasses import replace

import pytest
import torch
from fitting import fitted
from torch.nn import functional as F
from worlds import World

from cliad.adapters.cocoop import CoCoOp
from cliad.adapters.core.classifier import support_of
from cliad.adapters.core.episode import Batch
from cliad.adapters.core.head import hypers
from cliad.adapters.cpl import Cpl, counterfactuals, least_swap

HARD = World(noise=2.5)
X = HARD.test[0]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def drawn(n, seed):
    return F.normalize(torch.randn(n, 16, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_without_contrast_it_is_cocoop_to_the_bit():
    episode = HARD.episode(4)
    plain = fitted(CoCoOp(epochs=3), episode)
    same = fitted(Cpl(epochs=3, contrast=0.0), episode)
    other = fitted(Cpl(epochs=3, contrast=5.0), episode)
    for name, value in plain.p.items():
        assert torch.equal(value, same.p[name])
    assert torch.equal(plain.logits(X), same.logits(X))
    assert (plain.logits(X) - other.logits(X)).abs().max() > 0.01


def test_a_swap_brings_the_other_name_ahead_and_its_last_coordinate_is_needed():
    texts = drawn(2, 1)
    f = F.normalize(texts[0] + 0.4 * drawn(1, 2)[0], dim=-1)
    other = F.normalize(texts[1] + 0.4 * drawn(1, 3)[0], dim=-1)
    swapped = least_swap(f, other, texts[0], texts[1])
    # the greedy search, coordinate by coordinate
    taken = []
    now = f.clone()
    while now @ texts[1] <= now @ texts[0]:
        gains = (other - f) * texts[1]
        gains[taken] = -torch.inf
        taken.append(int(gains.argmax()))
        now[taken[-1]] = other[taken[-1]]
    assert 0 < len(taken) < 16
    assert swapped.nonzero()[:, 0].tolist() == sorted(taken)
    less = now.clone()
    less[taken[-1]] = f[taken[-1]]
    assert less @ texts[1] <= less @ texts[0]


def test_all_coordinates_are_taken_where_none_are_enough():
    texts = drawn(2, 1)
    swapped = least_swap(texts[0], texts[0], texts[0], texts[1])
    assert torch.equal(swapped, torch.ones(16))


def test_the_near_class_is_the_nearest_text_that_has_images():
    episode = HARD.episode(4)
    support, _ = support_of(Cpl(), [episode])
    found = counterfactuals(support)
    text = F.normalize(F.normalize(HARD.text, dim=-1).mean(dim=0), dim=-1)
    cosine = text @ text.T
    x = F.normalize(episode.features[episode.index], dim=-1)
    for label in range(5):
        order = [
            other for other in cosine[label].argsort(descending=True).tolist() if other != label
        ]
        mean = F.normalize(x[episode.y == order[0]].mean(dim=0), dim=-1)
        torch.testing.assert_close(found["_near"][0, label], mean, **CLOSE)
        kept = episode.y != order[0]
        fewer = replace(episode, index=episode.index[kept], y=episode.y[kept])
        support, _ = support_of(Cpl(), [fewer])
        second = F.normalize(x[episode.y == order[1]].mean(dim=0), dim=-1)
        torch.testing.assert_close(counterfactuals(support)["_near"][0, label], second, **CLOSE)


@pytest.mark.parametrize("swapped", [None, 0.0, 1.0])
def test_the_loss_is_the_papers_image_by_image(swapped):
    """u = 0 contrasts an image with itself, u = 1 with the near class."""
    head = Cpl(contrast=0.7)
    episode = HARD.episode(2)
    support, _ = support_of(head, [episode])
    h = hypers([head], X)
    c = head.bind(support, h)
    if swapped is not None:
        c["_swapped"] = torch.full_like(c["_swapped"], swapped)
    p = head.start(c, h, [torch.Generator().manual_seed(0)])
    x = support.x[:, :3]
    y = support.y[:, :3]
    weight = torch.tensor([[0.5, 0.3, 0.2]])
    got = head.loss(p, c, h, Batch(x, y, weight, torch.zeros_like(y)))
    expected = 0.0
    for item in range(3):
        text = head.texts(p, c, x[:, item : item + 1])[0, 0]
        f = x[0, item]
        label = int(y[0, item])
        u = c["_swapped"][0, label]
        other = F.normalize((1 - u) * f + u * c["_near"][0, label], dim=-1)
        pairs = torch.stack([text @ f, text @ other], dim=-1)  # (n_class, 2)
        contrast = -pairs.log_softmax(dim=-1)[:, 0].mean()
        cross_entropy = -(20 * text @ f).log_softmax(dim=-1)[label]
        nothing = torch.tensor(2.0).log()  # of an image beside itself
        expected += weight[0, item] * (cross_entropy + 0.7 * (contrast - nothing))
        if swapped == 0.0:
            torch.testing.assert_close(contrast, nothing)
    torch.testing.assert_close(got[0], expected, **CLOSE)

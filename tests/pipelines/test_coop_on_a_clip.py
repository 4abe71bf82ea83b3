"""CoOp and CoCoOp against short loops through open_clip's own encode_text."""

import math

import pytest
import torch
import toy_clip
from torch.nn import functional as F

from cliad.adapters.cocoop import CoCoOp
from cliad.adapters.coop import CoOp
from cliad.adapters.core.classifier import support_of
from cliad.adapters.core.episode import Episode
from cliad.adapters.core.fit import fit
from cliad.adapters.core.head import hypers
from cliad.cache.encoders import clip

NAMES = ("red apple", "cat", "golden retriever puppy", "car")
LR = 0.5
EPOCHS = 4


@pytest.fixture(scope="module", params=[False, True], ids=["GELU", "QuickGELU"])
def encoder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("coop")
    name = toy_clip.register(folder, f"coop-{request.param}".lower())
    file = toy_clip.weights(folder, name)
    return clip.load(name, str(file), device=torch.device("cpu"), quick_gelu=request.param)


def episode_of(encoder):
    generator = torch.Generator().manual_seed(0)
    text = encoder.encode_texts([f"a photo of a {name}." for name in NAMES])
    y = torch.arange(12) % 4
    x = torch.randn(12, encoder.dim, generator=generator)
    none = y[:0]
    return Episode(
        features=x,
        index=torch.arange(12),
        y=y,
        val_index=none,
        val_y=none,
        text=text[None],
        logit_scale=20.0,
        seed=1,
        n_class=4,
        names=NAMES,
        tower=encoder.text_tower(),
    )


def features_of(encoder, words):
    """The features of prompts whose words take the place of X in "X X X X name."."""
    tokens = encoder.tokenizer([f"X X X X {name}." for name in NAMES])

    def put_words(module, inputs, embeddings):
        return torch.cat([embeddings[:, :1], words.expand(4, -1, -1), embeddings[:, 5:]], dim=1)

    handle = encoder.model.token_embedding.register_forward_hook(put_words)
    features = encoder.model.encode_text(tokens)
    handle.remove()
    return features


def loss_of(encoder, words, x, y):
    """The cross-entropy of images by such prompts."""
    features = features_of(encoder, words)
    return F.cross_entropy(20 * F.normalize(x, dim=-1) @ F.normalize(features, dim=-1).T, y)


def test_several_steps_are_those_of_a_loop_through_encode_text(encoder):
    episode = episode_of(encoder)
    first = encoder.model.token_embedding(encoder.tokenizer(["a photo of a"])[0, 1:5])
    words = first.detach()[None].clone().requires_grad_()
    optimiser = torch.optim.SGD([words], momentum=0.9, weight_decay=5e-4)
    losses = []
    for step in range(EPOCHS):
        optimiser.param_groups[0]["lr"] = rate_at(step)
        loss = loss_of(encoder, words, episode.features, episode.y)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0] - 0.1
    head = CoOp(preset="paper", epochs=EPOCHS, lr=LR, batch=12)
    classifier = fit([(head, episode)])[0]
    moved = (words - first).abs().max().item()
    assert moved > 0.1
    torch.testing.assert_close(classifier.p["words"], words.detach(), rtol=0, atol=1e-4 * moved)
    got = F.cross_entropy(classifier.logits(episode.features), episode.y)
    expected = loss_of(encoder, words, episode.features, episode.y)
    torch.testing.assert_close(got, expected.detach(), rtol=1e-5, atol=1e-5)


def rate_at(step):
    """The learning rate of a step that is an epoch."""
    if step == 0:
        return 1e-5
    return LR * (1 + math.cos(math.pi * (step - 1) / EPOCHS)) / 2


def test_several_steps_of_cocoop_are_those_of_a_loop_over_images(encoder):
    episode = episode_of(encoder)
    x = F.normalize(episode.features, dim=-1)
    head = CoCoOp(epochs=EPOCHS, lr=LR, batch=12)
    support, _ = support_of(head, [episode])
    h = hypers([head], x)
    start = head.start(head.bind(support, h), h, [torch.Generator().manual_seed(episode.seed)])
    p = {name: value[0].clone().requires_grad_() for name, value in start.items()}
    optimiser = torch.optim.SGD(p.values(), momentum=0.9, weight_decay=5e-4)

    def loss():
        total = 0
        for image, label in zip(x, episode.y, strict=True):
            shift = torch.relu(image @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]
            total = total + loss_of(encoder, p["words"] + shift, image[None], label[None])
        return total / len(x)

    first = loss().item()
    for step in range(EPOCHS):
        optimiser.param_groups[0]["lr"] = rate_at(step)
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    last = loss()
    assert last.item() < first - 0.1
    classifier = fit([(head, episode)])[0]
    for name, value in p.items():
        moved = (value - start[name][0]).abs().max().item()
        assert moved > 1e-3, name
        found = classifier.p[name][0]
        torch.testing.assert_close(found, value.detach(), rtol=0, atol=1e-3 * moved)
    got = F.cross_entropy(classifier.logits(episode.features), episode.y)
    torch.testing.assert_close(got, last.detach(), rtol=1e-4, atol=1e-4)

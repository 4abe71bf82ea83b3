"""VT-CLIP beside torch's own attention, and what must hold of it whatever was learnt."""

from dataclasses import replace

import pytest
import torch
from fitting import at_start, fitted, zero_shot
from torch.nn import functional as F
from worlds import DIM, N_CLASS, N_TOKEN, World

from cliad.adapters.core.episode import Support
from cliad.adapters.core.fit import fit
from cliad.adapters.core.head import HeadError
from cliad.adapters.vt_clip import VtClip, attention

WORLD = World(noise=2.5)
HEAD = VtClip(epochs=30, lr=1e-2)


def by_torch(p, text, x, alpha=1.0, scale=20.0):
    """Logits (n, n_class) with torch's multi-head attention, image by image; p without run axis."""
    logits = []
    for row in x:
        parts = F.normalize(row.view(-1, DIM), dim=-1)
        feature, patches = parts[0], parts[1:]
        weights = torch.cat([p["query"].T, p["key"].T, p["value"].T])
        seen, _ = F.multi_head_attention_forward(
            text[:, None],
            patches[:, None],
            patches[:, None],
            embed_dim_to_check=DIM,
            num_heads=8,
            in_proj_weight=weights,
            in_proj_bias=None,
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=p["output"].T,
            out_proj_bias=None,
            training=False,
        )
        logits.append(scale * F.normalize(text + alpha * seen[:, 0], dim=-1) @ feature)
    return torch.stack(logits)


def unit_texts():
    return F.normalize(F.normalize(WORLD.text, dim=-1).mean(dim=0), dim=-1)


@pytest.fixture(scope="module")
def trained():
    return fitted(HEAD, WORLD.episode(4))


def test_logits_are_those_of_torchs_attention(trained):
    x, _ = WORLD.scored_on(HEAD)
    p = {name: value[0] for name, value in trained.p.items()}
    found = trained.logits(x)
    torch.testing.assert_close(found, by_torch(p, unit_texts(), x), rtol=1e-4, atol=1e-4)
    # Learnt, so that the attention matters.
    assert (found - zero_shot(WORLD)).abs().max() > 0.5


def test_training_takes_the_steps_of_torchs_attention_and_adamw():
    """One run of full batches, against autograd and AdamW on the loop over images."""
    episode = WORLD.episode(2)
    head = VtClip(epochs=3, lr=3e-3)
    found = fitted(head, episode)
    generator = torch.Generator().manual_seed(episode.seed)
    drawn = [(torch.rand(DIM, DIM, generator=generator) * 2 - 1) / DIM**0.5 for _ in range(3)]
    p = dict(zip(("query", "key", "value"), drawn, strict=True)) | {"output": torch.zeros(DIM, DIM)}
    p = {name: value.requires_grad_() for name, value in p.items()}
    optimiser = torch.optim.AdamW(p.values(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=3)
    x = torch.cat([WORLD.features, WORLD.tokens.float().flatten(1)], dim=1)[episode.index]
    for _ in range(3):
        optimiser.zero_grad()
        F.cross_entropy(by_torch(p, unit_texts(), x), episode.y).backward()
        optimiser.step()
        schedule.step()
    for name, value in p.items():
        torch.testing.assert_close(found.p[name][0], value.detach(), rtol=1e-4, atol=1e-5)


def test_it_begins_at_zero_shot():
    x, _ = WORLD.scored_on(HEAD)
    found = at_start(HEAD, WORLD.episode(4), x)
    torch.testing.assert_close(found, zero_shot(WORLD), rtol=1e-5, atol=1e-5)


def test_alpha_zero_is_zero_shot_with_patches_too(trained):
    x, _ = WORLD.scored_on(HEAD)
    none = replace(trained, head=replace(HEAD, alpha=0.0)).logits(x)
    torch.testing.assert_close(none, zero_shot(WORLD), rtol=1e-5, atol=1e-5)
    half = replace(trained, head=replace(HEAD, alpha=0.5)).logits(x)
    p = {name: value[0] for name, value in trained.p.items()}
    expected = by_torch(p, unit_texts(), x, alpha=0.5)
    torch.testing.assert_close(half, expected, rtol=1e-4, atol=1e-4)


def test_the_attention_of_a_text_sums_to_one(trained):
    patches = F.normalize(WORLD.test_tokens.float(), dim=-1)[None]
    rows = attention(trained.p, trained.c["text"], patches)
    assert rows.shape == (1, len(WORLD.test_tokens), 8, N_CLASS, N_TOKEN)
    torch.testing.assert_close(rows.sum(dim=-1), torch.ones(rows.shape[:-1]), rtol=0, atol=1e-6)
    assert rows.std(dim=-1).max() > 1e-3


def test_the_order_of_the_patches_is_irrelevant_and_the_patches_are_not(trained):
    x, _ = WORLD.scored_on(HEAD)
    expected = trained.logits(x)
    turned = torch.cat([x[:, :DIM], WORLD.test_tokens.float().flip(1).flatten(1)], dim=1)
    torch.testing.assert_close(trained.logits(turned), expected, rtol=1e-4, atol=1e-4)
    others = torch.cat([x[:, :DIM], WORLD.test_tokens.float().roll(1, 0).flatten(1)], dim=1)
    assert (trained.logits(others) - expected).abs().max() > 0.1


def test_new_classes_are_served_by_their_texts(trained):
    x, _ = WORLD.scored_on(HEAD)
    order = torch.tensor([3, 0, 4, 2, 1])
    permuted = trained.rebind(Support.of_text(WORLD.text[:, order], 20.0)).logits(x)
    torch.testing.assert_close(permuted, trained.logits(x)[:, order], rtol=1e-4, atol=1e-4)
    more = torch.cat([WORLD.text, WORLD.text[:, :2].flip(1)], dim=1)
    wider = trained.rebind(Support.of_text(more, 20.0)).logits(x)
    torch.testing.assert_close(wider[:, :N_CLASS], trained.logits(x), rtol=1e-4, atol=1e-4)


def test_permuted_classes_permute_what_is_learnt():
    order = torch.tensor([3, 0, 4, 2, 1])
    x, _ = WORLD.scored_on(HEAD)
    episode = WORLD.episode(4)
    place = order.argsort()
    permuted = replace(episode, text=WORLD.text[:, order], y=place[episode.y])
    found = fitted(HEAD, permuted).logits(x)
    expected = fitted(HEAD, episode).logits(x)[:, order]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_world_without_patches_is_refused_in_one_line():
    with pytest.raises(HeadError, match=r"^VtClip needs .* patch tokens; extract with --tokens$"):
        fit([(HEAD, replace(WORLD.episode(2), tokens=None))])

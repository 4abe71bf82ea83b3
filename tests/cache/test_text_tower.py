"""The text tower in plain torch against open_clip's own."""

import open_clip
import pytest
import torch
import toy_clip

from cliad.cache.encoders import clip
from cliad.cache.encoders.base import EncoderError

CPU = torch.device("cpu")
PROMPTS = ("a photo of a red apple.", "a photo of a cat.", "a photo of a golden retriever puppy.")
START = "a photo of"
TINY_TEXT = {"layers": 3, "width": 32, "heads": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("towers")


def toy(folder, name, *, quick_gelu=False, **changes):
    """A loaded toy CLIP of 3 layers; `changes` are of its configuration's text part."""
    known = toy_clip.register(
        folder, name, text_cfg=toy_clip.TEXT | TINY_TEXT | changes.pop("text", {}), **changes
    )
    file = toy_clip.weights(folder, known)
    return clip.load(known, str(file), device=CPU, quick_gelu=quick_gelu)


def parts(tower, prompts, start=START):
    """The embeddings that prompts are made of: prefix, suffix and the place of the end token."""
    rests = [prompt.removeprefix(start) for prompt in prompts]
    before, _ = tower.words([start])
    after, counts = tower.words(rests)
    suffix = torch.zeros(len(prompts), after.shape[1] + 1, tower.width)
    for row, count in enumerate(counts):
        suffix[row, :count] = after[row, :count]
        suffix[row, count] = tower.end[0]
        suffix[row, count + 1 :] = 7.0  # what stands behind the end is never read
    prefix = torch.cat([tower.start[None], before], dim=1)
    return prefix, suffix[None], torch.tensor(counts)


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("custom_text", [False, True])
def test_features_of_a_shared_prefix_are_those_of_encode_text(folder, quick_gelu, custom_text):
    name = f"exact-{quick_gelu}-{custom_text}".lower()
    encoder = toy(folder, name, quick_gelu=quick_gelu, custom_text=custom_text)
    tower = encoder.text_tower()
    assert tower.form.activation == ("QuickGELU" if quick_gelu else "GELU")
    expected = encoder.encode_texts(PROMPTS)
    got = tower(*parts(tower, PROMPTS))
    assert got.shape == (1, 3, 24)
    torch.testing.assert_close(got[0], expected, rtol=1e-5, atol=1e-5)
    other = encoder.encode_texts(["a photo of a red apple"])[0]
    assert (got[0, 0] - other).abs().max() > 1e-2  # the full stop alone moves it further than that


def test_the_bundled_tower_is_exact_too_with_all_of_the_prompt_in_the_suffix():
    encoder = clip.load("tiny", device=CPU)
    tower = encoder.text_tower()
    expected = encoder.encode_texts(PROMPTS)
    shared = tower(*parts(tower, PROMPTS))[0]
    unshared = tower(*parts(tower, PROMPTS, start=""))[0]
    torch.testing.assert_close(shared, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(unshared, expected, rtol=1e-5, atol=1e-5)
    assert (tower.width, tower.length, tower.floats) == (48, 32, 17 * 2 * 48)


def test_gradients_are_those_that_open_clip_s_tower_gives_its_token_table(folder):
    encoder = toy(folder, "gradients")
    tower = encoder.text_tower()
    prefix, suffix, last = parts(tower, PROMPTS)
    prefix.requires_grad_()
    (tower(prefix, suffix, last) ** 2).sum().backward()
    table = encoder.model.token_embedding.weight.requires_grad_()
    tokens = encoder.tokenizer(list(PROMPTS))
    (encoder.model.encode_text(tokens) ** 2).sum().backward()
    photo = tokens[0, 2]  # a word that stands in each prompt once
    assert table.grad[photo].abs().max() > 1e-3
    torch.testing.assert_close(prefix.grad[0, 2], table.grad[photo], rtol=1e-4, atol=1e-6)


def test_several_prefixes_at_once_are_each_as_if_alone(folder):
    tower = toy(folder, "batch").text_tower()
    prefix, suffix, last = parts(tower, PROMPTS)
    noise = torch.randn(3, *prefix.shape[1:], generator=torch.Generator().manual_seed(0))
    together = tower(noise, suffix, last)
    for run in range(3):
        alone = tower(noise[run : run + 1], suffix, last)[0]
        torch.testing.assert_close(together[run], alone, rtol=1e-5, atol=1e-6)
    per_run = suffix.repeat(2, 1, 1, 1)
    torch.testing.assert_close(tower(prefix, per_run, last)[1], tower(prefix, suffix, last)[0])


def test_words_of_different_length_are_padded_with_zeros(folder):
    tower = toy(folder, "words").text_tower()
    embeddings, counts = tower.words(["a cat", "cat", ""])
    assert counts == [2, 1, 0] and embeddings.shape == (3, 2, 32)
    assert torch.equal(embeddings[0, 1], embeddings[1, 0])
    assert not embeddings[1, 1].any() and not embeddings[2].any()


def test_a_tower_that_is_not_causal_is_refused_in_one_line(folder):
    encoder = toy(folder, "both-ways", custom_text=True, text={"no_causal_mask": True})
    with pytest.raises(EncoderError, match="is not causal, so no prompts") as caught:
        encoder.text_tower()
    assert "\n" not in str(caught.value)


def test_a_tower_with_a_class_token_is_refused_in_one_line(folder):
    encoder = toy(folder, "class-token", custom_text=True, text={"embed_cls": True})
    with pytest.raises(EncoderError, match="not one of CLIP's own kind") as caught:
        encoder.text_tower()
    assert "\n" not in str(caught.value)


def test_the_tower_is_a_copy_that_training_of_the_model_leaves_alone(folder):
    encoder = toy(folder, "copy")
    tower = encoder.text_tower()
    before = tower(*parts(tower, PROMPTS))
    with torch.no_grad():
        encoder.model.positional_embedding.zero_()
    assert torch.equal(tower(*parts(tower, PROMPTS)), before)
    assert isinstance(encoder.model, open_clip.CLIP)

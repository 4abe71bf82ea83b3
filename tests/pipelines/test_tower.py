"""The text tower of a cache's encoder: loaded where a head asks, and held to the cached texts."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import toy_clip

from cliad.cache.encoders import clip, weights
from cliad.cache.file.read import open_cache
from cliad.pipelines.experiments.episode import make_episodes
from cliad.pipelines.experiments.spec import SpecError
from cliad.pipelines.extract import extract
from cliad.pipelines.fewshot.draw import DrawRequest
from cliad.pipelines.tower import check_tower, encoded, some_prompts, tower_of

CPU = torch.device("cpu")
REQUEST = DrawRequest(1, 1, "coop")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A cache of digits by the bundled encoder."""
    folder = tmp_path_factory.mktemp("tower")
    return open_cache(extract("digits", model="tiny", cache_folder=folder))


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_episode_has_a_tower_only_where_a_head_asks_for_one(digits):
    (plain,) = make_episodes(digits, [REQUEST], CPU)
    (asked,) = make_episodes(digits, [REQUEST], CPU, needs={"tower"})
    assert plain.episode.tower is None
    assert asked.episode.names == plain.episode.names == tuple(digits.classnames)
    # all of the cache's prompts, which the guard alone does not look at
    lines = [f"a photo of the digit {name}." for name in digits.classnames]
    rows = [digits.templates.index("a photo of the digit {}.")]
    features = encoded(asked.episode.tower, lines)
    torch.testing.assert_close(
        features, torch.from_numpy(digits.text[rows[0]]), rtol=1e-3, atol=1e-3
    )


def test_up_to_32_prompts_are_checked_spread_over_templates_and_classes(digits):
    prompts = some_prompts(digits)
    n_all = len(digits.templates) * len(digits.classnames)
    assert len(prompts) == min(32, n_all)
    assert {row for row, _ in prompts} == set(range(len(digits.templates)))
    for (row, column), line in prompts.items():
        assert line == digits.templates[row].replace("{}", digits.classnames[column])


def test_a_tower_with_one_other_matrix_is_refused(digits):
    tower = clip.load("tiny", device=CPU).text_tower()
    check_tower(tower, digits)
    first = tower.tensors["layers.0.attn.out_proj.weight"]
    tower.tensors["layers.0.attn.out_proj.weight"] = 0.5 * first
    with pytest.raises(SpecError, match="the text tower is not that of") as caught:
        check_tower(tower, digits)
    assert "has cosine 0.9" in one_line(caught)


def test_a_tower_of_numbers_that_are_none_is_refused(digits):
    tower = clip.load("tiny", device=CPU).text_tower()
    tower.tensors["projection"].fill_(np.nan)
    with pytest.raises(SpecError, match="the text tower is not that of"):
        check_tower(tower, digits)


def test_imported_features_have_no_tower_and_one_line_says_so(toy):
    (file,) = toy.glob("*/*.h5")
    with pytest.raises(
        SpecError, match="were imported, so the text tower of toy is not known"
    ) as e:
        tower_of(open_cache(file), CPU)
    one_line(e)


def test_weights_that_were_a_file_are_not_looked_for(used):
    with pytest.raises(SpecError, match="was a file, which is not looked for; keep") as caught:
        tower_of(used.cache, CPU)
    assert "extract --text-tower" in one_line(caught)


def changed(cache, **recipe):
    """The cache, with other words about its encoder."""
    words = cache.recipe
    words["encoder"] |= recipe
    attrs = cache.attrs | {"image_recipe": json.dumps(words), "encoder_id": "other"}
    return dataclasses.replace(cache, attrs=attrs)


def test_weights_other_than_the_cache_s_are_refused_by_their_id(digits):
    with pytest.raises(SpecError, match="tiny here is not the encoder of the cache") as caught:
        tower_of(changed(digits), CPU)
    one_line(caught)


def test_a_name_that_is_a_path_is_never_loaded(digits):
    for name in ("local-dir:/etc", "../tiny"):
        with pytest.raises(SpecError, match="which is not looked for"):
            tower_of(changed(digits, model=name), CPU)


def test_weights_that_are_not_here_are_not_fetched(digits, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    other = changed(digits, model="ViT-B-32", pretrained="laion2b_e16")
    if weights.to_fetch("ViT-B-32", "laion2b_e16") is None:
        pytest.skip("these weights are on this machine")
    with pytest.raises(SpecError, match="are not on this machine, and stage two fetches none") as e:
        tower_of(other, CPU)
    one_line(e)


def test_prompts_that_are_too_long_are_cut_as_the_tokenizer_cuts_them(tmp_path):
    name = toy_clip.register(tmp_path, "cut-clip", text_cfg=toy_clip.TEXT | {"context_length": 9})
    encoder = clip.load(name, str(toy_clip.weights(tmp_path, name)), device=CPU, quick_gelu=False)
    lines = ["one two three four five six seven eight nine ten", "a cat"]
    features = encoded(encoder.text_tower(), lines)
    torch.testing.assert_close(features, encoder.encode_texts(lines), rtol=1e-5, atol=1e-5)

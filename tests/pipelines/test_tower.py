"""The text tower of a cache's encoder: loaded where a head asks, and held to the cached texts."""

import dataclasses
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import toy_clip

from cliad.adapters.coop import CoOp
from cliad.adapters.core.head import HeadError
from cliad.cache.encoders import clip, weights
from cliad.cache.extract.choices import PromptChoice
from cliad.cache.file.read import open_cache
from cliad.pipelines.experiments import memory
from cliad.pipelines.experiments.base_to_new import base_to_new
from cliad.pipelines.experiments.episode import make_episodes
from cliad.pipelines.experiments.spec import SpecError
from cliad.pipelines.experiments.train import train
from cliad.pipelines.experiments.transfer import transfer
from cliad.pipelines.extract import extract
from cliad.pipelines.fewshot.draw import DrawRequest
from cliad.pipelines.runs import run_folder
from cliad.pipelines.runs.export import export_run
from cliad.pipelines.tower import check_tower, encoded, some_prompts, tower_of

CPU = torch.device("cpu")
QUICK = {"epochs": 5, "init": "a photo of the digit"}
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


def folder_of(cache):
    """The cache folder that a cache lies in."""
    return cache.path.parent.parent


def test_a_run_of_learned_prompts_is_saved_without_a_tower_and_scores_alike(digits, tmp_path):
    result, cache = train(folder=folder_of(digits), head="coop", hyper=QUICK, shots=4)
    place = run_folder.save(result, cache, tmp_path / "run")
    classifier, _ = run_folder.load(place)
    assert set(classifier.p) == {"words", "weights"} and set(classifier.c) == {"scale"}
    x = torch.from_numpy(cache.split("test").rows())
    assert torch.equal(classifier.logits(x), result.classifier.logits(x))
    export_run(place, format="npz", out=tmp_path / "run.npz")
    w = np.load(tmp_path / "run.npz")["text"]
    unit = torch.nn.functional.normalize(x, dim=-1)
    by_matrix = (unit @ torch.from_numpy(w).float().T).argmax(dim=1)
    assert (by_matrix == classifier.logits(x).argmax(dim=1)).float().mean() > 0.99


def test_new_classes_are_scored_by_their_own_names(digits):
    (row,) = base_to_new(folder=folder_of(digits), head="coop", hyper=QUICK | {"lr": 0}, shots=4)
    text = torch.from_numpy(digits.text)
    (template,) = [i for i, t in enumerate(digits.templates) if t == "a photo of the digit {}."]
    rows = torch.from_numpy(digits.split("test").rows())
    y = torch.from_numpy(np.asarray(digits.split("test").y, np.int64))
    for name, labels in (("base", range(5)), ("new", range(5, 10))):
        inside = (y >= labels.start) & (y < labels.stop)
        weights = torch.nn.functional.normalize(text[template, labels.start : labels.stop], dim=-1)
        right = (rows[inside] @ weights.T).argmax(dim=1) == y[inside] - labels.start
        assert row[f"{name}_top1"] == pytest.approx(right.float().mean().item(), abs=1e-6)
    assert row["new_shots"] == 0


def test_other_classes_of_the_same_encoder_are_scored_by_their_own_names(digits, tmp_path):
    """Another prompt set of the same images, whose classes have other names."""
    names = tmp_path / "names.txt"
    names.write_text("".join(f"old {name}\n" for name in digits.classnames))
    folder = tmp_path / "caches"
    shutil.copytree(folder_of(digits), folder)
    choice = PromptChoice(name="old", classnames=names)
    target = open_cache(
        extract("digits", model="tiny", cache_folder=folder, prompt_set=choice), "old"
    )
    assert target.classnames[3] == "old three"
    result, source = train(folder=folder, prompts="default", head="coop", hyper=QUICK, shots=1)
    (row,) = transfer([result], source, target, CPU)
    tower = clip.load("tiny", device=CPU).text_tower()
    words = result.classifier.p["words"][0]
    features = []
    for name in target.classnames:
        own, (count,) = tower.words([f"{name}."])
        prompt = torch.cat([tower.start, words, own[0, :count], tower.end])
        place = torch.tensor([len(prompt) - 2])
        features.append(tower(prompt[None, :1], prompt[None, None, 1:], place)[0, 0])
    x = torch.from_numpy(target.split("test").rows())
    weights = torch.nn.functional.normalize(torch.stack(features), dim=-1)
    right = (x @ weights.T).argmax(dim=1).numpy() == target.split("test").y
    assert row["top1"] == pytest.approx(right.mean(), abs=1e-6)
    assert row["top1"] != result.test.scores.top1


def test_runs_are_grouped_by_what_the_tower_keeps_of_them(digits, monkeypatch):
    head = CoOp()
    tower = clip.load("tiny", device=CPU).text_tower()
    # start, 4 words; for each class the longest name, a full stop and the end
    assert head.prompt_tokens(tower, digits.classnames, 40) == 5 + 10 * 3
    assert CoOp(csc=True).prompt_tokens(tower, digits.classnames, 40) == 1 + 10 * 7
    assert CoOp(init="random").prompt_tokens(tower, digits.classnames, 40) == 17 + 10 * 3
    for_tower = 4 * 35 * tower.floats
    without = replace(CoOp(), init="random", words=1)
    plain = memory._bytes_per_run(without, digits, 4) - 4 * (2 + 30) * tower.floats
    assert memory._bytes_per_run(head, digits, 4) == plain + for_tower
    monkeypatch.setattr(memory, "free_memory", lambda device: 3 * (plain + for_tower))
    assert memory.group_size(head, digits, 4, CPU) == 3


def test_a_prompt_that_is_too_long_ends_a_run_before_it_begins(digits):
    with pytest.raises(HeadError, match="has 43 tokens with 39 learned words"):
        train(folder=folder_of(digits), head="coop", hyper={"init": "random", "words": 39})


def test_a_run_that_asks_the_tower_for_each_image_is_not_saved(digits, tmp_path):
    result, cache = train(folder=folder_of(digits), head="cocoop", hyper={"epochs": 1}, shots=1)
    with pytest.raises(run_folder.RunFolderError, match="a run of cocoop is not saved") as caught:
        run_folder.save(result, cache, tmp_path / "run")
    one_line(caught)
    assert not (tmp_path / "run").exists() and result.row()["run"] is None

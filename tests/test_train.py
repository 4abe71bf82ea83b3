"""The verb `train` on a toy cache: what a result says, and what wrong input gets."""

import json

import pytest
import torch
from conftest import toy_cache

from cliad.adapters import HEADS
from cliad.adapters.base import HeadError
from cliad.cache.encoder import EncoderError
from cliad.cache.folder import find
from cliad.cache.store import CacheError
from cliad.pipelines import bundle
from cliad.pipelines.draw import DrawError
from cliad.pipelines.train import SpecError, make_head, run, selects, spec_of, train


def test_a_result_row_says_what_made_it(toy):
    result, cache = train(folder=toy, shots=4, hyper={"alpha": "0.6"})
    row = json.loads(json.dumps(result.row()))
    assert (row["dataset"], row["encoder"], row["head"], row["shots"], row["seed"], row["alpha"]) == (
        "toy",
        "toy",
        "clip-adapter",
        4,
        1,
        0.6,
    )
    assert row["selected_on"] == "fixed" and row["protocol"] == "coop" and len(row["index_hash"]) == 16
    assert row["fingerprint"] == cache.fingerprint and row["val_per_class"] == 4 and row["diverged"] is False and row["run"] is None
    assert row["top1"] > row["zero_shot_top1"] - 0.05 and row["train_seconds"] > 0 and row["temperature"] > 0


def test_alpha_zero_is_zero_shot_and_seeds_decide(toy):
    zero = train(folder=toy, hyper={"alpha": 0})[0].row()
    assert zero["top1"] == zero["zero_shot_top1"] == train(folder=toy, head="zero-shot")[0].row()["top1"]
    same = [train(folder=toy, shots=2, seed=seed)[0].row() for seed in (3, 3, 4)]
    assert same[0]["index_hash"] == same[1]["index_hash"] != same[2]["index_hash"] and same[0]["nll"] == same[1]["nll"] != same[2]["nll"]


def test_selection_on_validation_is_reported(toy):
    row = train(folder=toy, head="linear-probe", shots=4)[0].row()
    assert row["selected_on"] == "val" and row["found"]["C"] > 0 and row["alpha"] is None
    row = train(folder=toy, head="clip-adapter", shots=4, select="val")[0].row()
    assert row["selected_on"] == "val" and row["alpha"] in (0, 0.2, 0.4, 0.6, 0.8, 1)
    assert train(folder=toy, head="linear-probe", shots=4, hyper={"C": 3})[0].row()["found"]["C"] == 3


def test_a_run_folder_comes_back_as_it_was(toy, tmp_path):
    result, cache = train(folder=toy, shots=4)
    folder = bundle.save(result, cache, tmp_path / "run")
    classifier, about = bundle.load(folder)
    x = make_rows(cache)
    assert (classifier.logits(x) == result.classifier.logits(x)).all()
    assert about["classnames"] == cache.classnames and json.loads((folder / "result.json").read_text())["run"] == "run"
    assert bundle.save(result, cache, folder) == folder and sorted(p.name for p in tmp_path.iterdir()) == ["caches", "run"]


def make_rows(cache):
    import torch

    return torch.from_numpy(cache.split("test").rows())


@pytest.mark.parametrize("spoil", ["head.safetensors", "run.json"])
def test_a_damaged_run_folder_is_one_line(toy, tmp_path, spoil):
    result, cache = train(folder=toy, shots=1)
    folder = bundle.save(result, cache, tmp_path / "run")
    (folder / spoil).write_bytes((folder / spoil).read_bytes()[:20])
    with pytest.raises(bundle.BundleError, match="damaged"):
        bundle.load(folder)


def test_save_does_not_replace_what_is_no_run(toy, tmp_path):
    result, cache = train(folder=toy, shots=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(bundle.BundleError, match="no run folder"):
        bundle.save(result, cache, tmp_path / "mine")
    with pytest.raises(bundle.BundleError, match="--out"):
        bundle.save(result, cache, tmp_path / "mine" / "thesis.txt" / "run")


@pytest.mark.parametrize(
    "asked, error, message",
    [
        ({"head": "clip-adaptor"}, SpecError, "did you mean clip-adapter"),
        ({"hyper": {"alpha": 1.2}}, HeadError, "alpha .* is from 0 to 1; got 1.2"),
        ({"hyper": {"alpha": float("nan")}}, HeadError, "got nan"),
        ({"hyper": {"alpha": "much"}}, SpecError, "alpha is a number; got much"),
        ({"hyper": {"alfa": 1}}, SpecError, "did you mean alpha"),
        ({"head": "zero-shot", "hyper": {"alpha": 0.5}}, SpecError, "zero-shot has no hyper-parameters"),
        ({"hyper": {"hidden": "D/0"}}, HeadError, "D/0"),
        ({"hyper": {"epochs": 2.5}}, SpecError, "whole number"),
        ({"shots": 25}, DrawError, "class 'class 0' has 24 training images, 25 shots"),
        ({"shots": 0}, DrawError, "at least 1"),
        ({"protocol": "coup"}, DrawError, "coop"),
        ({"select": "test"}, SpecError, "fixed or val"),
        ({"head": "zero-shot", "select": "val"}, SpecError, "nothing left to select"),
        ({"dataset": "dtd"}, SpecError, "cliad extract --dataset dtd"),
        ({"encoder": "RN50"}, SpecError, "no cache of RN50"),
        ({"prompts": "mine"}, CacheError, "no prompts 'mine'"),
        ({"device": "warp"}, EncoderError, "device 'warp'"),
    ],
)
def test_wrong_input_is_one_clear_line(toy, asked, error, message):
    with pytest.raises(error, match=message) as caught:
        train(folder=toy, **asked)
    assert "\n" not in str(caught.value)


def test_without_text_only_heads_that_need_it_refuse(tmp_path):
    toy_cache(tmp_path, text=False)
    row = train(folder=tmp_path, head="linear-probe", shots=4)[0].row()
    assert row["zero_shot_top1"] is None and row["top1"] > 0.8
    with pytest.raises(HeadError, match="needs a cache with text"):
        train(folder=tmp_path, shots=4)


def test_without_a_validation_split_it_comes_from_undrawn_training_images(tmp_path):
    toy_cache(tmp_path, val=False)
    row = train(folder=tmp_path, head="linear-probe", shots=16)[0].row()
    assert row["selected_on"] == "val" and row["val_per_class"] == 4


def test_types_of_hyper_parameters():
    head = make_head("clip-adapter", {"final_relu": "false", "epochs": "3", "hidden": 8})
    assert head.final_relu is False and head.epochs == 3 and head.hidden == "8"


@pytest.mark.parametrize("name", [name for name, head in HEADS.items() if not head.needs & {"pre_projection", "views"}])
@pytest.mark.parametrize("select", ["fixed", "val"])
def test_runs_scored_together_have_the_numbers_of_each_alone(toy, name, select):
    cache, head = find(toy), make_head(name, {})
    if select == "val" and not selects(head, ()):
        pytest.skip(f"{name} has nothing to select")
    specs = [spec_of(cache, name, head, shots=2, seed=seed, protocol="coop", select=select, given=()) for seed in (1, 2, 3)]
    together = [result for results in run(cache, specs, torch.device("cpu")) for result in results]
    alone = [result for spec in specs for (result,) in run(cache, [spec], torch.device("cpu"))]
    for ours, one in zip(sorted(together, key=lambda result: result.spec.seed), alone, strict=True):
        assert ours.values["found"] == one.values["found"] and ours.values["top1"] == one.values["top1"]
        assert ours.values["nll"] == pytest.approx(one.values["nll"], rel=1e-3, abs=2e-5)

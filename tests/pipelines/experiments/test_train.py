"""The verb `train` on a toy cache: what a result says, and what wrong input gets."""

import itertools
import json
import math
import shutil

import h5py
import numpy as np
import pytest
import torch
from conftest import toy_cache
from scipy.optimize import minimize_scalar

from cliad.adapters import HEADS
from cliad.adapters.core.head import HeadError
from cliad.cache.encoders.base import EncoderError
from cliad.cache.file.layout import CacheError
from cliad.cache.folder import find
from cliad.pipelines.experiments.episode import draw_of, make_episodes
from cliad.pipelines.experiments.run import groups, run
from cliad.pipelines.experiments.spec import SpecError, make_head, selects, spec_of, unknown
from cliad.pipelines.experiments.train import train
from cliad.pipelines.fewshot.draw import DrawError, DrawRequest
from cliad.pipelines.runs import run_folder


def test_a_result_row_says_what_made_it(toy):
    result, cache = train(folder=toy, shots=4, hyper={"alpha": "0.6"})
    row = json.loads(json.dumps(result.row()))
    assert (
        row["dataset"],
        row["encoder"],
        row["head"],
        row["shots"],
        row["seed"],
        row["alpha"],
    ) == (
        "toy",
        "toy",
        "clip-adapter",
        4,
        1,
        0.6,
    )
    assert (
        row["selected_on"] == "fixed" and row["protocol"] == "coop" and len(row["index_hash"]) == 16
    )
    assert (
        row["fingerprint"] == cache.fingerprint
        and row["val_per_class"] == 4
        and row["diverged"] is False
        and row["run"] is None
    )
    assert (
        row["top1"] > row["zero_shot_top1"] - 0.05
        and row["train_seconds"] > 0
        and row["temperature"] > 0
    )


def test_alpha_zero_is_zero_shot_and_seeds_decide(toy):
    zero = train(folder=toy, hyper={"alpha": 0})[0].row()
    assert (
        zero["top1"]
        == zero["zero_shot_top1"]
        == train(folder=toy, head="zero-shot")[0].row()["top1"]
    )
    same = [train(folder=toy, shots=2, seed=seed)[0].row() for seed in (3, 3, 4)]
    assert (
        same[0]["index_hash"] == same[1]["index_hash"] != same[2]["index_hash"]
        and same[0]["nll"] == same[1]["nll"] != same[2]["nll"]
    )


def test_selection_on_validation_is_reported(toy):
    row = train(folder=toy, head="linear-probe", shots=4)[0].row()
    assert row["selected_on"] == "val" and row["found"]["C"] > 0 and row["alpha"] is None
    row = train(folder=toy, head="clip-adapter", shots=4, select="val")[0].row()
    assert row["selected_on"] == "val" and row["alpha"] in (0, 0.2, 0.4, 0.6, 0.8, 1)
    assert (
        train(folder=toy, head="linear-probe", shots=4, hyper={"C": 3})[0].row()["found"]["C"] == 3
    )


def test_a_run_folder_comes_back_as_it_was(toy, tmp_path):
    result, cache = train(folder=toy, shots=4)
    folder = run_folder.save(result, cache, tmp_path / "run")
    classifier, about = run_folder.load(folder)
    x = make_rows(cache)
    assert (classifier.logits(x) == result.classifier.logits(x)).all()
    assert (
        about["classnames"] == cache.classnames
        and json.loads((folder / "result.json").read_text())["run"] == "run"
    )
    assert run_folder.save(result, cache, folder) == folder and sorted(
        p.name for p in tmp_path.iterdir()
    ) == ["caches", "run"]


def make_rows(cache):
    import torch

    return torch.from_numpy(cache.split("test").rows())


@pytest.mark.parametrize("spoil", ["head.safetensors", "run.json"])
def test_a_damaged_run_folder_is_a_one_line_error(toy, tmp_path, spoil):
    result, cache = train(folder=toy, shots=1)
    folder = run_folder.save(result, cache, tmp_path / "run")
    (folder / spoil).write_bytes((folder / spoil).read_bytes()[:20])
    with pytest.raises(run_folder.RunFolderError, match="damaged"):
        run_folder.load(folder)


def test_save_does_not_replace_a_folder_that_is_not_a_run(toy, tmp_path):
    result, cache = train(folder=toy, shots=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(run_folder.RunFolderError, match="not a run folder"):
        run_folder.save(result, cache, tmp_path / "mine")
    with pytest.raises(run_folder.RunFolderError, match="--out"):
        run_folder.save(result, cache, tmp_path / "mine" / "thesis.txt" / "run")


@pytest.mark.parametrize(
    "asked, error, message",
    [
        ({"head": "clip-adaptor"}, SpecError, "did you mean clip-adapter"),
        ({"hyper": {"alpha": 1.2}}, HeadError, "alpha .* is from 0 to 1; got 1.2"),
        ({"hyper": {"alpha": float("nan")}}, HeadError, "got nan"),
        ({"hyper": {"alpha": "much"}}, SpecError, "alpha is a number; got much"),
        ({"hyper": {"alfa": 1}}, SpecError, "did you mean alpha"),
        (
            {"head": "zero-shot", "hyper": {"alpha": 0.5}},
            SpecError,
            "zero-shot has no hyper-parameters",
        ),
        ({"hyper": {"hidden": "D/0"}}, HeadError, "D/0"),
        ({"hyper": {"epochs": 2.5}}, SpecError, "whole number"),
        ({"shots": 25}, DrawError, "class 'class 0' has 24 training images, 25 shots"),
        ({"shots": 0}, DrawError, "at least 1"),
        ({"protocol": "coup"}, DrawError, "coop"),
        ({"select": "test"}, SpecError, "fixed, val, cv"),
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


def test_hyper_parameters_become_their_fields_type_whatever_was_typed():
    head = make_head("clip-adapter", {"final_relu": "false", "epochs": "3", "hidden": 8})
    assert head.final_relu is False and head.epochs == 3 and head.hidden == "8"


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, head in HEADS.items()
        if not head.needs & {"pre_projection", "tokens", "tower", "views"}
    ],
)
@pytest.mark.parametrize("select", ["fixed", "val"])
def test_runs_scored_together_have_the_numbers_of_each_alone(toy, name, select):
    cache, head = find(toy), make_head(name, {})
    if select == "val" and not selects(head, ()):
        pytest.skip(f"{name} has nothing to select")
    if head.cross_fits:
        select = "cv"
    specs = [spec_of(cache, head, shots=2, seed=seed, select=select) for seed in (1, 2, 3)]
    together = [result for results in run(cache, specs, torch.device("cpu")) for result in results]
    alone = [result for spec in specs for (result,) in run(cache, [spec], torch.device("cpu"))]
    for ours, one in zip(sorted(together, key=lambda result: result.spec.seed), alone, strict=True):
        assert ours.hyper == one.hyper and ours.test.scores.top1 == one.test.scores.top1
        assert ours.test.scores.nll == pytest.approx(one.test.scores.nll, rel=1e-3, abs=2e-5)


# ------------------------------------------------------------------------------- numbers, by hand


@pytest.fixture
def hard(tmp_path):
    """The folder of a cache of 7 classes in each other's way, so that no number is 0 or 1."""
    toy_cache(tmp_path / "hard", n_class=7, noise=3.0, n=(24, 8, 20))
    return tmp_path / "hard"


def softmax(row):
    exponentials = [math.exp(value - max(row)) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def mean_loss(logits, labels):
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        total -= math.log(softmax(row)[label])
    return total / len(labels)


def bins_of(logits, labels):
    """[count, sum of confidences, count of right answers] of 15 equal bins of confidence."""
    bins = [[0, 0.0, 0] for _ in range(15)]
    for row, label in zip(logits, labels, strict=True):
        chances = softmax(row)
        confidence = max(chances)
        into = bins[min(int(confidence * 15), 14)]
        into[0] += 1
        into[1] += confidence
        into[2] += int(chances.index(confidence) == label)
    return bins


def calibration_error(logits, labels):
    total = 0.0
    for _, confidence, right in bins_of(logits, labels):
        total += abs(right - confidence)
    return total / len(labels)


def share_within(logits, labels, best):
    """How often the label is among the `best` highest logits."""
    right = 0
    for row, label in zip(logits, labels, strict=True):
        right += int(sum(value > row[label] for value in row) < best)
    return right / len(labels)


def test_every_number_of_a_row_is_that_of_a_plain_loop(hard):
    result, cache = train(folder=hard, shots=4, hyper={"alpha": 0.6}, device="cpu")
    row, test = result.row(), cache.split("test")
    logits = result.classifier.logits(torch.from_numpy(test.rows())).double().tolist()
    labels = test.y.tolist()
    assert row["top1"] == pytest.approx(share_within(logits, labels, 1))
    assert row["top5"] == pytest.approx(share_within(logits, labels, 5))
    assert row["nll"] == pytest.approx(mean_loss(logits, labels), rel=1e-5)
    assert row["ece"] == pytest.approx(calibration_error(logits, labels), abs=1e-5)
    cooled = (np.array(logits) / row["temperature"]).tolist()
    assert row["nll_t"] == pytest.approx(mean_loss(cooled, labels), rel=1e-5)
    assert row["ece_t"] == pytest.approx(calibration_error(cooled, labels), abs=1e-5)
    assert abs(row["nll"] - row["nll_t"]) > 0.05 and abs(row["ece"] - row["ece_t"]) > 0.01
    expected = []
    for count, confidence, right in bins_of(logits, labels):
        if count:
            expected.append([count, confidence / count, right / count])
    assert len(row["reliability"]) == len(expected)
    for found, by_hand in zip(row["reliability"], expected, strict=True):
        assert found == pytest.approx(by_hand, abs=1e-4)


def test_the_temperature_is_the_minimum_that_scipy_finds_on_the_runs_validation_images(hard):
    result, cache = train(folder=hard, shots=4, seed=2, hyper={"alpha": 0.6}, device="cpu")
    (drawn,) = make_episodes(cache, [DrawRequest(4, 2)], torch.device("cpu"))
    x, y = drawn.episode.val
    logits, labels = result.classifier.logits(x).double().numpy(), y.tolist()

    def objective(log_t):
        return len(labels) * mean_loss((logits / math.exp(log_t)).tolist(), labels) + log_t**2 / 2

    best = minimize_scalar(objective, bounds=(-4, 4), method="bounded", options={"xatol": 1e-8})
    assert result.row()["temperature"] == pytest.approx(math.exp(best.x), rel=1e-3)


def test_zero_shot_beside_a_row_is_plain_cosines(hard):
    result, cache = train(folder=hard, shots=1, hyper={"epochs": 1}, device="cpu")
    test, text = cache.split("test"), cache.text
    unit = text / np.linalg.norm(text, axis=-1, keepdims=True)
    mean = unit.mean(axis=0)
    weights = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    cosines = test.rows() @ weights.T
    zero_shot = share_within(cosines.tolist(), test.y.tolist(), 1)
    assert 0.3 < zero_shot < 0.95
    assert result.row()["zero_shot_top1"] == pytest.approx(zero_shot)


def test_without_validation_images_there_is_no_temperature(tmp_path):
    toy_cache(tmp_path, val=False)  # 24 training images of each class
    row = train(folder=tmp_path, shots=24, hyper={"epochs": 1})[0].row()
    assert [row[name] for name in ("temperature", "ece_t", "nll_t")] == [None] * 3
    assert row["val_per_class"] == 0 and row["nll"] > 0
    with pytest.raises(HeadError, match="no validation images to select on"):
        train(folder=tmp_path, shots=24, select="val")


def test_a_diverged_run_has_no_numbers(hard):
    row = train(folder=hard, shots=1, hyper={"lr": 1e30}, device="cpu")[0].row()
    names = ("top1", "top5", "mean_class", "ece", "nll", "ece_t", "nll_t", "temperature")
    assert row["diverged"] is True
    assert [row[name] for name in (*names, "reliability")] == [None] * 9
    assert 0 < row["zero_shot_top1"] < 1 and row["alpha"] == 0.2


@pytest.mark.parametrize("text", [True, False])
def test_a_feature_that_is_not_a_number_is_named_before_anything_is_trained(tmp_path, text):
    path = toy_cache(tmp_path, text=text)
    with h5py.File(path, "r+") as file:
        file["splits/test/features"][3, 2] = float("nan")
    with pytest.raises(CacheError, match="features of row 3 of test are not finite"):
        train(folder=tmp_path, device="cpu", head="linear-probe", shots=2, hyper={"C": 1})


def test_a_test_split_of_unreadable_images_is_one_line(tmp_path):
    path = toy_cache(tmp_path)
    with h5py.File(path, "r+") as file:
        file["splits/test/status"][...] = 2
    with pytest.raises(CacheError, match="no test image that could be read"):
        train(folder=tmp_path, shots=1)


def test_the_order_of_what_was_typed_does_not_matter(toy):
    asked = {"folder": toy, "head": "tip-adapter", "shots": 1}
    one = train(**asked, hyper={"alpha": 2, "beta": 3})[0]
    other = train(**asked, hyper={"beta": 3, "alpha": 2})[0]
    assert one.spec == other.spec
    assert {one.spec: "a run"}[other.spec] == "a run"


def test_what_the_user_gave_is_not_searched(toy):
    row = train(folder=toy, head="tip-adapter", shots=2, select="val", hyper={"alpha": 2})[0].row()
    assert (row["selected_on"], row["hyper"]) == ("val", {"alpha": 2.0})
    assert row["found"]["alpha"] == row["alpha"] == 2.0
    free = train(folder=toy, head="tip-adapter", shots=2, select="val")[0].row()
    assert free["hyper"] == {} and free["found"]["alpha"] != 2.0


def test_clip_lora_without_a_validation_split_never_trains_on_its_validation(tmp_path):
    toy_cache(tmp_path, val=False)
    cache = find(tmp_path)
    draws = itertools.product((1, 4, 16), range(5))
    asked = [DrawRequest(shots, seed, "clip-lora") for shots, seed in draws]
    made = make_episodes(cache, asked, torch.device("cpu"))
    for one, request in zip(made, asked, strict=True):
        support = set(one.episode.index.tolist())
        validation = set(one.episode.val_index.tolist())
        assert len(support) == 5 * request.shots
        assert len(validation) == 5 * min(request.shots, 4)
        assert not support & validation
        drawn, digest = draw_of(cache, request)
        assert not set(drawn.train) & set(drawn.val)
        assert one.index_hash == digest
    row = train(folder=tmp_path, shots=4, protocol="clip-lora", hyper={"epochs": 1})[0].row()
    assert (row["protocol"], row["val_per_class"]) == ("clip-lora", 4)


@pytest.mark.parametrize(
    "protocol, shots, count",
    [("coop", 8, 4), ("lp++", 8, 8), ("tip", 2, 8), ("clip-lora", 2, 2)],
)
def test_a_row_says_how_many_validation_images_a_class_has(toy, protocol, shots, count):
    asked = {"head": "zero-shot", "shots": shots, "protocol": protocol}
    assert train(folder=toy, **asked)[0].row()["val_per_class"] == count


@pytest.mark.parametrize(
    "head, hyper, asked, selected_on",
    [
        ("clip-adapter", {"epochs": 1}, None, "fixed"),
        ("tip-adapter", {}, None, "val"),
        ("tip-adapter", {"alpha": 1}, None, "val"),
        ("tip-adapter", {"alpha": 1, "beta": 1}, None, "fixed"),
        ("tip-adapter", {}, "fixed", "fixed"),
        ("clip-adapter", {"epochs": 1}, "val", "val"),
    ],
)
def test_a_run_is_selected_in_its_published_way(toy, head, hyper, asked, selected_on):
    row = train(folder=toy, head=head, shots=1, select=asked, hyper=hyper)[0].row()
    assert row["selected_on"] == selected_on


def test_nothing_is_left_to_select_where_all_is_given(toy):
    with pytest.raises(SpecError, match="tip-adapter has nothing left to select on validation"):
        train(folder=toy, head="tip-adapter", select="val", hyper={"alpha": 1, "beta": 1})


@pytest.mark.parametrize("text", ["true", "True", "yes", "on", "1"])
def test_words_that_mean_true(text):
    assert make_head("clip-adapter", {"final_relu": text}).final_relu is True


@pytest.mark.parametrize("text", ["false", "no", "off", "0", "OFF"])
def test_words_that_mean_false(text):
    assert make_head("clip-adapter", {"final_relu": text}).final_relu is False


def test_a_word_that_means_neither_is_refused():
    with pytest.raises(SpecError, match="final_relu is true or false; got maybe"):
        make_head("clip-adapter", {"final_relu": "maybe"})


def test_values_are_read_as_the_type_of_their_field():
    head = make_head("clip-adapter", {"lr": "1e-2", "epochs": "7", "batch": 9, "hidden": "D/2"})
    assert (head.lr, head.epochs, head.batch, head.hidden) == (0.01, 7, 9, "D/2")
    assert type(head.lr) is float and type(head.epochs) is int
    assert make_head("clip-adapter", {"lr": None}).lr == 1e-3  # the preset fills it in
    with pytest.raises(SpecError, match=r"epochs is a whole number; got 2\.5"):
        make_head("clip-adapter", {"epochs": "2.5"})
    with pytest.raises(SpecError, match="alpha is a number; got None"):
        make_head("clip-adapter", {"alpha": None})
    with pytest.raises(SpecError, match="lr is a number; got fast"):
        make_head("clip-adapter", {"lr": "fast"})


def test_the_error_for_an_unknown_name_lists_the_known_ones():
    said = "there is no head 'gdb', did you mean gda?; known: gda, taskres"
    assert unknown("head", "gdb", ["gda", "taskres"]) == said
    assert unknown("head", "xyz", ["gda"]) == "there is no head 'xyz'; known: gda"


def test_runs_that_differ_in_what_varies_train_together(toy):
    cache = find(toy)

    def spec(head="clip-adapter", shots=2, seed=1, select=None, **hyper):
        made = make_head(head, hyper)
        asked = {"shots": shots, "seed": seed, "protocol": "coop", "select": select}
        return spec_of(cache, made, **asked, given=hyper)

    asked = [
        spec(),
        spec(seed=2, alpha=0.5, lr=0.1),
        spec(shots=4),
        spec(hidden="8"),
        spec(head="taskres"),
        spec(shots=4, weight_decay=0.5),
        spec(head="tip-adapter", alpha=1, select="val"),
        spec(head="tip-adapter", alpha=9, select="val"),
        spec(head="tip-adapter", beta=2, select="val"),
    ]
    assert groups(asked) == [[0, 1], [2, 5], [3], [4], [6, 7], [8]]


def test_a_row_says_how_many_runs_were_trained_with_it(toy):
    cache, head = find(toy), make_head("zero-shot", {})
    asked = {"shots": 1, "protocol": "coop", "select": None, "given": ()}
    specs = [spec_of(cache, head, seed=seed, **asked) for seed in range(5)]
    parts = list(run(cache, specs, torch.device("cpu"), largest=2))
    assert [len(part) for part in parts] == [2, 2, 1]
    results = list(itertools.chain.from_iterable(parts))
    assert [result.spec for result in results] == specs
    assert [result.timing.group_size for result in results] == [2, 2, 2, 2, 1]
    assert {result.timing.device for result in results} == {"cpu"}


@pytest.mark.parametrize("shots", [1, 2])
def test_by_folds_no_validation_image_of_a_cache_is_read(hard, tmp_path, shots):
    """The same rows, though the file's validation images are others with wrong labels."""
    poisoned = tmp_path / "poisoned"
    shutil.copytree(hard, poisoned)
    with h5py.File(next(poisoned.rglob("*.h5")), "r+") as file:
        val = file["splits/val"]
        val["features"][...] = -val["features"][...]
        val["labels"][...] = (val["labels"][...] + 1) % 7
    rows = []
    for folder in (hard, poisoned):
        of_folder = []
        for head in ("auto", "clip-adapter"):
            result, _ = train(folder=folder, head=head, shots=shots, select="cv")
            row = result.row()
            of_folder.append({word: row[word] for word in ("top1", "nll", "temperature", "ece_t")})
        rows.append(of_folder)
    assert rows[0] == rows[1]
    assert all((row["temperature"] is None) == (shots == 1) for row in rows[0])

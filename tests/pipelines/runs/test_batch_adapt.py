"""`cliad predict --batch-adapt`: a saved head, adapted to all images of a call."""

import json
import shutil

import plain
import pytest
import torch
from torch.nn import functional as F

from cliad.adapters.core.transductive import adapt_to_batch
from cliad.cache.extract.choices import Extras
from cliad.cli import main
from cliad.pipelines.experiments.episode import pick_device, score_rows
from cliad.pipelines.experiments.train import train
from cliad.pipelines.extract import extract
from cliad.pipelines.runs import batch_adapt, run_folder
from cliad.pipelines.runs.batch_adapt import CAUTION, support_of
from cliad.pipelines.runs.predict import PredictError, load, predict

N_IMAGE = 60  # of the test images


@pytest.fixture(scope="module")
def some(used, tmp_path_factory):
    """A folder with a few test images, and the rows of the test split that they are."""
    folder = tmp_path_factory.mktemp("some")
    rows = list(range(0, len(used.labels), len(used.labels) // N_IMAGE))[:N_IMAGE]
    paths = used.cache.split("test").paths(rows)
    for path in paths:
        shutil.copy(used.images / f"{path}.png", folder)
    order = sorted(range(len(rows)), key=lambda place: paths[place])
    return folder, [rows[place] for place in order]


def probabilities(predictions, classnames):
    """(n, n_class) of predictions that name every class."""
    rows = []
    for prediction in predictions:
        of_class = dict(prediction.top)
        rows.append([of_class[name] for name in classnames])
    return torch.tensor(rows, dtype=torch.float64)


def test_predictions_are_those_of_the_algorithm_on_cached_features(used, some):
    folder, rows = some
    run = load(used.run)
    x = torch.from_numpy(used.cache.split("test").rows(rows))
    episode = train(folder=used.caches, head="clip-adapter", shots=8)[0].draw.episode
    support = F.normalize(episode.features[episode.index], dim=1)
    logits = run.logits(x) / run.about["temperature"]
    adapted = plain.adapted_to_batch(logits, F.normalize(x, dim=1), support, episode.y)
    asked = {"top": 10, "pretrained": str(used.weights), "batch": 7}
    found = list(predict(run.folder, [folder], batch_adapt=True, caches=used.caches, **asked))
    got = probabilities(found, run.classnames)
    # Images are read again here, so features differ from the cache's by rounding.
    torch.testing.assert_close(got, adapted.softmax(dim=1), rtol=0, atol=2e-3)
    without = probabilities(predict(run.folder, [folder], **asked), run.classnames)
    assert (got - without).abs().max() > 0.02


def test_a_head_on_features_before_the_projection_is_adapted_by_the_features_alone(used, tmp_path):
    extract(
        "digits",
        model=used.model,
        pretrained=str(used.weights),
        cache_folder=tmp_path,
        extras=Extras(pre_projection=True),
    )
    result, cache = train(folder=tmp_path, head="prolip", shots=2, transductive=True)
    run = load(run_folder.save(result, cache, tmp_path / "run"))
    test = score_rows(cache, "test", pick_device("cpu"), columns=("pre_projection",))
    support = support_of(run.about, run.folder, tmp_path)
    x = test.x.gather(torch.arange(len(test.x)))
    found = run.probabilities(x, support)
    # By the rows of the cache: it is what the row of the run says.
    right = (found.argmax(dim=1) == test.y).float().mean().item()
    assert right == pytest.approx(result.test.scores.top1)
    logits = run.logits(x) / run.about["temperature"]
    features = F.normalize(test.features, dim=1)
    expected = adapt_to_batch(logits, features, support.x, support.y)
    torch.testing.assert_close(found, expected.softmax(dim=1), rtol=1e-4, atol=1e-5)


def test_an_image_that_cannot_be_read_takes_no_part(used, some, tmp_path):
    folder, _ = some
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    asked = {"batch_adapt": True, "caches": used.caches, "pretrained": str(used.weights)}
    whole = list(predict(used.run, [folder], **asked))
    found = list(predict(used.run, [bad, folder, bad], **asked))
    assert [prediction.error is None for prediction in found] == [False] + [True] * N_IMAGE + [
        False
    ]
    assert found[1:-1] == whole
    assert {prediction.batch for prediction in whole} == {N_IMAGE}
    (alone,) = predict(used.run, [bad], **asked)
    assert alone.error is not None


def test_a_run_without_its_cache_is_refused_in_one_line(used, some, tmp_path):
    with pytest.raises(PredictError) as raised:
        predict(used.run, [some[0]], batch_adapt=True, caches=tmp_path)
    message = str(raised.value)
    assert "--batch-adapt takes the run's training images from its cache" in message
    assert "is not there; give the folder that holds it with --cache DIR" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"fingerprint": "FIRST-00000000"}, "has changed since"),
        ({"spec": {"dataset": "digits"}}, "run.json does not say how images were drawn"),
        (
            {"spec": {"dataset": "digits", "shots": 10**6, "seed": 1, "protocol": "coop"}},
            "at most 87 shots are possible",
        ),
        (
            {"spec": {"dataset": "digits", "shots": "many", "seed": 1, "protocol": "coop"}},
            "run.json does not say how images were drawn",
        ),
        ({"spec": {"dataset": 7, "shots": 1, "seed": 1, "protocol": "coop"}}, "run.json does not"),
        ({"spec": {"dataset": "../x", "shots": 1, "seed": 1, "protocol": "coop"}}, "is not there"),
    ],
)
def test_a_draw_that_cannot_be_made_again_is_refused_in_one_line(used, change, expected):
    run = load(used.run)
    if "fingerprint" in change:
        image_id = run.about["fingerprint"].partition("-")[0]
        change = {"fingerprint": change["fingerprint"].replace("FIRST", image_id)}
    with pytest.raises(PredictError) as raised:
        support_of({**run.about, **change}, run.folder, used.caches)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_support_is_what_the_run_was_trained_on(used):
    support = support_of(load(used.run).about, used.run, used.caches)
    episode = train(folder=used.caches, head="clip-adapter", shots=8)[0].draw.episode
    assert torch.equal(support.y, episode.y)
    expected = F.normalize(episode.features[episode.index], dim=1)
    torch.testing.assert_close(support.x, expected)


def test_more_images_than_can_be_held_are_refused_before_any_is_read(used, some, monkeypatch):
    monkeypatch.setattr(batch_adapt, "LARGEST_BATCH", 10_000)
    found = predict(
        used.run, [some[0]], batch_adapt=True, caches=used.caches, pretrained=str(used.weights)
    )
    width = load(used.run).about["width"]
    most = 10_000 // (4 * (2 * width + 3 * 10))
    with pytest.raises(PredictError, match=f"here at most {most}; got {N_IMAGE}"):
        next(found)


@pytest.fixture
def typed(used, monkeypatch, capsys):
    """Predict in this process, as one types it."""

    def run(*words):
        argv = ["cliad", "predict", used.run, *words, "--pretrained", used.weights]
        argv += ["--batch-adapt", "--cache", used.caches]
        monkeypatch.setattr("sys.argv", list(map(str, argv)))
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


def test_it_warns_in_one_line(typed, some):
    code, out, err = typed(some[0])
    assert code == 0
    assert len(out.splitlines()) == N_IMAGE * 6
    assert err.count(CAUTION) == 1
    assert "small" not in err


def test_a_small_batch_is_said_to_be_small(typed, some):
    code, _, err = typed(sorted(some[0].iterdir())[0])
    assert code == 0
    assert "a batch of 1 is small for 10 classes; the head is adapted" in err


def test_json_says_to_how_many_images_the_head_was_adapted(typed, some, used):
    _, out, _ = typed(some[0], "--json")
    rows = json.loads(out)
    assert {row["batch_adapted"] for row in rows} == {N_IMAGE}
    plain_row = next(predict(used.run, [some[0]], pretrained=str(used.weights))).json()
    assert "batch_adapted" not in plain_row

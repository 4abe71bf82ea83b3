"""`cliad predict`: a trained head on image files, and on files that are not images."""

import csv
import io
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
import toy_clip
from conftest import toy_cache
from PIL import Image

from cliad.cache.encoders.base import EncoderError
from cliad.cache.extract.choices import Extras
from cliad.cache.formats.importing import import_features
from cliad.pipelines.experiments.train import train
from cliad.pipelines.extract import extract
from cliad.pipelines.runs import run_folder
from cliad.pipelines.runs.predict import PredictError, find_images, load, predict


@pytest.mark.parametrize("name", ["run", "probe"])
def test_predictions_are_those_of_the_cached_features(used, name):
    run, split = load(getattr(used, name)), used.cache.split("test")
    found = list(predict(run.folder, [used.images], top=10, pretrained=str(used.weights)))
    logits = run.logits(torch.from_numpy(split.rows()))
    margin = (logits.topk(2).values @ torch.tensor([1.0, -1.0])).tolist()
    expected = [run.classnames[c] for c in logits.argmax(dim=-1).tolist()]
    assert [Path(p.path).stem for p in found] == split.paths() and (
        name == "run" or len({*expected}) == 10
    )
    assert not [i for i, p in enumerate(found) if p.top[0][0] != expected[i] and margin[i] >= 0.01]
    assert all(abs(sum(p for _, p in one.top) - 1) < 1e-4 for one in found)


def test_the_temperature_is_applied(used, tmp_path):
    def warm(about):
        about["temperature"] = 2.5

    run, x = changed(used, tmp_path, warm), torch.from_numpy(used.cache.split("test").rows()[:4])
    cooled = run.classifier.logits(x) / 2.5
    torch.testing.assert_close(run.probabilities(x), cooled.softmax(dim=-1))
    assert not torch.allclose(run.probabilities(x), load(used.run).probabilities(x))


def test_a_validation_set_that_is_all_right_makes_nothing_certain(tmp_path):
    toy_cache(tmp_path, noise=0.05)
    row = train(folder=tmp_path, shots=4)[0].row()
    assert row["top1"] == 1 and 0.2 < row["temperature"] < 5


def test_a_bad_image_is_named_and_stops_nothing(used, tmp_path):
    good = sorted(used.images.iterdir())[0]
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    asked = [
        tmp_path / "cut.png",
        good,
        tmp_path / "none.png",
        tmp_path / "text.jpg",
        tmp_path / "empty.png",
        tmp_path,
    ]
    found = list(predict(used.run, asked, pretrained=str(used.weights), batch=2))
    assert [p.error is None for p in found] == [
        False,
        True,
        False,
        False,
        False,
        False,
        False,
        False,
    ]
    assert found[2].error == "there is no such file" and all(
        "\n" not in p.error for p in found if p.error
    )


def test_200_spoiled_image_files_are_reported_and_stop_nothing(used, tmp_path):
    whole, image = {}, Image.radial_gradient("L").convert("RGB").resize((48, 40))
    for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp"):
        image.save(tmp_path / f"whole.{kind}")
        whole[kind] = (tmp_path / f"whole.{kind}").read_bytes()
    for seed in range(200):
        r = random.Random(seed)
        kind = r.choice(sorted(whole))
        raw = bytearray(whole[kind][: r.randrange(len(whole[kind]))] if seed % 2 else whole[kind])
        for _ in range(min(len(raw), r.choice((0, 1, 10, 100)))):
            raw[r.randrange(len(raw))] = r.randrange(256)
        (tmp_path / f"{seed:03}.{kind}").write_bytes(raw)
    found = list(predict(used.run, [tmp_path], pretrained=str(used.weights)))
    assert len(found) == 206 and not [p for p in found if "whole" in p.path and p.error]
    assert (
        all("\n" not in p.error for p in found if p.error)
        and sum(p.error is not None for p in found) > 50
    )


def test_a_head_on_features_before_the_projection_sees_them_too(used, tmp_path):
    extract(
        "digits",
        model=used.model,
        pretrained=str(used.weights),
        cache_folder=tmp_path,
        extras=Extras(pre_projection=True),
    )
    result, cache = train(folder=tmp_path, head="prolip", shots=2)
    run, split = load(run_folder.save(result, cache, tmp_path / "run")), cache.split("test")
    x = torch.cat(
        [
            torch.from_numpy(split.rows()),
            torch.tensor(cache.column("test", "pre_projection")[:]).float(),
        ],
        dim=1,
    )
    found = list(
        run.predict([used.images], encoder=run.encoder(pretrained=str(used.weights)), top=1)
    )
    expected = [run.classnames[c] for c in run.logits(x).argmax(dim=-1).tolist()]
    assert sum(p.top[0][0] == name for p, name in zip(found, expected, strict=True)) > 530


def test_folders_and_globs_are_their_images(used, tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/1.png", "a/b/2.JPG", "a/notes.txt", "[x].png"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert find_images(["a"]) == ["a/1.png", "a/b/2.JPG"]
    assert find_images(["a/*.png", "[x].png", "a/**/*.JPG", "none*.png"]) == [
        "a/1.png",
        "[x].png",
        "a/b/2.JPG",
        "none*.png",
    ]


def test_an_empty_word_and_a_name_that_is_too_long_are_errors_of_their_own(
    used, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    words = ["", "a.png", "b" * 5000]
    assert find_images(words) == words
    found = list(predict(used.run, words, pretrained=str(used.weights)))
    assert [prediction.error is None for prediction in found] == [False, True, False]


def test_another_encoder_is_refused_with_both_hashes(used, tmp_path):
    other = toy_clip.weights(tmp_path, used.model, seed=1)
    theirs = load(used.run).about["image_recipe"]["encoder"]["weights"]
    with pytest.raises(
        PredictError, match=r"is not the encoder of this run: its weights here [0-9a-f]{16}, there"
    ) as error:
        load(used.run).encoder(pretrained=str(other))
    assert theirs[:16] in str(error.value) and "\n" not in str(error.value)
    wide = toy_clip.register(tmp_path, "toy-use-wide", embed_dim=48)
    with pytest.raises(PredictError, match="gives 48 features, this run takes 24"):
        load(used.run).encoder(model=wide, pretrained=str(toy_clip.weights(tmp_path, wide)))
    with pytest.raises(PredictError, match=r"were a file; give it with --pretrained FILE"):
        load(used.run).encoder()
    with pytest.raises(EncoderError, match=r"no weights 'none.pt'"):
        load(used.run).encoder(pretrained="none.pt")


def test_a_moved_run_works(used, tmp_path):
    shutil.copytree(used.run, tmp_path / "moved")
    image = [sorted(used.images.iterdir())[0]]
    there, here = (
        list(predict(run, image, pretrained=str(used.weights)))
        for run in (used.run, tmp_path / "moved")
    )
    assert there == here


def test_an_imported_cache_has_no_encoder_to_check(used, tmp_path):
    from cliad.cache.formats.exporting import export_cache

    export_cache(used.cache.path, format="npz", out=tmp_path / "x.npz")
    import_features(
        "npz",
        tmp_path / "x.npz",
        dataset="mine",
        encoder="somebody's",
        cache_folder=tmp_path / "caches",
    )
    result, cache = train(folder=tmp_path / "caches", shots=2)
    run = load(run_folder.save(result, cache, tmp_path / "run"))
    with pytest.raises(PredictError, match=r"were imported.*--model NAME"):
        run.encoder()
    assert run.encoder(model=used.model, pretrained=str(used.weights)).dim == 24


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": "../evil"}, "no encoder that can be loaded by name"),
        ({"model": "local-dir:/tmp"}, "no encoder that can be loaded by name"),
        ({"model": ["x"]}, "no encoder that can be loaded by name"),
        ({"pretrained": "/tmp/evil.pt"}, "which is not a tag"),
    ],
)
def test_a_run_folder_cannot_name_a_file_to_load(used, tmp_path, change, message):
    run = shutil.copytree(used.run, tmp_path / "run")
    about = json.loads((run / "run.json").read_text())
    about["image_recipe"]["encoder"] |= change
    (run / "run.json").write_text(json.dumps(about))
    for pretrained in (None, ""):
        with pytest.raises(PredictError, match=message):
            load(run).encoder(pretrained=pretrained)


def test_latest_is_the_newest_run(used, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(run_folder.RunFolderError, match="cliad train"):
        load("latest")
    for i, name in enumerate(("a", "b", "c")):
        shutil.copytree(used.run, tmp_path / "runs" / name)
        os.utime(tmp_path / "runs" / name / "run.json", (1000 - abs(i - 1),) * 2)
    assert load("latest").folder == Path("runs/b")


@pytest.fixture
def cliad(used, monkeypatch, capsys):
    from cliad.cli import main

    monkeypatch.chdir(used.folder)
    monkeypatch.setenv("CLIAD_CACHE", str(used.caches))

    def run(*words):
        monkeypatch.setattr("sys.argv", ["cliad", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return run


def test_the_command_prints_a_list_json_or_csv(used, cliad, tmp_path):
    image, bad = sorted(used.images.iterdir())[0], tmp_path / "bad.png"
    bad.write_text("no image")
    words = ["predict", "latest", image, bad, "--pretrained", used.weights, "--top", 2]
    code, out, err = cliad(*words)
    assert code == 0 and out.count("%") == 2 and "bad.png: UnidentifiedImageError" in err
    code, out, err = cliad(*words, "--json")
    first, second = json.loads(out)
    assert (
        (code, err) == (0, "")
        and set(first) == {"path", "top"}
        and set(second) == {"path", "error"}
    )
    assert len(first["top"]) == 2 and set(first["top"][0]) == {"class", "probability"}
    code, out, err = cliad(*words, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (
        [row["rank"] for row in rows] == ["1", "2", ""]
        and rows[2]["error"]
        and rows[0]["class"] == first["top"][0]["class"]
    )


def test_no_image_classified_is_exit_1(used, cliad, tmp_path):
    code, out, _ = cliad(
        "predict", "latest", tmp_path / "none.png", "--pretrained", used.weights, "--json"
    )
    assert code == 1 and json.loads(out) == [
        {"path": str(tmp_path / "none.png"), "error": "there is no such file"}
    ]
    assert cliad("predict", "latest", tmp_path / "x.png", "--json", "--csv")[0] == 2
    code, out, err = cliad("predict", "latest", tmp_path / "x.png", "--top", 0)
    assert code == 1 and err.startswith("cliad: top is") and err.count("\n") == 1


def changed(used, tmp_path, change):
    """A copy of the run whose run.json was changed in place by `change`."""
    run = shutil.copytree(used.run, tmp_path / "run")
    about = json.loads((run / "run.json").read_text())
    change(about)
    (run / "run.json").write_text(json.dumps(about))
    return load(run)


def other_preprocessing(about):
    about["image_recipe"]["encoder"]["preprocess"]["mean"] = [0.5, 0.5, 0.5]


def other_weights(about):
    about["image_recipe"]["encoder"]["weights"] = "f" * 64


def other_activation(about):
    about["image_recipe"]["encoder"]["activation"] = "Swish"


def no_preprocessing(about):
    del about["image_recipe"]["encoder"]["preprocess"]


def other_encoder(about):
    about["encoder_id"] = "0123abcd"


@pytest.mark.parametrize(
    "change, said",
    [
        (other_weights, r"is not the encoder of this run: its weights here \w{16}, there f{16};"),
        (other_preprocessing, r"its preprocess here .*0\.48.*, there .*\[0\.5, 0\.5, 0\.5\]"),
        (no_preprocessing, r"its preprocess here .*, there None"),
        (other_activation, r"its activation here GELU, there Swish"),
        (other_encoder, r"is encoder \w{8}, this run was trained with 0123abcd"),
    ],
)
def test_an_encoder_that_differs_in_one_thing_is_refused(used, tmp_path, change, said):
    run = changed(used, tmp_path, change)
    with pytest.raises(PredictError, match=said) as caught:
        run.encoder(pretrained=str(used.weights))
    assert "\n" not in str(caught.value)
    assert load(used.run).encoder(pretrained=str(used.weights)).dim == 24


def test_an_encoder_is_loaded_with_the_activation_of_the_run(used, tmp_path):
    def quick(about):
        about["image_recipe"]["encoder"]["activation"] = "QuickGELU"

    with pytest.raises(PredictError, match=r"is encoder .*, this run was trained with"):
        changed(used, tmp_path, quick).encoder(pretrained=str(used.weights))


def test_probabilities_without_a_temperature_are_the_plain_softmax(used, tmp_path):
    def none(about):
        about["temperature"] = None

    run, x = changed(used, tmp_path, none), used.cache.split("test").rows()[:4]
    expected = run.logits(x).softmax(dim=-1)
    torch.testing.assert_close(run.probabilities(x), expected)


@pytest.mark.parametrize("shape", [(24,), (3, 23), (3, 25), (1, 3, 24)])
def test_features_of_another_shape_are_refused(used, shape):
    with pytest.raises(PredictError, match=r"takes features \(n, 24\), got features of shape \("):
        load(used.run).logits(torch.ones(shape))


def test_features_that_are_not_finite_are_refused(used):
    x = torch.ones(2, 24)
    x[1, 3] = float("nan")
    with pytest.raises(PredictError, match="gives logits that are not finite"):
        load(used.run).logits(x)


def test_features_are_rounded_as_the_cache_rounded_its_own(used):
    run = load(used.run)
    x = 1 / 3 + torch.arange(24)[None] / 7
    rounded = x.half().float()
    assert run.about["dtype"] == "float16"
    torch.testing.assert_close(run.logits(x), run.classifier.logits(rounded), rtol=0, atol=0)
    assert (run.logits(x) != run.classifier.logits(x)).any()


def test_the_likeliest_classes_come_first_with_their_probabilities(used):
    run, x = load(used.run), used.cache.split("test").rows()[:5]
    chances = run.probabilities(x).tolist()
    for row, found in zip(chances, run.top(x, 3), strict=True):
        order = sorted(range(10), key=lambda c: -row[c])[:3]
        assert [name for name, _ in found] == [run.classnames[c] for c in order]
        assert [chance for _, chance in found] == [row[c] for c in order]
    assert [len(found) for found in run.top(x, 99)] == [10] * 5


@pytest.mark.parametrize("words, said", [({"top": 0}, "top is"), ({"batch": 0}, "batch is")])
def test_numbers_below_one_are_refused(used, words, said):
    with pytest.raises(PredictError, match=f"{said} the number of .*, at least 1; got 0"):
        predict(used.run, [], **words)


def test_a_cell_that_a_spreadsheet_would_compute_is_text(used, cliad, tmp_path):
    image = sorted(used.images.iterdir())[0]
    name = tmp_path / "=1+1.png"
    shutil.copy(image, name)
    os.chdir(tmp_path)
    code, out, _ = cliad("predict", used.run, name.name, "--csv", "--pretrained", used.weights)
    assert code == 0
    assert out.splitlines()[1].startswith("'=1+1.png,1,")

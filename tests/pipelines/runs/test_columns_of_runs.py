"""A head on patches, from extraction to the answers of its run."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from cliad.adapters import HEADS
from cliad.adapters.core.head import HeadError
from cliad.cache.extract.choices import Extras
from cliad.pipelines.experiments import memory
from cliad.pipelines.experiments.base_to_new import base_to_new
from cliad.pipelines.experiments.train import train
from cliad.pipelines.extract import extract
from cliad.pipelines.runs import run_folder
from cliad.pipelines.runs.export import ExportError, export_run
from cliad.pipelines.runs.predict import load
from cliad.pipelines.runs.run_folder import RunFolderError
from cliad.pipelines.runs.serve.service import InferenceService

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def patches(used, tmp_path_factory):
    """A folder of one cache with patches, a result of vt-clip on it, and its cache."""
    folder = tmp_path_factory.mktemp("patches")
    extract(
        "digits",
        model=used.model,
        pretrained=str(used.weights),
        cache_folder=folder,
        extras=Extras(tokens=True),
    )
    result, cache = train(folder=folder, head="vt-clip", shots=2, hyper={"lr": 0.01})
    run_folder.save(result, cache, folder / "runs" / "run")
    return folder, result, cache


def rows_of(cache):
    """The test rows as numpy puts them side by side."""
    tokens = np.asarray(cache.column("test", "tokens")[:], np.float32)
    return np.concatenate([cache.split("test").rows(), tokens.reshape(len(tokens), -1)], axis=1)


def test_the_row_of_a_run_is_what_its_folder_answers(patches):
    folder, result, cache = patches
    run = load(folder / "runs" / "run")
    assert run.about["parts"] == ["features", "tokens"]
    n_token = cache.column("test", "tokens").shape[1]
    assert run.about["width"] == (1 + n_token) * cache.dim
    found = run.logits(rows_of(cache)).argmax(dim=1).numpy()
    right = (found == cache.split("test").y).mean()
    assert right == pytest.approx(result.test.scores.top1, abs=1e-6)


def test_images_are_answered_as_their_rows_in_the_cache(used, patches):
    folder, _, cache = patches
    run = load(folder / "runs" / "run")
    encoder = run.encoder(pretrained=str(used.weights))
    predicted = list(run.predict([used.images], encoder=encoder, top=1))
    expected = run.logits(rows_of(cache)).argmax(dim=1).tolist()
    pairs = zip(predicted, expected, strict=True)
    # The cache has halves: a few images lie on the edge between two classes.
    assert sum(one.top[0][0] == run.classnames[label] for one, label in pairs) > 530


def test_the_page_answers_as_predict_does(used, patches):
    folder, _, _ = patches
    run = load(folder / "runs" / "run")
    image = sorted(used.images.iterdir())[0]
    service = InferenceService(run.folder, caches=folder, pretrained=str(used.weights))
    answer = service.classify(image.read_bytes(), top=3)
    encoder = run.encoder(pretrained=str(used.weights))
    (expected,) = run.predict([image], encoder=encoder, top=3)
    assert [entry["class"] for entry in answer["top"]] == [name for name, _ in expected.top]
    assert answer["nearest"] and answer["zero_shot"]


def test_it_is_exported_for_features_and_patches(patches, tmp_path):
    folder, _, cache = patches
    run = load(folder / "runs" / "run")
    (path,) = export_run(run.folder, format="onnx", out=tmp_path / "head.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = rows_of(cache)[:50]
    logits, _ = session.run(None, {"features": x})
    np.testing.assert_allclose(logits, run.logits(x).numpy(), atol=1e-3)
    (path,) = export_run(run.folder, format="safetensors", out=tmp_path / "head.safetensors")
    with safe_open(path, "pt") as file:
        assert {"p.query", "p.key", "p.value", "p.output", "c.text"} <= set(file.keys())


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"format": "npz"}, "takes tokens beside features, so it has no class weights"),
        ({"format": "onnx", "with_encoder": True}, "export it without --with-encoder"),
    ],
)
def test_an_export_that_cannot_be_is_one_line(patches, tmp_path, asked, said):
    folder, _, _ = patches
    with pytest.raises(ExportError, match=said):
        export_run(folder / "runs" / "run", out=tmp_path / "new", **asked)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("parts", [["tokens"], ["features", "pixels"], ["features", []]])
def test_other_parts_in_run_json_are_damage(patches, tmp_path, parts):
    _, result, cache = patches
    run = run_folder.save(result, cache, tmp_path / "run")
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"parts": parts}))
    with pytest.raises(RunFolderError, match=r"parts in run\.json"):
        load(run)


def test_a_cache_without_patches_names_the_option_that_makes_them(used):
    with pytest.raises(HeadError, match=r"needs a cache with patch tokens; extract with --tokens$"):
        train(folder=used.caches, head="vt-clip", shots=2)


def test_new_classes_are_scored_with_their_texts(patches):
    folder, _, _ = patches
    (row,) = base_to_new(folder=folder, head="vt-clip", shots=2, hyper={"alpha": 0.0})
    assert row["base_top1"] == pytest.approx(row["zero_shot_base_top1"], abs=0.005)
    assert row["new_top1"] == pytest.approx(row["zero_shot_new_top1"], abs=0.005)
    steep = {"lr": 0.1, "epochs": 60}
    (trained,) = base_to_new(folder=folder, head="vt-clip", shots=2, hyper=steep)
    assert trained["base_top1"] != row["base_top1"] and not trained["diverged"]


def test_a_group_on_wide_rows_has_room_for_them(patches, monkeypatch):
    _, _, cache = patches
    # Half a gigabyte on a machine where the narrow head's group is as wide as it ever is.
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**29)
    assert memory.group_size(HEADS["clip-adapter"](), cache, 64, CPU) == memory.CPU_GROUP
    head = HEADS["vt-clip"](batch=64)
    n_token = cache.column("train", "tokens").shape[1]
    held = 4 * 640 * (1 + n_token) * cache.dim  # bytes of a support, once gathered whole
    assert 1 <= memory.group_size(head, cache, 64, CPU) <= 2**29 // held

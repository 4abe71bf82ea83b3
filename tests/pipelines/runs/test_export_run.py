"""A run for other programs: ONNX Runtime and plain numpy give the numbers that cliad gives."""

import json
import os
import resource

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from cliad.cli import main
from cliad.pipelines.experiments.train import train
from cliad.pipelines.runs import export_onnx, run_folder
from cliad.pipelines.runs.export import ExportError, export_run
from cliad.pipelines.runs.predict import load, predict


def ask(path, **inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


@pytest.mark.parametrize("name", ["run", "probe"])
def test_a_head_in_onnx_runtime_gives_the_same_logits(used, tmp_path, name):
    run, x = load(getattr(used, name)), used.cache.split("test").rows()
    (path,) = export_run(run.folder, format="onnx", out=tmp_path / "head.onnx")
    logits, p = ask(path, features=x)
    assert (
        abs(logits - run.logits(x).numpy()).max() < 1e-3
        and abs(p - run.probabilities(x).numpy()).max() < 1e-4
    )
    assert ask(path, features=x[:1])[0].shape == (1, 10)
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(facts["cliad.classnames"]) == run.classnames and json.loads(
        facts["cliad.preprocess"]
    )["size"] == [32, 32]
    assert [file.name for file in tmp_path.iterdir()] == ["head.onnx"]


def test_encoder_and_head_in_one_file_take_pixels(used, tmp_path):
    files = sorted(used.images.iterdir())[:40]
    (path,) = export_run(
        used.probe,
        format="onnx",
        out=tmp_path / "whole.onnx",
        with_encoder=True,
        pretrained=str(used.weights),
    )
    pixels = np.stack(
        [
            np.asarray(Image.open(file).resize((32, 32), Image.BICUBIC)).transpose(2, 0, 1)
            for file in files
        ]
    )
    _, p = ask(path, pixels=pixels)
    names = load(used.probe).classnames
    for row, found in zip(
        p, predict(used.probe, files, pretrained=str(used.weights), top=10), strict=True
    ):
        assert dict(found.top) == pytest.approx(
            dict(zip(names, row.tolist(), strict=True)), abs=5e-3
        )


def test_weights_too_large_for_one_file_stand_in_a_second_one(used, tmp_path, monkeypatch):
    monkeypatch.setattr(export_onnx, "LARGEST", 0)
    (tmp_path / "head.onnx").write_text("old")
    written = export_run(used.run, format="onnx", out=tmp_path / "head.onnx", force=True)
    assert written == [tmp_path / "head.onnx", tmp_path / "head.onnx.data"]
    assert sorted(tmp_path.iterdir()) == written
    x = used.cache.split("test").rows()
    logits, _ = ask(tmp_path / "head.onnx", features=x)
    assert abs(logits - load(used.run).logits(x).numpy()).max() < 1e-3


def test_a_linear_head_is_plain_class_weights(used, tmp_path):
    zero, test = (
        run_folder.save(*train(folder=used.caches, head="zero-shot", shots=1), tmp_path / "zero"),
        used.cache.split("test"),
    )
    for name, folder, x in (
        ("probe", used.probe, test.rows()),
        ("zero", zero, test.rows(unit=True)),
    ):
        export_run(folder, format="npz", out=tmp_path / f"{name}.npz")
        with np.load(tmp_path / f"{name}.npz") as found:
            assert (
                str(found["input"]) == ("raw" if name == "probe" else "unit")
                and found["classnames"].tolist()[0] == "zero"
            )
            logits = found["logit_scale"] * x @ found["text"].T + found["bias"]
        assert (
            abs(logits - load(folder).classifier.logits(torch.from_numpy(x)).numpy()).max()
            < 2e-3 * abs(logits).max()
        )


@pytest.mark.parametrize("head", ["gda", "offset-lr", "text-ridge", "whitened-lr"])
def test_heads_without_a_network_are_class_weights_and_onnx(used, tmp_path, head):
    trained = train(folder=used.caches, head=head, shots=4, select="fixed")
    folder = run_folder.save(*trained, tmp_path / "run")
    x = used.cache.split("test").rows(unit=True)
    expected = load(folder).classifier.logits(torch.from_numpy(x)).numpy()
    export_run(folder, format="npz", out=tmp_path / "head.npz")
    with np.load(tmp_path / "head.npz") as found:
        logits = found["logit_scale"] * x @ found["text"].T + found["bias"]
    assert abs(logits - expected).max() < 1e-3 * abs(expected).max()
    (path,) = export_run(folder, format="onnx", out=tmp_path / "head.onnx")
    raw = used.cache.split("test").rows()
    logits, _ = ask(path, features=raw)
    same = load(folder).logits(raw).numpy()
    # gda's logits share a large constant, whose last bit is what they can agree to.
    assert abs(logits - same).max() < 1e-3 + 1e-6 * abs(same).max()


def test_one_safetensors_file_holds_all(used, tmp_path):
    (path,) = export_run(used.run, format="safetensors", out=tmp_path / "head.safetensors")
    with safe_open(path, "pt") as file:
        assert set(file.keys()) >= {"p.visual_w1", "p.visual_w2", "c.text"}
        assert json.loads(file.metadata()["run.json"])["head"] == "clip-adapter"


@pytest.mark.parametrize(
    "words, said",
    [
        ("--format npz", "not linear"),
        ("--format pt", "known are safetensors, onnx, npz"),
        ("--format npz --with-encoder", "--with-encoder is for"),
        ("--format onnx --with-encoder", "--pretrained FILE"),
        ("--format safetensors --out old", "--force"),
        ("--format safetensors --out old/x", "cannot write"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(
    used, tmp_path, monkeypatch, capsys, words, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").write_text("mine")
    words = words.split() + ([] if "--out" in words else ["--out", "new"])
    monkeypatch.setattr("sys.argv", ["cliad", "export", str(used.run), *words])
    with pytest.raises(SystemExit) as ended:
        main()
    err = capsys.readouterr().err
    assert ended.value.code == 1 and said in err and err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["old"] and (
        tmp_path / "old"
    ).read_text() == "mine"


def test_force_replaces_a_file(used, tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(ExportError, match="exists"):
        export_run(used.run, format="safetensors", out=tmp_path / "x")
    export_run(used.run, format="safetensors", out=tmp_path / "x", force=True)
    assert (tmp_path / "x").stat().st_size > 100


@pytest.mark.parametrize("format", ["npz", "safetensors", "onnx"])
def test_an_export_that_does_not_fit_or_has_no_place_leaves_nothing(used, tmp_path, format):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(ExportError, match="cannot write"):
            export_run(used.probe, format=format, out=tmp_path / "new" / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ExportError, match="a pipe or a device"):
        export_run(used.probe, format=format, out=tmp_path / "pipe", force=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "pipe"]

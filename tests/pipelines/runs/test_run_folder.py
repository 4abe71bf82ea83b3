"""The run folder: all that a run needs elsewhere; damaged and hostile ones are refused."""

import json
import os
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from cliad.adapters import HEADS
from cliad.adapters.core.head import HeadError
from cliad.cache.files import sha256_of
from cliad.pipelines.experiments.spec_error import SpecError
from cliad.pipelines.experiments.train import train
from cliad.pipelines.runs import run_folder
from cliad.pipelines.runs.predict import PredictError, load


def test_it_says_all_that_is_needed_elsewhere(used):
    about = load(used.run).about
    assert (
        about["classnames"][0] == "zero"
        and about["templates"] == used.cache.templates
        and about["temperature"] > 0
    )
    assert (
        about["command"] == "cliad train --alpha 0.6 --shots 8"
        and about["encoder_id"] == used.cache.attrs["encoder_id"]
    )
    recipe = about["image_recipe"]["encoder"]
    assert (
        recipe["preprocess"]["size"] == [32, 32]
        and recipe["activation"] == "GELU"
        and len(recipe["weights"]) == 64
    )
    assert json.loads((used.run / "result.json").read_text())["top1"] > 0
    assert str(used.folder) not in "".join(
        file.read_text() for file in used.run.iterdir() if file.suffix != ".safetensors"
    )


def test_the_card_is_for_people(used):
    card = (used.run / "README.md").read_text()
    row = json.loads((used.run / "result.json").read_text())
    assert (
        card.startswith("# clip-adapter on digits, 8 images per class\n")
        and f"| accuracy | {100 * row['top1']:.1f} % |" in card
    )
    assert (
        "zero, one, two" in card
        and "cliad predict" in card
        and "`cliad train --alpha 0.6 --shots 8`" in card
    )


@pytest.mark.parametrize("head", HEADS)
def test_every_head_comes_back_as_it_was(toy, tmp_path, head):
    try:
        result, cache = train(folder=toy, head=head, shots=2)
    except (HeadError, SpecError) as error:
        pytest.skip(str(error))
    run, x = (
        load(run_folder.save(result, cache, tmp_path / "run")),
        torch.from_numpy(cache.split("test").rows()),
    )
    torch.testing.assert_close(run.logits(x), result.classifier.logits(x))


@pytest.fixture
def copy(used, tmp_path):
    """A copy of the run folder to spoil."""
    return shutil.copytree(used.run, tmp_path / "run")


def change(run, **values):
    about = json.loads((run / "run.json").read_text()) | values
    (run / "run.json").write_text(json.dumps(about))


def refused(run):
    """The one line with which a run folder is refused."""
    with pytest.raises((run_folder.RunFolderError, PredictError)) as error:
        load(run)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600, error.value
    return str(error.value)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"schema": 2}, "a newer version of cliad (it has schema 2, this cliad reads 1); update"),
        ({"schema": 10**400}, "it has schema 10000000000000000000, this cliad reads 1"),
        ({"schema": True}, "has no schema number"),
        ({"schema": 0}, "has no schema number"),
        ({"width": True}, "width in run.json: expected int, got bool"),
        ({"temperature": 5e-324}, "temperature"),
        ({"temperature": 1e308}, "temperature"),
        ({"schema": None}, "has no schema number"),
        ({"head": "no-such-head"}, "no-such-head"),
        ({"head": "__import__('os')"}, "there is no head"),
        ({"hyper": {"alpha": 7}}, "damaged"),
        ({"hyper": []}, "hyper in run.json: expected dict, got list"),
        ({"classnames": ["one"]}, "run.json names 1 classes"),
        ({"classnames": [1, 2]}, "other things than text"),
        ({"classnames": []}, "invalid classnames in run.json: there are none"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"width": 10**9}, "invalid width in run.json: 1000000000 with dim 24"),
        ({"width": 25}, "damaged"),
        ({"parts": ["tokens"]}, "parts"),
        ({"dtype": "object"}, "invalid dtype in run.json: object"),
        ({"head_sha256": "0" * 64}, "not the file that run.json describes"),
        ({"logit_scale": None}, "logit_scale"),
    ],
)
def test_an_invalid_run_json_is_one_line(copy, values, said):
    change(copy, **values)
    assert said in refused(copy)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"schema": 1}',
        "[" * 100_000,
        '{"schema": ' + "9" * 5000 + "}",
        "\x00\xff",
        "{'a': 1}",
    ],
)
def test_a_file_that_is_not_a_run_json_is_one_line(copy, text):
    (copy / "run.json").write_bytes(text.encode("latin1"))
    refused(copy)


def test_a_pickle_is_never_read(copy, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "made"), "w")

    (copy / "head.safetensors").write_bytes(pickle.dumps(Evil()))
    change(copy, head_sha256=run_folder.sha256_of(copy / "head.safetensors"))
    assert "damaged" in refused(copy) and not (tmp_path / "made").exists()


@pytest.mark.parametrize("how", ["missing", "shape", "type"])
def test_other_weights_than_the_head_has_are_one_line(copy, how):
    tensors = load_file(copy / "head.safetensors")
    if how == "missing":
        del tensors["p.visual_w1"]
    if how == "shape":
        tensors["p.visual_w1"] = tensors["p.visual_w1"][:, :5].contiguous()
    if how == "type":
        tensors["p.visual_w1"] = tensors["p.visual_w1"].long()
    save_file(tensors, copy / "head.safetensors")
    change(copy, head_sha256=run_folder.sha256_of(copy / "head.safetensors"))
    assert "damaged" in refused(copy)


def test_200_spoiled_run_folders_are_one_line_each(used, tmp_path):
    whole = {name: (used.run / name).read_bytes() for name in ("run.json", "head.safetensors")}
    for seed in range(200):
        r, run = random.Random(seed), tmp_path / str(seed)
        shutil.copytree(used.run, run)
        name = r.choice(sorted(whole))
        raw = bytearray(whole[name])
        if r.random() < 0.5:
            raw = raw[: r.randrange(len(raw))]
        else:
            for _ in range(r.choice((1, 10, 1000))):
                raw[r.randrange(len(raw))] = r.randrange(256)
        (run / name).write_bytes(raw)
        try:
            load(run)
        except (run_folder.RunFolderError, PredictError) as error:
            assert "\n" not in str(error) and len(str(error)) < 600
        else:
            assert name == "run.json"  # a letter in a name or a command: nothing that can be known
        shutil.rmtree(run)


def test_every_file_of_a_run_may_be_read_by_those_whom_the_umask_lets(toy, tmp_path):
    before = os.umask(0o022)
    try:
        result, cache = train(folder=toy, shots=1, head="gda")
        folder = run_folder.save(result, cache, tmp_path / "run")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert modes == dict.fromkeys(modes, 0o644) and len(modes) == 4


@pytest.mark.parametrize("name", ["run.json", "head.safetensors"])
def test_a_pipe_or_a_device_in_place_of_a_file_is_refused_at_once(used, tmp_path, name):
    folder = shutil.copytree(used.run, tmp_path / "run")
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(run_folder.RunFolderError):
        run_folder.load(folder)


def test_what_may_not_be_read_is_not_called_damaged(used, tmp_path):
    folder = shutil.copytree(used.run, tmp_path / "run")
    (folder / "head.safetensors").unlink()
    (folder / "head.safetensors").mkdir()
    with pytest.raises(run_folder.RunFolderError, match=r"cannot read .*: it is a folder"):
        run_folder.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_damage(used, tmp_path, value):
    folder = shutil.copytree(used.run, tmp_path / "run")
    tensors = load_file(folder / "head.safetensors")
    first = next(iter(tensors))
    tensors[first].flatten()[0] = value
    save_file(tensors, folder / "head.safetensors")
    about = json.loads((folder / "run.json").read_text())
    about["head_sha256"] = sha256_of(folder / "head.safetensors")
    (folder / "run.json").write_text(json.dumps(about))
    with pytest.raises(run_folder.RunFolderError, match="expected finite numbers"):
        run_folder.load(folder)


def test_a_run_that_diverged_is_not_called_damaged_alone(toy, tmp_path):
    result, cache = train(folder=toy, shots=2, hyper={"lr": 1e9, "epochs": 50})
    assert result.row("run")["diverged"]
    folder = run_folder.save(result, cache, tmp_path / "run")
    assert "its training diverged" in refused(folder)


def test_a_run_json_that_would_fill_the_memory_is_refused_unread(copy):
    (copy / "run.json").write_text('{"hyper": [' + "{}," * 6_000_000 + "{}]}")
    assert "more than the 16,777,216 allowed" in refused(copy)

"""`extract --text-tower`: the tower beside the caches, and stage two without open_clip."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy_clip
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import cliad
from cliad.cache.encoders import clip
from cliad.cache.encoders.base import EncoderError
from cliad.cache.encoders.kept_tower import keep_tower, open_tower
from cliad.cache.extract.choices import Extras, PromptChoice
from cliad.cache.file.read import open_cache
from cliad.cli import main
from cliad.pipelines.experiments.spec import SpecError
from cliad.pipelines.experiments.train import train
from cliad.pipelines.extract import extract
from cliad.pipelines.tower import encoded, load_tower, tower_of

CPU = torch.device("cpu")
LINES = ["a cat.", "cat", "a photo of"]

# Python that has no open_clip: to import it fails as where it is not installed.
WITHOUT_OPEN_CLIP = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "open_clip":
            raise ModuleNotFoundError("No module named 'open_clip'", name="open_clip")

sys.meta_path.insert(0, Hidden())
from cliad.cli import main
main()
"""


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """A cache folder with digits by the bundled encoder, and its text tower."""
    folder = tmp_path_factory.mktemp("kept") / "caches"
    extract("digits", model="tiny", cache_folder=folder, extras=Extras(text_tower=True))
    return folder


def without_open_clip(folder, *words):
    """A cliad command in a Python without open_clip."""
    environment = os.environ | {"PYTHONPATH": str(Path(cliad.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_OPEN_CLIP, *words, "--cache", str(folder)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_coop_is_trained_where_open_clip_is_not_installed(caches, tmp_path):
    words = ("train", "--head", "coop", "--shots", "2", "--epochs", "4", "--json")
    kept = without_open_clip(caches, *words, "--out", str(tmp_path / "kept"))
    assert kept.returncode == 0, kept.stderr
    row = json.loads(kept.stdout)
    bare = tmp_path / "bare"
    shutil.copytree(caches / "digits", bare / "digits")
    result, _ = train(folder=bare, head="coop", shots=2, hyper={"epochs": 4})
    assert row["top1"] == pytest.approx(result.test.scores.top1, abs=1e-6)
    none = without_open_clip(bare, *words, "--out", str(tmp_path / "none"))
    assert none.returncode == 1
    assert (
        none.stderr.strip()
        .splitlines()[-1]
        .endswith(
            "takes open_clip, which is not installed here; keep its text tower with"
            " `cliad extract --text-tower` where it is"
        )
    )


def test_the_kept_tower_gives_the_texts_of_the_cache(caches):
    (file,) = (caches / "towers").glob("*.safetensors")
    cache = open_cache(next(caches.glob("digits/*.h5")))
    assert file.name == f"tiny-{cache.encoder_id}.safetensors"
    kept = tower_of(cache, CPU)
    whole = clip.load("tiny", device=CPU).text_tower()
    names = [f"{name}." for name in cache.classnames]
    assert len(kept.tensors["table"]) < 60 < len(whole.tensors["table"])
    assert kept.words(names)[1] == whole.words(names)[1]
    assert torch.equal(kept.words(names)[0], whole.words(names)[0])
    assert torch.equal(encoded(kept, names), encoded(whole, names))


def test_another_prompt_set_adds_its_lines_and_the_old_ones_stay(caches, tmp_path):
    folder = tmp_path / "caches"
    shutil.copytree(caches, folder)
    cache = open_cache(next(folder.glob("digits/*.h5")))
    words = ["sketch of", "one."]
    with pytest.raises(EncoderError, match="has no tokens of 'sketch of', it has those of") as e:
        load_tower(cache).words(words)
    assert "\n" not in str(e.value)
    choice = PromptChoice(name="sketch", templates=["sketch of {}"])
    again = {"cache_folder": folder, "prompt_set": choice, "extras": Extras(text_tower=True)}
    extract("digits", model="tiny", **again)
    embeddings, counts = load_tower(cache).words([*words, "a photo of the digit"])
    assert counts == [2, 2, 5] and embeddings.shape == (3, 5, 48)


def test_a_tower_that_is_not_causal_is_refused_before_any_image_is_encoded(tmp_path):
    text = toy_clip.TEXT | {"no_causal_mask": True}
    name = toy_clip.register(tmp_path, "kept-both-ways", text_cfg=text, custom_text=True)
    weights = str(toy_clip.weights(tmp_path, name))
    with pytest.raises(EncoderError, match="is not causal"):
        extract(
            "digits",
            model=name,
            pretrained=weights,
            cache_folder=tmp_path / "caches",
            extras=Extras(text_tower=True),
        )
    assert not list(tmp_path.glob("caches/**/*.h5*"))


def test_a_file_of_another_encoder_is_refused_though_it_has_the_right_name(caches, tmp_path):
    folder = tmp_path / "caches"
    shutil.copytree(caches, folder)
    (file,) = (folder / "towers").glob("*.safetensors")
    cache = open_cache(next(folder.glob("digits/*.h5")))
    with pytest.raises(EncoderError, match=r"is the text tower of encoder .*, not of other"):
        open_tower(file, "other")
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata()
    tensors["projection"] = tensors["projection"].flip(0).contiguous()
    save_file(tensors, file, about)
    with pytest.raises(SpecError, match="the text tower is not that of tiny-"):
        tower_of(cache, CPU)


@pytest.mark.parametrize("damage", ["empty", "cut", "words", "tensor", "newer"])
def test_a_damaged_file_is_one_line(tmp_path, damage):
    tower = clip.load("tiny", device=CPU).text_tower()
    file = tmp_path / "tower.safetensors"
    keep_tower(file, tower, "id", LINES)
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata()
    if damage == "empty":
        file.write_bytes(b"")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    if damage == "words":
        save_file(tensors, file, about | {"lines": "[1"})
    if damage == "tensor":
        save_file({"table": tensors["table"]}, file, about)
    if damage == "newer":
        save_file(tensors, file, about | {"schema": "2"})
    with pytest.raises(EncoderError, match=r"is damaged|newer version of cliad") as caught:
        open_tower(file, "id")
    assert "\n" not in str(caught.value)


def test_half_precision_is_kept_where_it_loses_nothing(tmp_path):
    tower = clip.load("tiny", device=CPU).text_tower()
    tower.tensors["projection"] = tower.tensors["projection"] + 1e-5
    file = tmp_path / "tower.safetensors"
    keep_tower(file, tower, "id", LINES)
    stored = load_file(file)
    assert stored["positions"].dtype == torch.float16
    assert stored["projection"].dtype == torch.float32
    assert torch.equal(encoded(open_tower(file, "id"), LINES), encoded(tower, LINES))


def test_the_command_says_where_the_tower_is(tmp_path, monkeypatch, capsys):
    words = ["extract", "--dataset", "digits", "--model", "tiny", "--text-tower"]
    monkeypatch.setattr(sys, "argv", ["cliad", *words, "--cache", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    (file,) = (tmp_path / "towers").glob("*.safetensors")
    assert str(file) in capsys.readouterr().err.replace("\n", "")

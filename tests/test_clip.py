"""Encoders: the right activation, parts, names, and every way in which weights can be wrong."""

import warnings
from pathlib import Path

import open_clip
import pytest
import torch
import toy_clip
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file

from cliad.cache import clip
from cliad.cache.encoder import Encoder, EncoderError, choose_device

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("clip")
    toy_clip.register(folder)
    return folder


@pytest.fixture(scope="module")
def file(folder):
    return str(toy_clip.weights(folder))


@pytest.fixture
def published(folder, monkeypatch):
    """The toy architecture with two published tags, as open_clip lists them: `quick` wants QuickGELU, `plain` does not."""
    file = str(toy_clip.weights(folder))
    tags = {"quick": {"file": file, "quick_gelu": True}, "plain": {"file": file}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "toy-clip", tags)
    return file


def test_the_activation_follows_the_tag(published):
    for tag, activation in (("quick", "QuickGELU"), ("plain", "GELU")):
        with warnings.catch_warnings(record=True) as caught:
            encoder = clip.load("toy-clip", tag, device=CPU)
        assert not caught and encoder.image_recipe["activation"] == encoder.text_recipe["activation"] == activation
        assert any(isinstance(m, QuickGELU) for m in encoder.model.modules()) == (tag == "quick")


def test_every_published_quickgelu_tag_is_asked_for_with_quickgelu(monkeypatch):
    asked = {}
    monkeypatch.setattr(clip, "_create", lambda model, tag, force_quick_gelu=False: asked.update({(model, tag): force_quick_gelu}))
    for model, tag in open_clip.list_pretrained():
        clip._build(model, tag, None)
        assert asked[model, tag] == bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu"))
    assert asked["ViT-B-32", "openai"] and asked["RN50", "openai"] and not asked["ViT-B-32", "laion2b_s34b_b79k"]


def test_a_mismatch_that_open_clip_only_warns_of_is_an_error(published):
    with pytest.raises(EncoderError, match="QuickGELU mismatch"):
        clip._create("toy-clip", "quick", force_quick_gelu=False)


def test_a_file_must_be_told_its_activation_where_both_exist(published):
    with pytest.raises(EncoderError, match="--quick-gelu"):
        clip.load("toy-clip", published, device=CPU)
    ids = {clip.load("toy-clip", published, device=CPU, quick_gelu=quick).encoder_id for quick in (True, False)}
    assert len(ids) == 2


def test_it_is_an_encoder_with_raw_features(file):
    encoder = clip.load("toy-clip", file, device=CPU)
    assert isinstance(encoder, Encoder) and encoder.name == "toy-clip/toy-clip-0" and encoder.dim == 24
    assert encoder.encode_texts(["one", "two", "three"]).shape == (3, 24)
    assert encoder.encode_texts(["one"], pre_projection=True).shape == (1, 32)


@pytest.mark.parametrize("vision", [toy_clip.VISION, {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}])
def test_parts_agree_with_the_features(folder, vision):
    name = toy_clip.register(folder, f"toy-{type(vision['layers']).__name__}", vision_cfg=vision)
    encoder = clip.load(name, str(toy_clip.weights(folder, name)), device=CPU)
    batch = torch.randint(0, 256, (3, 3, vision["image_size"], vision["image_size"]), dtype=torch.uint8, generator=torch.Generator())
    parts = encoder.encode_parts(batch, ["features", "pre_projection", "tokens"])
    torch.testing.assert_close(parts["features"], encoder.encode_images(batch), rtol=1e-4, atol=1e-5)
    assert {name: x.shape[1:] for name, x in parts.items()} == encoder.parts
    assert encoder.parts["tokens"][1] == encoder.dim and torch.isfinite(parts["tokens"]).all()


def test_ids_follow_the_weights_of_their_own_tower(folder, file):
    state, spoiled = load_file(file), folder / "spoiled.safetensors"
    state["visual.class_embedding"] += 1
    toy_clip.save_file(state, spoiled)
    one, two = (clip.load("toy-clip", str(path), device=CPU) for path in (file, spoiled))
    assert one.image_recipe["weights"] != two.image_recipe["weights"] and one.encoder_id != two.encoder_id
    assert one.text_recipe == two.text_recipe


def test_moving_the_file_keeps_the_ids(folder, file):
    moved = folder / "renamed.safetensors"
    moved.write_bytes(Path(file).read_bytes())
    assert clip.load("toy-clip", str(moved), device=CPU).image_recipe == clip.load("toy-clip", file, device=CPU).image_recipe


@pytest.mark.parametrize(
    "asked, full",
    [
        (("ViT-B-32", None), ("ViT-B-32", "openai")),
        (("ViT-B/32", "openai"), ("ViT-B-32", "openai")),
        (("ViT-B-32/openai", None), ("ViT-B-32", "openai")),
        (("ViT-L/14@336px", None), ("ViT-L-14-336", "openai")),
        (("hf-hub:a/b", None), ("hf-hub:a/b", "")),
    ],
)
def test_names_as_people_write_them(asked, full):
    assert clip.full_name(*asked) == full


@pytest.mark.parametrize(
    "model, pretrained, message",
    [
        ("ViT-B-33", None, "did you mean 'ViT-B-32'"),
        ("ViT-B-32", "opneai", "did you mean 'openai'"),
        ("ViT-H-14-378-quickgelu", "no-such-file.pt", "known: "),
        ("toy-clip", None, "choose one with --pretrained"),
    ],
)
def test_unknown_names_are_one_line_with_the_nearest(folder, model, pretrained, message):
    with pytest.raises(EncoderError, match=message) as error:
        clip.load(model, pretrained, device=CPU)
    assert "\n" not in str(error.value)


def test_a_file_of_another_model_is_one_line(folder, file):
    name = toy_clip.register(folder, "toy-wide", embed_dim=48)
    with pytest.raises(EncoderError, match="does not hold the weights of toy-wide") as error:
        clip.load(name, file, device=CPU)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_missing_device_is_one_line_with_those_there_are():
    assert choose_device("cpu") == CPU and choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(EncoderError, match=r"torch sees .*cpu"):
        choose_device("cuda:99")

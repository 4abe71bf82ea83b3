"""Encoders: the right activation, parts, names, and every way in which weights can be wrong."""

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import toy_clip
from open_clip.transformer import QuickGELU
from PIL import Image
from safetensors.torch import load_file

from cliad.cache.encoders import clip, network, weights
from cliad.cache.encoders.base import Encoder, EncoderError, choose_device
from cliad.cache.extract.choices import EncoderChoice

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
        assert (
            not caught
            and encoder.image_recipe["activation"]
            == encoder.text_recipe["activation"]
            == activation
        )
        assert any(isinstance(m, QuickGELU) for m in encoder.model.modules()) == (tag == "quick")


def test_every_published_quickgelu_tag_is_asked_for_with_quickgelu(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        network,
        "_create",
        lambda model, tag, force_quick_gelu=False: asked.update({(model, tag): force_quick_gelu}),
    )
    for model, tag in open_clip.list_pretrained():
        network.build_network(model, tag, None)
        assert asked[model, tag] == bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu"))
    assert (
        asked["ViT-B-32", "openai"]
        and asked["RN50", "openai"]
        and not asked["ViT-B-32", "laion2b_s34b_b79k"]
    )


def test_a_mismatch_that_open_clip_only_warns_of_is_an_error(published):
    with pytest.raises(EncoderError, match="QuickGELU mismatch"):
        network._create("toy-clip", "quick", force_quick_gelu=False)


def test_a_file_must_be_told_its_activation_where_both_exist(published):
    with pytest.raises(EncoderError, match="--quick-gelu"):
        clip.load("toy-clip", published, device=CPU)
    ids = {
        clip.load("toy-clip", published, device=CPU, quick_gelu=quick).encoder_id
        for quick in (True, False)
    }
    assert len(ids) == 2


def test_a_published_file_is_known_by_the_hash_in_its_name(published, monkeypatch):
    digest = hashlib.sha256(Path(published).read_bytes()).hexdigest()
    tags = {
        "quick": {"url": f"https://example.org/toy-{digest[:8]}.pt", "quick_gelu": True},
        "plain": {"url": "https://example.org/toy-00000000.pt"},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "toy-clip", tags)
    encoder = clip.load("toy-clip", published, device=CPU)
    assert encoder.image_recipe["activation"] == "QuickGELU"


def test_it_is_an_encoder_with_raw_features(file):
    encoder = clip.load("toy-clip", file, device=CPU)
    assert (
        isinstance(encoder, Encoder) and encoder.name == "toy-clip/toy-clip-0" and encoder.dim == 24
    )
    assert encoder.encode_texts(["one", "two", "three"]).shape == (3, 24)
    assert encoder.encode_texts(["one"], pre_projection=True).shape == (1, 32)


@pytest.mark.parametrize(
    "vision",
    [toy_clip.VISION, {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}],
)
def test_parts_agree_with_the_features(folder, vision):
    name = toy_clip.register(folder, f"toy-{type(vision['layers']).__name__}", vision_cfg=vision)
    encoder = clip.load(name, str(toy_clip.weights(folder, name)), device=CPU)
    batch = torch.randint(
        0,
        256,
        (3, 3, vision["image_size"], vision["image_size"]),
        dtype=torch.uint8,
        generator=torch.Generator(),
    )
    parts = encoder.encode_parts(batch, ["features", "pre_projection", "tokens"])
    torch.testing.assert_close(
        parts["features"], encoder.encode_images(batch), rtol=1e-4, atol=1e-5
    )
    assert {name: x.shape[1:] for name, x in parts.items()} == encoder.parts
    assert encoder.parts["tokens"][1] == encoder.dim and torch.isfinite(parts["tokens"]).all()


def test_ids_follow_the_weights_of_their_own_tower(folder, file):
    state, spoiled = load_file(file), folder / "spoiled.safetensors"
    state["visual.class_embedding"] += 1
    toy_clip.save_file(state, spoiled)
    one, two = (clip.load("toy-clip", str(path), device=CPU) for path in (file, spoiled))
    assert (
        one.image_recipe["weights"] != two.image_recipe["weights"]
        and one.encoder_id != two.encoder_id
    )
    assert one.text_recipe == two.text_recipe


def test_moving_the_file_keeps_the_ids(folder, file):
    moved = folder / "renamed.safetensors"
    moved.write_bytes(Path(file).read_bytes())
    assert (
        clip.load("toy-clip", str(moved), device=CPU).image_recipe
        == clip.load("toy-clip", file, device=CPU).image_recipe
    )


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
    assert weights.full_name(*asked) == full


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


def test_openai_archives_are_read_with_quickgelu(folder):
    model, path = toy_clip.openai_archive(folder, "toy-openai")
    encoder = clip.load("toy-openai", path, device=CPU)
    assert encoder.image_recipe["activation"] == "QuickGELU"
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator())
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.encode_images(image), model.float().encode_image(image), rtol=0, atol=0.02
        )
    toy_clip.openai_archive(folder, "toy-wider", embed_dim=48)
    with pytest.raises(EncoderError, match="archive of another model than toy-wider"):
        clip.load("toy-wider", path, device=CPU)


def test_a_state_dict_of_torch_is_read_without_running_code(folder, file):
    torch.save(
        {"state_dict": {f"module.{name}": x for name, x in load_file(file).items()}},
        folder / "saved.pt",
    )
    assert (
        clip.load("toy-clip", str(folder / "saved.pt"), device=CPU).encoder_id
        == clip.load("toy-clip", file, device=CPU).encoder_id
    )
    torch.save({"state_dict": print}, folder / "code.pt")
    with pytest.raises(EncoderError, match="does not hold the weights"):
        clip.load("toy-clip", str(folder / "code.pt"), device=CPU)


def test_squeeze_changes_the_preprocessing_and_the_recipe(file):
    plain, squeezed = (
        clip.load("toy-clip", file, device=CPU, squeeze=squeeze) for squeeze in (False, True)
    )
    image = Image.new("RGB", (64, 32), "white")
    image.paste("black", (0, 0, 8, 32))
    assert plain.preprocess(image).min() > 250 and squeezed.preprocess(image).min() == 0
    assert plain.encoder_id == squeezed.encoder_id and plain.image_recipe != squeezed.image_recipe


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    "model, tag, tried",
    [
        ("ViT-B-32", "openai", "timm/vit_base_patch32_clip_224.openai"),
        ("hf-hub:someone/model", None, "someone/model"),
    ],
)
def test_no_weights_and_no_network_is_one_line(offline, capfd, model, tag, tried):
    with pytest.raises(
        EncoderError,
        match=rf"no weights for {model}.*tried {tried} on the Hugging Face hub.*--pretrained FILE",
    ) as error:
        clip.load(model, tag, device=CPU)
    assert "\n" not in str(error.value) and capfd.readouterr() == ("", "")


def test_what_must_be_fetched_is_told_with_its_size(offline, file):
    missing = weights.to_fetch("ViT-B-32", "openai")
    assert missing.where.startswith("timm/vit_base") and 600 < missing.megabytes < 610
    assert (
        weights.to_fetch("RN50", "yfcc15m")
        and weights.to_fetch("hf-hub:someone/model", "").megabytes == 0
    )
    assert weights.to_fetch("toy-clip", file) is None and weights.to_fetch("tiny", "") is None
    with pytest.raises(EncoderError, match="leave out --no-download"):
        EncoderChoice("RN50").load("dtd", CPU, half=False, fetch=False, log=print)


# --------------------------------------------------------------- what the network sees, in numbers

MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's
STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = Image.Resampling.BICUBIC


def photo(width=90, height=60, seed=3):
    """Smooth colours and some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    return coarse.resize((width, height), BICUBIC)


def pixels(image):
    """The picture as a preprocessed one is laid out, uint8 (3, height, width)."""
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def test_the_preprocessing_is_openais_and_stands_in_the_recipe(file):
    encoder = clip.load("toy-clip", file, device=CPU)
    assert encoder.image_recipe["preprocess"] == {
        "size": [32, 32],
        "mode": "RGB",
        "mean": list(MEAN),
        "std": list(STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
        "decoder": "pillow upright rgb",
    }
    assert encoder.preprocess_size == (32, 32)
    squeezed = clip.load("toy-clip", file, device=CPU, squeeze=True)
    assert squeezed.image_recipe["preprocess"]["resize_mode"] == "squash"


def test_the_plain_view_is_the_middle_of_the_image_with_its_short_side_resized(file):
    encoder = clip.load("toy-clip", file, device=CPU)
    wide = photo(90, 60).resize((48, 32), BICUBIC).crop((8, 0, 40, 32))
    assert torch.equal(encoder.preprocess(photo(90, 60)), pixels(wide))
    tall = photo(60, 90).resize((32, 48), BICUBIC).crop((0, 8, 32, 40))
    assert torch.equal(encoder.preprocess(photo(60, 90)), pixels(tall))


def test_squeezing_keeps_all_of_the_image(file):
    encoder = clip.load("toy-clip", file, device=CPU, squeeze=True)
    assert torch.equal(encoder.preprocess(photo()), pixels(photo().resize((32, 32), BICUBIC)))


def test_a_box_is_cut_out_and_resized_and_a_mirror_turns_left_and_right(file):
    encoder = clip.load("toy-clip", file, device=CPU)
    left, top, width, height = 20, 5, 40, 30
    part = photo().crop((left, top, left + width, top + height)).resize((32, 32), BICUBIC)
    box = (left, top, width, height)
    assert torch.equal(encoder.preprocess(photo(), box=box), pixels(part))
    mirrored = encoder.preprocess(photo(), box=box, mirror=True)
    assert torch.equal(mirrored, pixels(part).flip(-1))
    plain = encoder.preprocess(photo())
    assert torch.equal(encoder.preprocess(photo(), mirror=True), plain.flip(-1))


def test_pixels_are_normalised_with_openais_mean_and_deviation(file):
    encoder = clip.load("toy-clip", file, device=CPU)
    batch = encoder.preprocess(photo())[None]
    mean = torch.tensor(MEAN).view(3, 1, 1)
    std = torch.tensor(STD).view(3, 1, 1)
    normal = (batch.float() / 255 - mean) / std
    expected = encoder.encode_images(normal)  # floats are taken as they are
    torch.testing.assert_close(encoder.encode_images(batch), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder.image_tower()(batch), expected, rtol=1e-4, atol=1e-5)


def test_the_size_of_a_tower_decides_its_threads(file, monkeypatch):
    encoder = clip.load("toy-clip", file, device=CPU)
    n_number = sum(x.numel() for x in encoder.model.visual.parameters())
    assert n_number < 5_000_000 and encoder.threads == 1
    monkeypatch.setattr(clip, "SMALL", n_number)
    assert encoder.threads is None


def test_texts_are_encoded_in_chunks_as_one_by_one(file, monkeypatch):
    encoder = clip.load("toy-clip", file, device=CPU)
    whole = encoder.encode_texts(["a", "b c", "d"])
    monkeypatch.setattr(clip, "TEXT_BATCH", 2)
    torch.testing.assert_close(encoder.encode_texts(["a", "b c", "d"]), whole, rtol=1e-4, atol=1e-6)


def hash_of(state):
    """sha256 over name, type, shape and bytes of every tensor, by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        x = state[name]
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode() + x.numpy().tobytes())
    return digest.hexdigest()


def test_the_encoder_id_is_that_of_both_towers_and_the_activation(file):
    encoder = clip.load("toy-clip", file, device=CPU)
    state = encoder.model.state_dict()
    visual = {name: x for name, x in state.items() if name.startswith("visual.")}
    rest = {name: x for name, x in state.items() if not name.startswith("visual.")}
    assert encoder.image_recipe["weights"] == hash_of(visual)
    assert encoder.text_recipe["weights"] == hash_of(rest) and encoder.text_recipe["context"] == 77
    recipe = {"activation": "GELU", "image": hash_of(visual), "text": hash_of(rest)}
    text = json.dumps(recipe, sort_keys=True)
    assert encoder.encoder_id == hashlib.sha256(text.encode()).hexdigest()[:8]


def test_the_multiplier_is_the_exponential_of_the_parameter(file):
    encoder = clip.load("toy-clip", file, device=CPU)
    assert encoder.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)  # as open_clip begins

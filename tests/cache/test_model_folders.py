"""Models that bring their own configuration: a folder runs no code, waits for nothing, and fits."""

import importlib.util
import json
import os
import shutil

import huggingface_hub
import open_clip
import pytest
import torch
import toy_clip
from PIL import Image
from safetensors.torch import load_file, save_file

from cliad.cache.encoders import clip, network, weights
from cliad.cache.encoders.base import EncoderError
from cliad.cache.encoders.preprocessing import unlike_published
from cliad.cache.extract.choices import Extras
from cliad.cache.file.read import open_cache
from cliad.pipelines.extract import extract

CPU = torch.device("cpu")
WEIGHTS = network.TINY / "weights.safetensors"


@pytest.fixture
def folder(tmp_path):
    """The bundled encoder as a folder in open_clip's format."""
    path = tmp_path / "model"
    path.mkdir()
    shutil.copyfile(WEIGHTS, path / "open_clip_model.safetensors")
    write(path)
    return path


def write(folder, *, text=(), vision=(), preprocess=None, **top):
    config = json.loads((network.TINY / "tiny.json").read_text())
    config["text_cfg"].update(text)
    config["vision_cfg"].update(vision)
    content = {"model_cfg": config | top, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))


def refusal(folder):
    with pytest.raises(EncoderError) as caught:
        clip.load(f"local-dir:{folder}", device=CPU)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def test_a_model_in_a_folder_is_the_same_encoder(folder):
    here = clip.load(f"local-dir:{folder}", device=CPU)
    assert here.encoder_id == clip.load("tiny", device=CPU).encoder_id
    assert here.notes == ()


def test_a_configuration_says_how_images_are_prepared(folder):
    write(folder, preprocess={"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash"})
    recipe = clip.load(f"local-dir:{folder}", device=CPU).image_recipe["preprocess"]
    assert (recipe["mean"], recipe["std"], recipe["resize_mode"]) == (
        [0.5] * 3,
        [0.25] * 3,
        "squash",
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"text": {"tokenizer_kwargs": {"trust_remote_code": True}}}, "'trust_remote_code'"),
        ({"text": {"tokenizer_kwargs": ["clean"]}}, "'tokenizer_kwargs'"),
        ({"text": {"hf_tokenizer_name": "/etc"}}, "hf_tokenizer_name is '/etc'"),
        ({"text": {"hf_model_name": "../other"}}, "hf_model_name is '../other'"),
        ({"vision": {"timm_model_name": "local-dir:/x"}}, "timm_model_name is 'local-dir:/x'"),
        ({"vision": {"timm_model_name": 3}}, "timm_model_name is '3'"),
        ({"text": {"vocab_size": 10**9}}, "vocab_size is 1e+09, expected at most"),
        ({"vision": {"layers": 10**6}}, "layers is 1e+06, expected at most 512"),
        ({"vision": {"layers": [1, 1, 10**6, 1]}}, "layers is 1e+06"),
        ({"embed_dim": float("nan")}, "embed_dim is nan"),
        ({"vision_cfg": None}, "no vision_cfg"),
        ({"vision": {"\x1b[31m": 1}}, "no setting '\\\\x1b[31m' of a tower"),
        ({"vision": {"image_size": 4096}}, "image_size is 4096, expected at most 1,024"),
        ({"text": {"context_length": 2**16}}, "context_length is 65536, expected at most 8,192"),
        ({"quick_gelu": "no"}, "quick_gelu is 'no', expected true or false"),
        ({"text": {"no_causal_mask": 0}}, "no_causal_mask is '0', expected true or false"),
        ({"embed_dim": "64"}, "embed_dim is '64', expected a whole number"),
        ({"vision": {"patch_size": 0}}, "patch_size is '0', expected a whole number"),
        ({"text": {"heads": True}}, "heads is 'True', expected a whole number"),
        ({"preprocess": {"std": [0, 1, 1]}}, "std of preprocess_cfg is [0, 1, 1]"),
        ({"preprocess": {"mean": "x"}}, "mean of preprocess_cfg is x"),
        ({"preprocess": {"size": 10**6}}, "size of preprocess_cfg is 1000000"),
        ({"preprocess": {"size": [32]}}, "size of preprocess_cfg is [32]"),
        ({"preprocess": {"resize_mode": "odd"}}, "resize_mode of preprocess_cfg is odd"),
        ({"preprocess": {"interpolation": []}}, "interpolation of preprocess_cfg is []"),
        ({"preprocess": {"fill_color": True}}, "fill_color of preprocess_cfg is True"),
        ({"preprocess": [1]}, "preprocess_cfg is no table"),
    ],
)
def test_what_no_model_needs_is_refused_by_name(folder, options, message):
    write(folder, **options)
    assert message in refusal(folder)


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"model_cfg": 3}', "[" * 100_000])
def test_a_file_that_is_no_configuration_is_one_line(folder, content):
    (folder / "open_clip_config.json").write_text(content)
    assert "open_clip_config.json" in refusal(folder)


def test_code_beside_a_tokenizer_is_not_run(folder, tmp_path):
    pytest.importorskip("transformers")
    write(folder, text={"hf_tokenizer_name": "mine"})
    ran = tmp_path / "ran"
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w')\n")
    settings = {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "tokenizer_class": "Mine"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "no tokenizer for" in refusal(folder)
    assert not ran.exists()


def test_code_of_the_model_of_the_texts_is_neither_run_nor_asked_for(
    folder, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("transformers")
    ran = tmp_path / "ran"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "code.py").write_text(f"open({str(ran)!r}, 'w')\n")
    settings = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}
    (tmp_path / "mine" / "config.json").write_text(json.dumps(settings))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda text="": "y")
    write(folder, text={"hf_model_name": "mine"})
    assert "open_clip" in refusal(folder)
    assert not ran.exists() and "[y/N]" not in capsys.readouterr().out


def test_weights_of_a_folder_are_looked_at_like_any_others(folder):
    file = folder / "open_clip_model.safetensors"
    file.write_text("<html>")
    assert "is a web page" in refusal(folder)
    file.unlink()
    assert "has no weights" in refusal(folder)
    os.mkfifo(file)
    assert "a pipe or a device" in refusal(folder)


def test_the_weights_that_open_clip_would_take_are_taken_and_the_others_named(folder):
    own = clip.load(f"local-dir:{folder}", device=CPU).encoder_id
    (folder / "a.safetensors").write_bytes(b"never read")
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"never read")
    encoder = clip.load(f"local-dir:{folder}", device=CPU)
    assert encoder.encoder_id == own
    (line,) = encoder.notes
    assert "open_clip_model.safetensors is used" in line
    assert "not open_clip_pytorch_model.bin, a.safetensors" in line


def test_a_file_too_small_for_a_model_is_refused_before_that_is_built():
    # Built, it would take 10 GB.
    with pytest.raises(EncoderError, match=r"positional_embedding is \[32, 48\] in the file"):
        clip.load("ViT-bigG-14", str(WEIGHTS), device=CPU, quick_gelu=False)


def test_a_file_that_is_shown_images_in_another_way_than_published_weights_says_so():
    assert unlike_published("ViT-B-32") == [] == unlike_published("tiny")
    (line,) = unlike_published("ViT-B-16-SigLIP2")
    assert "trained with bicubic, squeezed, mean 0.5, 0.5, 0.5, std 0.5, 0.5, 0.5" in line
    (line,) = unlike_published("MobileCLIP2-S0")
    assert "trained with bilinear" in line


def test_without_a_network_the_hub_is_not_asked_again_and_again(monkeypatch):
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody answers
    with weights.hub_as_it_is("roberta-ViT-B-32"):
        assert constants.HF_HUB_OFFLINE
    with weights.hub_as_it_is("ViT-B-32"):  # needs nothing of the hub beside its weights
        assert not constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_a_tokenizer_of_transformers_in_the_folder_gives_what_open_clip_gives(tmp_path):
    """As SigLIP 2 has it: no end that is fixed, a bias of the projection, and of the logits."""
    pytest.importorskip("transformers")
    folder = tmp_path / "sigmoid"
    folder.mkdir()
    words = {"vocab_size": 200, "hf_tokenizer_name": "mine", "proj_bias": True}
    words |= {"no_causal_mask": True, "pool_type": "last", "context_length": 16}
    config = {"embed_dim": 24, "custom_text": True, "init_logit_bias": -10}
    config |= {"vision_cfg": toy_clip.VISION, "text_cfg": toy_clip.TEXT | words}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    write_tokenizer(folder)
    name = f"local-dir:{folder}"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(name, load_weights=False).eval()
    state = {key: x.contiguous() for key, x in model.state_dict().items()}
    assert state["logit_bias"] == -10
    save_file(state, folder / "open_clip_model.safetensors")
    encoder = clip.load(name, device=CPU)
    texts = ["a photo of three.", "a photo of four."]
    tokens = open_clip.get_tokenizer(name)(texts)
    with torch.no_grad():
        expected = model.encode_text(tokens, normalize=False)
    assert (expected[0] - expected[1]).abs().max() > 0.01
    torch.testing.assert_close(encoder.encode_texts(texts), expected, rtol=1e-4, atol=1e-5)
    assert encoder.logit_scale == pytest.approx(model.logit_scale.exp().item())


def write_tokenizer(folder):
    """A small table of words in the files of transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<pad>", "<eos>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    words.train_from_iterator(["a photo of three four five"], trainer)
    words.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    words.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_a_text_tower_without_a_projection_is_said_where_the_images_have_one(tmp_path):
    text = toy_clip.TEXT | {"proj_type": "none"}
    name = toy_clip.register(tmp_path, "toy-bare", embed_dim=32, custom_text=True, text_cfg=text)
    for split in ("train", "test"):
        (tmp_path / "a" / split / "cat").mkdir(parents=True)
        (tmp_path / "a" / split / "dog").mkdir(parents=True)
        for label, animal in enumerate(("cat", "dog")):
            image = Image.new("RGB", (8, 8), (90 * label, 5, 5))
            image.save(tmp_path / "a" / split / animal / "1.png")
    lines = []
    path = extract(
        f"folder:{tmp_path / 'a'}",
        model=name,
        pretrained=str(toy_clip.weights(tmp_path, name)),
        cache_folder=tmp_path / "caches",
        device="cpu",
        extras=Extras(pre_projection=True),
        log=lines.append,
    )
    assert sum("stored of images alone" in line for line in lines) == 1
    assert open_cache(path).column("train", "pre_projection").shape == (2, 64)


def test_a_tokenizer_of_another_model_is_refused_before_a_word_is_looked_up(folder):
    state = load_file(WEIGHTS)
    state["token_embedding.weight"] = state["token_embedding.weight"][:5].clone()
    save_file(state, folder / "open_clip_model.safetensors")
    write(folder, text={"vocab_size": 5})
    encoder = clip.load(f"local-dir:{folder}", device=CPU)
    with pytest.raises(EncoderError, match=r"has a word \d+, its text tower 5 words"):
        encoder.encode_texts(["a photo"])


def test_a_tokenizer_that_needs_a_package_says_so_when_it_is_made(folder):
    if importlib.util.find_spec("nltk"):
        pytest.skip("nltk is here")
    write(folder, text={"tokenizer_kwargs": {"reduction_mask": "syntax"}})
    assert "needs nltk; pip install nltk" in refusal(folder)


def test_files_of_a_tokenizer_are_ordinary_and_lie_beside_the_model(folder):
    write(folder, text={"hf_tokenizer_name": "mine"})
    os.mkfifo(folder / "special_tokens_map.json")
    assert "special_tokens_map.json: it is a pipe or a device" in refusal(folder)
    (folder / "special_tokens_map.json").unlink()
    (folder / "added_tokens.json").symlink_to("/dev/zero")
    assert "added_tokens.json: it is a pipe or a device" in refusal(folder)
    (folder / "added_tokens.json").unlink()
    with open(folder / "tokenizer.json", "wb") as stream:
        stream.truncate(2**26 + 1)
    assert "tokenizer.json has 67,108,865 bytes" in refusal(folder)
    (folder / "tokenizer.json").unlink()
    settings = {"vocab_file": "../../secret", "merges_file": "merges.txt"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "vocab_file is '../../secret', not a file beside it" in refusal(folder)

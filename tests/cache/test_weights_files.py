"""Weights files from outside: what is no such file, does not fit, or would run code is one line."""

import io
import os
import pickle
import pickletools
import warnings
import zipfile

import numpy as np
import pytest
import torch
import toy_clip
from safetensors.torch import load_file, save_file

from cliad.cache.encoders import clip, network, weights
from cliad.cache.encoders.base import EncoderError
from cliad.cache.encoders.pickle_words import is_too_much
from cliad.cache.extract.choices import EncoderChoice

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny():
    return load_file(network.TINY / "weights.safetensors")


class Touch:
    """What a pickle of it does when it is read: it makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


class Room:
    def __reduce__(self):
        return bytearray, (10**12,)


def refusal(file, **options):
    with pytest.raises(EncoderError) as caught:
        clip.load("tiny", str(file), device=CPU, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def test_tiny_takes_weights_of_its_shape_and_they_are_part_of_its_id(tiny, tmp_path):
    own = clip.load("tiny", device=CPU)
    save_file(tiny, tmp_path / "same.safetensors")
    same = clip.load("tiny", str(tmp_path / "same.safetensors"), device=CPU)
    assert (same.name, same.encoder_id) == ("tiny/same", own.encoder_id)
    assert same.image_recipe["pretrained"] == "file"
    save_file(tiny | {"visual.proj": tiny["visual.proj"] + 1}, tmp_path / "other.safetensors")
    other = clip.load("tiny", str(tmp_path / "other.safetensors"), device=CPU)
    assert other.encoder_id != own.encoder_id
    batch = torch.zeros((1, 3, 32, 32), dtype=torch.uint8)
    assert not torch.allclose(other.encode_images(batch), own.encode_images(batch))
    assert "there is no weights file" in refusal(tmp_path / "missing.pt")


@pytest.mark.parametrize("model", ["tiny", "ViT-B-32/openai"])
def test_an_activation_that_the_weights_do_not_have_is_refused(model):
    wrong = model == "tiny"
    option = "--quick-gelu" if wrong else "--no-quick-gelu"
    with pytest.raises(EncoderError, match=f"has the activation .*; leave out {option}$"):
        clip.load(model, device=CPU, quick_gelu=wrong)


def test_towers_with_an_activation_of_their_own_take_no_other(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(EncoderError, match="image tower of EVA02-B-16 has an activation of its"):
        clip.load("EVA02-B-16", str(tmp_path / "a.safetensors"), device=CPU, quick_gelu=True)
    with pytest.raises(EncoderError, match="leave out --no-quick-gelu"):
        file = str(tmp_path / "a.safetensors")
        clip.load("ViT-B-32-quickgelu", file, device=CPU, quick_gelu=False)


@pytest.mark.parametrize("zipped", [True, False])
def test_the_state_of_a_training_is_read_old_or_new_with_ddp_names(tiny, tmp_path, zipped):
    state = {f"module.{name}": x for name, x in tiny.items()}
    file = tmp_path / "epoch_3.pt"
    saved = {"epoch": 3, "state_dict": state, "optimizer": {"lr": 1.0}}
    torch.save(saved, file, _use_new_zipfile_serialization=zipped)
    own = clip.load("tiny", device=CPU)
    assert clip.load("tiny", str(file), device=CPU).encoder_id == own.encoder_id


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_of_a_file_is_run_and_no_room_is_given(tmp_path, zipped):
    ran = tmp_path / "ran"
    options = {"_use_new_zipfile_serialization": zipped}
    torch.save({"state_dict": Touch(ran)}, tmp_path / "code.pt", **options)
    assert "would run code" in refusal(tmp_path / "code.pt")
    torch.save({"state_dict": Room()}, tmp_path / "room.pt", **options)
    assert "what torch.save does not write" in refusal(tmp_path / "room.pt")
    assert not ran.exists()


class RunsWhenRead(torch.nn.Module):
    """TorchScript whose archive computes something while it is read."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor):
        return x

    @torch.jit.export
    def __getstate__(self):
        return (self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.weight = state[0]
        self.training = state[1]


def test_an_archive_whose_code_would_run_when_it_is_read_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that such archives are deprecated
        torch.jit.save(torch.jit.script(RunsWhenRead()), tmp_path / "a.pt")
    assert "code that would run when it is read" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("empty.pt", b"", "is empty"),
        ("page.pt", b"\n<!DOCTYPE html><html>", "is a web page"),
        ("page.safetensors", b"<html>", "is a web page"),
        ("error.pt", b'{"error": 404}', "is text"),
        ("pointer.pt", b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        ("packed.pt", b"\x1f\x8b" + bytes(20), "is a gzip file"),
        ("text.pt", b"Not found", "is no file of weights"),
        ("pickle.pkl", b"\x80\x04K\x01.", "is a pickle that torch.save did not write"),
        ("cut.pt", b"PK\x03\x04" + bytes(20), "is cut off or damaged"),
        ("cut.npz", b"PK\x03\x04" + bytes(20), "is cut off or damaged"),
    ],
)
def test_a_file_of_another_kind_is_told_what_it_is(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in refusal(tmp_path / name)


def test_what_is_no_ordinary_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    assert "a pipe or a device" in refusal(tmp_path / "pipe.pt")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "link.pt").symlink_to("nowhere")
    assert "there is no file" in refusal(tmp_path / "link.pt")


def test_a_name_with_the_ending_of_another_kind_is_told_the_right_one(tiny, tmp_path):
    torch.save(tiny, tmp_path / "a.safetensors")
    assert "rename it so that it ends in .pt" in refusal(tmp_path / "a.safetensors")
    save_file(tiny, tmp_path / "b.pt")
    assert "rename it so that it ends in .safetensors" in refusal(tmp_path / "b.pt")


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("visual.proj", torch.ones(3, 4), r"visual.proj is [3, 4] in the file, [128, 256] in"),
        ("visual.proj", None, "has no visual.proj"),
        ("visual.proj", torch.full((128, 256), torch.nan), "visual.proj holds NaN or infinity"),
        ("visual.proj", torch.ones((128, 256), dtype=torch.int8), "of type int8"),
        ("visual.proj", torch.ones((128, 256), dtype=torch.complex64), "of type complex64"),
        ("logit_scale", torch.tensor(torch.inf), "logit_scale holds NaN or infinity"),
        ("logit_scale", torch.tensor(100.0), "the logarithm of a multiplier"),
        ("ex\x1btra", torch.ones(1), r"it also holds ex\x1btra"),
    ],
)
def test_weights_that_do_not_fit_name_the_first_tensor(tiny, tmp_path, name, value, message):
    state = {key: x for key, x in tiny.items() if key != name}
    if value is not None:
        state[name] = value
    torch.save(state, tmp_path / "a.pt")
    assert message in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "content", [{}, {"state_dict": None}, [1], {1: 2}, torch.ones(2), {"model": {"a": 1}}]
)
def test_a_file_without_a_table_of_tensors_is_one_line(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    assert "does not hold the weights of tiny" in refusal(tmp_path / "a.pt")


def test_arrays_that_are_no_weights_are_one_line(tmp_path):
    np.savez(tmp_path / "a.npz", train_x=np.ones(3))
    assert "does not hold the weights of tiny" in refusal(tmp_path / "a.npz")


def test_positions_of_another_image_size_are_interpolated_and_said(tiny, tmp_path):
    torch.save(tiny | {"visual.positional_embedding": torch.ones(5, 128)}, tmp_path / "a.pt")
    lines = []
    choice = EncoderChoice("tiny", str(tmp_path / "a.pt"))
    choice.load("digits", CPU, half=False, fetch=False, log=lines.append)
    assert (
        len(lines) == 1 and "5 positions in visual.positional_embedding, the model 17" in lines[0]
    )


def test_a_tag_wins_over_a_file_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai").write_bytes(b"")
    assert weights.full_name("ViT-B-32") == ("ViT-B-32", "openai")
    assert weights.to_fetch("ViT-B-32", "openai") is not None
    assert weights.to_fetch("ViT-B-32", "./openai") is None


@pytest.mark.parametrize(
    "model",
    [
        "hf-hub:",
        "hf-hub:../../etc/passwd",
        "hf-hub:a/b/c",
        "hf-hub:a b",
        "hf-hub:\x1b[31m",
        "local-dir:",
        "local-dir:/no/such/folder",
        "http://example.org/model.pt",
        "C:\\models\\a.pt",
        "",
        "/",
        "a\0b",
        "x" * 5000,
        "\udcff",
        "ViT-B-32/",
    ],
)
def test_a_name_of_no_model_is_one_short_line(model):
    with pytest.raises(EncoderError) as caught:
        clip.load(model, device=CPU)
    message = str(caught.value)
    assert len(message) < 600 and message.isprintable()


def test_a_model_that_brings_its_weights_takes_no_others():
    with pytest.raises(EncoderError, match="brings its own weights; leave out --pretrained"):
        weights.full_name("hf-hub:someone/model", "openai")


def test_a_folder_of_a_model_is_read_without_waiting_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "open_clip_config.json")
    with pytest.raises(EncoderError, match="a pipe or a device"):
        clip.load(f"local-dir:{tmp_path}", device=CPU)


@pytest.mark.parametrize("model", ["ViT-B-16-SigLIP2", "roberta-ViT-B-32", "ViT-L-14-CLIPA"])
def test_a_model_whose_words_need_transformers_names_the_extra(model):
    try:
        import transformers  # noqa: F401
    except ImportError:
        tag = weights.published()[model][0]
        with pytest.raises(EncoderError, match=r"pip install 'cliad\[transformers\]'"):
            EncoderChoice(model, tag).load("dtd", CPU, half=False, fetch=True, log=print)
    else:
        pytest.skip("transformers is here")


def test_a_file_for_a_registered_model_is_known_to_be_its_own(tmp_path):
    name = toy_clip.register(tmp_path, "toy-other")
    encoder = clip.load(name, str(toy_clip.weights(tmp_path, name)), device=CPU)
    assert encoder.notes == ()


NESTED = b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01s."  # pairs of pairs of pairs


def test_a_table_by_pairs_of_pairs_which_takes_for_ever_is_refused_old_or_new(tmp_path):
    with zipfile.ZipFile(tmp_path / "new.pt", "w") as archive:
        archive.writestr("x/data.pkl", NESTED)
    assert "what torch.save does not write" in refusal(tmp_path / "new.pt")
    old = tmp_path / "old.pt"
    torch.save({}, old, _use_new_zipfile_serialization=False)
    *before, _, keys = pickles_of(old.read_bytes())
    old.write_bytes(b"".join([*before, NESTED, keys]))
    assert "what torch.save does not write" in refusal(old)
    # An archive that stands behind it is not what torch reads.
    with warnings.catch_warnings(), zipfile.ZipFile(old, "a") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
    assert "what torch.save does not write" in refusal(old)


def pickles_of(content):
    """The pickles that stand one after another."""
    stream = io.BytesIO(content)
    pickles = []
    while stream.tell() < len(content):
        first = stream.tell()
        list(pickletools.genops(stream))
        pickles.append(content[first : stream.tell()])
    return pickles


def test_tuples_and_texts_of_trainings_are_no_traps():
    content = {"args": tuple(range(900)), "shape": {(1, (2, 3)): 1}, "raw": b"abc", "set": {1}}
    assert not is_too_much(io.BytesIO(pickle.dumps([content] * 50, 2)), 1)
    slow = io.BytesIO(
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x08\x00\x00\x00PunyCode\x86R."
    )
    assert is_too_much(slow, 1)
    assert is_too_much(io.BytesIO(b"\x80\x02" + b"N" * 2**21 + b"."), 1)


def test_names_without_end_are_refused_before_they_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "many.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        for number in range(2**16):
            archive.writestr(f"x/{number}", b"")
    assert "65,537 members, more than any weights" in refusal(tmp_path / "many.pt")
    header = b'{"x":' + b" " * 2**24 + b"}"
    content = len(header).to_bytes(8, "little") + header
    (tmp_path / "long.safetensors").write_bytes(content)
    assert "16,777,222 bytes of names" in refusal(tmp_path / "long.safetensors")
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(2**22))
    assert "would unpack to 33,554,5" in refusal(tmp_path / "bomb.npz")

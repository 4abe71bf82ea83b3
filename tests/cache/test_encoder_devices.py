"""The way of a batch on a GPU that is not there: torch traces it with tensors without values.

To ask for a value is an error there, as it is a wait for the device on a real GPU. An extraction
asks once per job, when it fetches the rows: in `Batch.add`, and nowhere else. What is traced is
single precision, since torch has no autocast for a device that is not there.
"""

from pathlib import Path

import pytest
import torch
import toy_clip
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

import cliad
from cliad.cache.datasets.base import Listing
from cliad.cache.encoders import clip
from cliad.cache.extract import batch as batch_module
from cliad.cache.extract.extraction import Extraction
from cliad.cache.extract.filling import _encode
from cliad.cache.extract.reading import PLAIN, Crop, Job, Read

CUDA = torch.device("cuda")
N = 3  # images of a job, in batches of SIZE
SIZE = 4


@pytest.fixture(params=["tiny", "toy-clip", "toy-coca"])
def encoder(request, tmp_path):
    """An encoder moved to a device that is traced; its weights have no values there."""
    cpu = torch.device("cpu")
    if request.param == "tiny":
        loaded = clip.load("tiny", device=cpu)
    else:
        changes = {}
        if request.param == "toy-coca":
            vision = toy_clip.VISION | {
                "attentional_pool": True,
                "attn_pooler_heads": 2,
                "output_tokens": True,
            }
            text = toy_clip.TEXT | {"context_length": 76, "embed_cls": True, "output_tokens": True}
            decoder = {"width": 32, "layers": 1, "heads": 2, "context_length": 76}
            changes = {
                "vision_cfg": vision,
                "text_cfg": text,
                "multimodal_cfg": decoder | {"vocab_size": 49408},
                "custom_text": True,
            }
        name = toy_clip.register(tmp_path, request.param, **changes)
        loaded = clip.load(name, str(toy_clip.weights(tmp_path, name)), device=cpu)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in loaded.model.modules():
            on_cuda(module._parameters, mode)
            on_cuda(module._buffers, mode)
        steps = loaded._preprocessing
        steps.scale = fake(steps.scale, mode)
        steps.shift = fake(steps.shift, mode)
        loaded.device = CUDA
        tokenize = loaded.tokenizer

        def on_the_host(lines):
            """Token numbers, which have values there."""
            with unset_fake_temporarily():
                return tokenize(lines)

        loaded.tokenizer = on_the_host
        yield loaded


def fake(x, mode):
    return mode.from_tensor(x.detach()).to(CUDA)


def on_cuda(tensors, mode):
    for name, x in list(tensors.items()):
        if x is not None:
            moved = fake(x, mode)
            is_parameter = isinstance(x, torch.nn.Parameter)
            tensors[name] = torch.nn.Parameter(moved, False) if is_parameter else moved


def job_of(encoder):
    images = torch.zeros((N, 3, *encoder.preprocess_size), dtype=torch.uint8)
    crops = {PLAIN: range(N), Crop("flip", 0): range(N)}
    job = Job(split="train", start=0, stop=N, crops=crops, last=True)
    return Read(job, dict.fromkeys(crops, images), {})


def extraction_of(encoder, parts):
    listing = Listing({"train": [(str(row), 0) for row in range(N)]}, ["a"], lambda path: None)
    return Extraction("toy", listing, encoder, parts=parts)


def test_a_job_is_encoded_on_the_device_without_asking_for_a_value(encoder):
    for parts in (("features",), tuple(encoder.parts)):
        encoded = _encode(extraction_of(encoder, parts), job_of(encoder), SIZE)
        rows = [*encoded.parts.values(), *encoded.views["flip"]]
        assert len(rows) == len(parts) + 1
        for x in rows:
            assert isinstance(x, FakeTensor)
            assert (x.device.type, x.dtype, len(x)) == ("cuda", torch.float32, N)


def test_texts_are_encoded_on_the_device(encoder):
    x = encoder.encode_texts(["a photo of a cat.", "a photo of a dog."])
    assert (x.device.type, tuple(x.shape)) == ("cuda", (2, encoder.dim))


def test_only_the_fetching_of_rows_asks_for_values(encoder):
    encoded = _encode(extraction_of(encoder, ("features",)), job_of(encoder), SIZE)
    batch = batch_module.Batch("train", 0, N, {})
    with pytest.raises(Exception, match=r"numpy|FakeTensor") as caught:
        batch.add(encoded)
    house = Path(cliad.__file__).resolve().parent
    ours = [entry for entry in caught.traceback if entry.path.resolve().is_relative_to(house)]
    assert ours[-1].name == "add"

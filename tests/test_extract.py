"""Stage one from end to end, on digits with a small random encoder."""

import numpy as np
import open_clip
import pytest
import torch
import toy_clip
from PIL import Image

from cliad.cache import store
from cliad.cache.datasets import find_dataset
from cliad.pipelines.extract import extract


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """(name, weights file) of a small random CLIP."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("toy")
    return toy_clip.register(folder), str(toy_clip.weights(folder))


@pytest.fixture(scope="session")
def digits_cache(toy, tmp_path_factory):
    return extract("digits", model=toy[0], pretrained=toy[1], cache_folder=tmp_path_factory.mktemp("cache"), dtype="float32")


def plain_loop(toy, images):
    """Features of a plain open_clip loop: its own transform, one image at a time."""
    model, _, transform = open_clip.create_model_and_transforms(toy[0], pretrained=toy[1])
    model.eval()
    with torch.no_grad():
        return torch.cat([model.encode_image(transform(image)[None]) for image in images]).numpy(), model


def error(x, expected):
    return np.max(np.linalg.norm(x - expected, axis=-1) / np.linalg.norm(expected, axis=-1))


@pytest.mark.parametrize("dtype, tolerance", [("float16", 1e-3), ("float32", 1e-5)])
def test_features_equal_a_plain_open_clip_loop(toy, tmp_path, dtype, tolerance):
    cache = store.open_cache(extract("digits", model=toy[0], pretrained=toy[1], cache_folder=tmp_path, dtype=dtype))
    listing = find_dataset("digits").read(None, "field")
    paths = [path for path, _ in listing.splits["val"]]
    expected, model = plain_loop(toy, [listing.open(path) for path in paths])
    split = cache.split("val")
    assert error(split.rows(), expected) < tolerance
    assert split.paths() == paths and split.y.tolist() == [y for _, y in listing.splits["val"]]
    assert cache.logit_scale == pytest.approx(model.logit_scale.exp().item())


def test_text_features_are_those_of_open_clip_per_template(toy, digits_cache):
    cache = store.open_cache(digits_cache)
    _, model = plain_loop(toy, [Image.new("RGB", (8, 8))])
    texts = [cache.templates[1].replace("{}", name) for name in cache.classnames]
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer(toy[0])(texts)).numpy()
    assert cache.text.shape == (3, 10, 24) and error(cache.text[1], expected) < 1e-5


def test_the_cache_is_sound_and_a_second_run_does_nothing(toy, digits_cache):
    cache, before = store.open_cache(digits_cache), digits_cache.stat().st_mtime_ns
    assert store.problems(cache) == [] and cache.split_names == ["train", "val", "test"]
    assert [len(cache.split(name)) for name in cache.split_names] == [898, 360, 539]
    lines = []
    again = extract("digits", model=toy[0], pretrained=toy[1], cache_folder=digits_cache.parents[1], dtype="float32", tell=lines.append)
    assert again == digits_cache and digits_cache.stat().st_mtime_ns == before and "nothing to do" in lines[-1]


def test_an_interrupted_extraction_resumes_to_the_same_bytes(toy, digits_cache, tmp_path):
    states = []

    def stop_after_three(state):
        states.append(state)
        if len(states) == 3:
            raise KeyboardInterrupt

    options = dict(model=toy[0], pretrained=toy[1], cache_folder=tmp_path, dtype="float32")
    with pytest.raises(KeyboardInterrupt):
        extract("digits", progress=stop_after_three, **options)
    assert not list(tmp_path.glob("*/*.h5")) and len(list(tmp_path.glob("*/*.part"))) == 1
    path = extract("digits", progress=states.append, **options)
    assert path.read_bytes() == digits_cache.read_bytes()
    assert states[3].done == 256 and states[-1].done == states[-1].total == 1797 and 0 <= states[-1].waiting <= 1

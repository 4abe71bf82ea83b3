"""Toy worlds on real temporary files, written with the real code."""

import numpy as np
import pytest
import torch
import toy_use

from cliad.cache.file.layout import DONE, Header, SplitLayout, TextSet, file_list_hash
from cliad.cache.file.write import Writer, create
from cliad.cache.folder import cache_path
from cliad.pipelines.experiments.train import train
from cliad.pipelines.experiments.transfer import score_elsewhere

pytest_plugins = ["browser"]

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption(
        "--count",
        type=int,
        default=3,
        help="changed inputs per door in tests/doors; thousands by hand",
    )


def toy_cache(
    folder,
    *,
    dataset="toy",
    encoder="toy",
    n_class=5,
    dim=16,
    n=(24, 8, 12),
    noise=0.6,
    text=True,
    val=True,
    seed=0,
    classnames=(),
):
    """A cache of `n_class` blobs around random directions; their text lies near them, but not on them."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_class, dim))
    labels = {
        name: np.arange(per * n_class) % n_class
        for name, per in zip(("train", "val", "test"), n, strict=True)
    }
    if not val:
        del labels["val"]
    rows = {
        name: 10 * (centres[y] + noise * rng.normal(size=(len(y), dim)))
        for name, y in labels.items()
    }
    splits = {
        name: SplitLayout([f"{name}/{i}.jpg" for i in range(len(y))], y, {"features": (dim,)})
        for name, y in labels.items()
    }
    recipe = {
        "files": file_list_hash({name: (s.paths, s.labels) for name, s in splits.items()}),
        "weights": encoder,
    }
    header = Header(dataset, encoder, encoder, recipe, batch=16, dtype="float32")
    classnames, templates = (
        [*classnames] or [f"class {i}" for i in range(n_class)],
        ["a {}.", "the {}."],
    )
    features = (
        np.stack([centres + 0.4 * rng.normal(size=(n_class, dim)) for _ in templates])
        if text
        else None
    )
    text_set = TextSet(
        "default",
        features,
        templates,
        classnames,
        {"templates": templates, "classnames": classnames},
        encoder,
        20.0,
    )
    path = cache_path(folder, dataset, encoder, header.image_id)
    create(path, header, splits, [text_set])
    with Writer(path) as writer:
        for name, start, stop in writer.todo():
            writer.write(
                name, start, {"features": rows[name][start:stop]}, np.full(stop - start, DONE)
            )
        return writer.finish()


def train_and_test_on(names, *, folder, device="cpu", **asked):
    """A run, its cache, and its rows on other data sets of the folder."""
    result, cache = train(folder=folder, device=device, **asked)
    return result, cache, score_elsewhere(result, cache, names, folder=folder, device=device)


@pytest.fixture
def toy(tmp_path):
    """The folder of one toy cache."""
    toy_cache(tmp_path / "caches")
    return tmp_path / "caches"


@pytest.fixture(scope="session")
def used(tmp_path_factory):
    """A world in which heads are used: `caches` with digits by a small random CLIP, its `weights`, a `run`, and test images as files."""
    return toy_use.world(tmp_path_factory.mktemp("used"))


def result_row(**words):
    """A result row as another tool might have written it."""
    base = {
        "dataset": "d",
        "encoder": "e",
        "prompts": "p",
        "head": "clip-adapter",
        "shots": 1,
        "seed": 1,
        "protocol": "coop",
    }
    return (
        base
        | {
            "selected_on": "fixed",
            "hyper": {},
            "fingerprint": "f",
            "top1": 0.5,
            "zero_shot_top1": 0.4,
            "diverged": False,
        }
        | words
    )

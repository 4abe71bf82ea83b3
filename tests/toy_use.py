"""A small world for the use of trained heads.

A random CLIP, a cache of digits, two run folders, and the test images as PNG files.
"""

from dataclasses import dataclass
from pathlib import Path

import toy_clip

from cliad.cache.datasets import find_dataset
from cliad.cache.file.read import FeatureCache
from cliad.pipelines.experiments.train import train
from cliad.pipelines.extract import extract
from cliad.pipelines.runs import run_folder


@dataclass(frozen=True, eq=False)
class World:
    """`model` and `weights` are the encoder; `labels` the classes of `images` by file name.

    `run` is the folder of a clip-adapter, `probe` that of a linear probe.
    """

    folder: Path
    caches: Path
    model: str
    weights: Path
    cache: FeatureCache
    run: Path
    probe: Path
    images: Path
    labels: dict[str, int]


def world(folder):
    model = toy_clip.register(folder, "toy-use")
    weights = toy_clip.weights(folder, model)
    caches = folder / "caches"
    extract("digits", model=model, pretrained=str(weights), cache_folder=caches)
    result, cache = train(folder=caches, head="clip-adapter", shots=8, hyper={"alpha": 0.6})
    command = "cliad train --alpha 0.6 --shots 8"
    run = run_folder.save(result, cache, folder / "runs" / "digits", command=command)
    result, _ = train(folder=caches, head="linear-probe", shots=16, hyper={"C": 1})
    probe = run_folder.save(result, cache, folder / "probe")
    images = folder / "images"
    return World(
        folder=folder,
        caches=caches,
        model=model,
        weights=weights,
        cache=cache,
        run=run,
        probe=probe,
        images=images,
        labels=write_images(images),
    )


def write_images(folder):
    """Write the test images of digits as PNG files; their labels by file name."""
    listing = find_dataset("digits").read(None, "field")
    folder.mkdir()
    labels = {}
    for path, label in listing.splits["test"]:
        listing.open(path).save(folder / f"{path}.png")
        labels[f"{path}.png"] = label
    return labels

"""A small world for the use of trained heads: a random CLIP, a cache of digits, a run folder, and the test images as PNG files."""

from collections import namedtuple

import toy_clip

from cliad.cache.datasets import find_dataset
from cliad.pipelines.experiments.train import train
from cliad.pipelines.extract import extract
from cliad.pipelines.runs import run_folder

World = namedtuple("World", "folder caches model weights cache run probe images labels")


def world(folder):
    model = toy_clip.register(folder, "toy-use")
    weights = toy_clip.weights(folder, model)
    caches = folder / "caches"
    extract("digits", model=model, pretrained=str(weights), cache_folder=caches)
    result, cache = train(folder=caches, head="clip-adapter", shots=8, hyper={"alpha": 0.6})
    run = run_folder.save(
        result, cache, folder / "runs" / "digits", command="cliad train --alpha 0.6 --shots 8"
    )
    result, _ = train(folder=caches, head="linear-probe", shots=16, hyper={"C": 1})
    probe = run_folder.save(result, cache, folder / "probe")
    listing = find_dataset("digits").read(None, "field")
    images = folder / "images"
    images.mkdir()
    for path, _ in listing.splits["test"]:
        listing.open(path).save(images / f"{path}.png")
    labels = {f"{path}.png": label for path, label in listing.splits["test"]}
    return World(folder, caches, model, weights, cache, run, probe, images, labels)

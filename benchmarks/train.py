"""CLIP-Adapter: the default recipe beside a plain PyTorch loop of CoOp's, on one cache.

    python benchmarks/train.py FILE.h5 [--shots 1,4,16] [--seeds 1,2,3] [--repeat 3]
        [--threads 2] [--quick]

FILE.h5 is a cache, e.g. of `cliad import tip-adapter FOLDER ...`. Printed are seconds, their ratio
and accuracies. The loop is what a user would write: torch.nn, SGD with momentum 0.9 and weight
decay 5e-4, batch 32, rate 2e-3 falling by a cosine after one epoch at 1e-5, epochs by shots as CoOp
has them, one run at a time, on the same cached features. Both are given their features in memory;
times are medians over seeds and repeats, for training alone. Without a file it runs on random
features of 102 classes x 512 dimensions at 16 shots: times only.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cliad.adapters.clip_adapter import ClipAdapter
from cliad.adapters.core.episode import Episode
from cliad.adapters.core.fit import Run, fit
from cliad.adapters.core.ops import class_weights
from cliad.cache.file.read import FeatureCache, open_cache
from cliad.pipelines.experiments.episode import (
    LabelledRows,
    make_episodes,
    pick_device,
    score_rows,
)
from cliad.pipelines.fewshot.draw import DrawRequest

ALPHA = 0.2  # of CoOp's loop, the weight of the adapted feature in CLIP-Adapter's paper
BATCH = 32
LR = 2e-3
Logits = Callable[[Tensor], Tensor]  # features (n, dim) -> logits (n, n_class)


@dataclass
class Measured:
    """What was measured of one recipe: seconds of each run, accuracy for each episode."""

    seconds: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        if not self.top1:
            return f"{self.median_seconds:.2f} s"
        return f"{self.median_seconds:.2f} s {100 * statistics.fmean(self.top1):.2f} %"


# --------------------------------------------------------------- the two recipes


def default_recipe(episode: Episode) -> Logits:
    """What `cliad train` does without options."""
    (classifier,) = fit([Run(ClipAdapter(), episode)])
    return classifier.logits


def coop_loop(episode: Episode, epochs: int) -> Logits:
    """CLIP-Adapter by CoOp's recipe, written plainly."""
    torch.random.manual_seed(episode.seed)
    dim = episode.features.shape[1]
    adapter = torch.nn.Sequential(
        torch.nn.Linear(dim, dim // 4, bias=False),
        torch.nn.ReLU(),
        torch.nn.Linear(dim // 4, dim, bias=False),
        torch.nn.ReLU(),
    )
    text = class_weights(episode.text)

    def logits(x: Tensor) -> Tensor:
        blended = ALPHA * adapter(x) + (1 - ALPHA) * x
        return episode.logit_scale * F.normalize(blended, dim=1) @ text.T

    optimiser = torch.optim.SGD(adapter.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    x = episode.features[episode.index]
    y = episode.y
    for epoch in range(epochs):
        optimiser.param_groups[0]["lr"] = coop_rate(epoch, epochs)
        for part in torch.randperm(len(y)).split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(logits(x[part]), y[part]).backward()
            optimiser.step()
    return logits


def coop_rate(epoch: int, epochs: int) -> float:
    """One epoch of warm-up at a constant rate, then a cosine."""
    if epoch == 0:
        return 1e-5
    return LR * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


# --------------------------------------------------------------- measuring


def compare(
    episodes: Sequence[Episode], epochs: int, repeat: int, test: LabelledRows | None
) -> tuple[Measured, Measured]:
    """The default recipe and CoOp's loop on the same episodes, in turns."""
    ours = Measured()
    coop = Measured()
    for episode in episodes:
        measure(ours, functools.partial(default_recipe, episode), repeat, test)
        measure(coop, functools.partial(coop_loop, episode, epochs), repeat, test)
    return ours, coop


def measure(
    measured: Measured, train: Callable[[], Logits], repeat: int, test: LabelledRows | None
) -> None:
    """Train `repeat` times, the same each time; the accuracy is that of the first."""
    trained = []
    for _ in range(repeat):
        started = time.perf_counter()
        trained.append(train())
        measured.seconds.append(time.perf_counter() - started)
    if test is not None:
        with torch.no_grad():
            predicted = trained[0](test.features).argmax(dim=1)
        measured.top1.append((predicted == test.y).float().mean().item())


def random_episode(seed: int, shots: int, n_class: int = 102, dim: int = 512) -> Episode:
    """Features that lie around the text of their class; it has no validation."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n_class).repeat_interleave(shots)
    text = torch.randn(1, n_class, dim, generator=generator)
    features = 0.3 * text[0, y] + torch.randn(len(y), dim, generator=generator)
    return Episode(
        features=features,
        index=torch.arange(len(y)),
        y=y,
        val_index=y[:0],
        val_y=y[:0],
        text=text,
        logit_scale=100.0,
        seed=seed,
        n_class=n_class,
    )


def cached_episodes(cache: FeatureCache, seeds: Sequence[int], shots: int) -> list[Episode]:
    requests = [DrawRequest(shots, seed) for seed in seeds]
    drawn = make_episodes(cache, requests, pick_device("cpu"))
    return [one.episode for one in drawn]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path, nargs="?")
    parser.add_argument("--shots", default="1,4,16")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="a twentieth of CoOp's epochs, once: does it run?"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    repeat = 1 if options.quick else options.repeat
    cache = None if options.cache is None else open_cache(options.cache)
    source = options.cache or "random features, 102 classes x 512"
    print(
        f"{source}: {options.threads} threads, torch {torch.__version__}, "
        f"medians of {repeat} x {len(seeds)}"
    )
    all_shots = [16] if cache is None else [int(shots) for shots in options.shots.split(",")]
    for shots in all_shots:
        if cache is None:
            episodes = [random_episode(seed, shots) for seed in seeds]
            test = None
        else:
            episodes = cached_episodes(cache, seeds, shots)
            test = score_rows(cache, "test", pick_device("cpu"))
        epochs = ClipAdapter(preset="paper").plan(BATCH, shots).steps  # one step an epoch
        if options.quick:
            epochs = max(2, epochs // 20)
        # Once before the clock runs: the first run also loads and allocates.
        fit([Run(ClipAdapter(epochs=1), episodes[0])])
        ours, coop = compare(episodes, epochs, repeat, test)
        ratio = coop.median_seconds / ours.median_seconds
        print(f"{shots:>2} shots: default {ours}  CoOp's loop {coop}  ratio {ratio:.1f}")


if __name__ == "__main__":
    main()

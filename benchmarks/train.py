"""CLIP-Adapter: the default recipe beside a plain PyTorch loop of CoOp's, on one cache; seconds, their ratio, accuracies.

    python benchmarks/train.py FILE.h5 [--shots 1,4,16] [--seeds 1,2,3] [--repeat 3] [--threads 2] [--quick]

FILE.h5 is a cache, e.g. of `cliad import tip-adapter FOLDER ...`. The loop is what a user would write: torch.nn, SGD with momentum
0.9 and weight decay 5e-4, batch 32, rate 2e-3 falling by a cosine after one epoch at 1e-5, epochs by shots as CoOp has them, one run
at a time, on the same cached features. Both are given their features in memory; times are medians over seeds and repeats, for
training alone. Without a file it runs on random features of 102 classes x 512 dimensions at 16 shots: times only.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from cliad.adapters.clip_adapter import PRESETS, ClipAdapter
from cliad.adapters.core.episode import Episode
from cliad.adapters.core.fit import fit
from cliad.adapters.core.ops import class_weights
from cliad.cache.file.read import open_cache
from cliad.pipelines.experiments.episode import make_episodes, pick_device, score_rows
from cliad.pipelines.fewshot.draw import DrawRequest

LOOP = "CoOp's loop"


def coop_loop(episode: Episode, alpha: float, epochs: int):
    """CLIP-Adapter by CoOp's recipe, written plainly; gives x -> logits."""
    torch.random.manual_seed(episode.seed)
    dim = episode.features.shape[1]
    layers = [
        torch.nn.Linear(dim, dim // 4, bias=False),
        torch.nn.ReLU(),
        torch.nn.Linear(dim // 4, dim, bias=False),
        torch.nn.ReLU(),
    ]
    adapter, text = torch.nn.Sequential(*layers), class_weights(episode.text)
    forward = lambda x: (
        episode.logit_scale * F.normalize(alpha * adapter(x) + (1 - alpha) * x, dim=1) @ text.T
    )
    optimiser = torch.optim.SGD(adapter.parameters(), lr=2e-3, momentum=0.9, weight_decay=5e-4)
    x, y = episode.features[episode.index], episode.y
    for epoch in range(epochs):
        optimiser.param_groups[0]["lr"] = (
            1e-5 if epoch == 0 else 2e-3 * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2
        )
        for part in torch.randperm(len(y)).split(32):
            optimiser.zero_grad()
            F.cross_entropy(forward(x[part]), y[part]).backward()
            optimiser.step()
    return forward


def random_episode(seed: int, n_class: int = 102, dim: int = 512, shots: int = 16) -> Episode:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n_class).repeat_interleave(shots)
    text = torch.randn(1, n_class, dim, generator=g)
    features = 0.3 * text[0, y] + torch.randn(len(y), dim, generator=g)
    return Episode(features, torch.arange(len(y)), y, y[:0], y[:0], text, 100.0, seed, n_class)


def timed(what) -> tuple[float, object]:
    started = time.perf_counter()
    made = what()
    return time.perf_counter() - started, made


def compare(episodes: list[Episode], shots: int, repeat: int, quick: bool, scored) -> dict:
    """Median seconds and mean accuracy of both, over episodes."""
    epochs = PRESETS["paper"].epochs_at(shots)
    epochs = max(2, epochs // 20) if quick else epochs
    rows = {"default": ([], []), LOOP: ([], [])}
    for episode in episodes:
        for name, make in (
            ("default", lambda e=episode: fit([(ClipAdapter(), e)])[0].logits),
            (LOOP, lambda e=episode: coop_loop(e, 0.2, epochs)),
        ):
            runs = [timed(make) for _ in range(repeat)]
            rows[name][0].extend(seconds for seconds, _ in runs)
            if scored is not None:
                with torch.no_grad():
                    rows[name][1].append(
                        (runs[0][1](scored[0]).argmax(dim=1) == scored[1]).float().mean().item()
                    )
    return {
        name: (statistics.median(seconds), statistics.fmean(tops) if tops else None)
        for name, (seconds, tops) in rows.items()
    }


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
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    repeat, seeds = (
        1 if asked.quick else asked.repeat,
        [int(seed) for seed in asked.seeds.split(",")],
    )
    cache = open_cache(asked.cache) if asked.cache else None
    shots_list = [int(shots) for shots in asked.shots.split(",")] if cache else [16]
    print(
        f"{asked.cache or 'random features, 102 classes x 512'}: {asked.threads} threads, torch {torch.__version__}, medians of {repeat} x {len(seeds)}"
    )
    for shots in shots_list:
        if cache:
            device = pick_device("cpu")
            episodes = [
                drawn.episode
                for drawn in make_episodes(
                    cache, [DrawRequest(shots, seed) for seed in seeds], device
                )
            ]
            scored = score_rows(cache, "test", device)
        else:
            episodes, scored = [random_episode(seed, shots=shots) for seed in seeds], None
        fit([(ClipAdapter(epochs=1), episodes[0])])  # warm-up
        found = compare(episodes, shots, repeat, asked.quick, scored)
        line = "  ".join(
            f"{name} {s:.2f} s" + ("" if top is None else f" {100 * top:.2f} %")
            for name, (s, top) in found.items()
        )
        print(f"{shots:>2} shots: {line}  ratio {found[LOOP][0] / found['default'][0]:.1f}")


if __name__ == "__main__":
    main()

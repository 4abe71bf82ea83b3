"""What training many runs together gains, on real cached CLIP features. By hand:

    python benchmarks/grid.py FEATURES [--quick] [--repeats 5]

FEATURES holds tip-adapter-caches/caltech101 and caltech101_text_vitb32.npz. Prints, as medians of repeats made side by side:
(a) the default recipe, batched, against a plain PyTorch loop, one run at a time, with CoOp's recipe (batch 32; 50, 100, 100, 200,
    200 epochs at 1, 2, 4, 8, 16 shots): runs per second and accuracy of both;
(b) the same recipe on both sides, and the largest difference of logits in double precision;
(c) the share of the machine's float32 matrix-product rate that the 16-shot group of (a) reaches.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cliad.adapters.clip_adapter import ClipAdapter
from cliad.adapters.core.classifier import logits_of
from cliad.adapters.core.episode import Episode
from cliad.adapters.core.fit import fit
from cliad.adapters.core.ops import class_weights, unit
from cliad.adapters.core.optimiser import rate
from cliad.cache.file.read import open_cache
from cliad.cache.formats.importing import import_features
from cliad.cli import set_up_process
from cliad.pipelines.experiments.episode import make_episodes, score_rows
from cliad.pipelines.fewshot.draw import DrawRequest

COOP_EPOCHS = {1: 50, 2: 100, 4: 100, 8: 200, 16: 200}
ALPHAS, SEEDS = (0.2, 0.4, 0.6, 0.8), (1, 2, 3, 4)


class Adapter(nn.Module):
    """CLIP-Adapter as its released code writes it."""

    def __init__(self, dim: int, text: Tensor, scale: float, alpha: float):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, dim // 4, bias=False),
            nn.ReLU(),
            nn.Linear(dim // 4, dim, bias=False),
            nn.ReLU(),
        )
        self.text, self.scale, self.alpha = text, scale, alpha

    def forward(self, x: Tensor) -> Tensor:
        x = self.alpha * self.net(x) + (1 - self.alpha) * x
        return self.scale * (x / x.norm(dim=-1, keepdim=True)) @ self.text.T


def coop_loop(episode: Episode, alpha: float, shots: int) -> Adapter:
    """One run: SGD 0.002, momentum 0.9, decay 5e-4, cosine per epoch after one epoch at 1e-5, shuffled batches of 32."""
    torch.manual_seed(episode.seed)
    x, y = unit(episode.features)[episode.index], episode.y
    model = Adapter(x.shape[1], class_weights(episode.text), episode.logit_scale, alpha)
    epochs = COOP_EPOCHS[shots]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for epoch in range(epochs):
        if epoch == 0:
            optimiser.param_groups[0]["lr"] = 1e-5
        for part in torch.randperm(len(y)).split(32):
            optimiser.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimiser.step()
        if epoch == 0:
            optimiser.param_groups[0]["lr"] = 0.002
        schedule.step()
    return model


def same_recipe_loop(head: ClipAdapter, episode: Episode) -> Adapter:
    """One run of the head's own recipe in plain PyTorch: AdamW, linear warm-up, cosine, the same minibatches and start."""
    x, y = unit(episode.features)[episode.index], episode.y
    model = Adapter(x.shape[1], class_weights(episode.text), episode.logit_scale, head.alpha)
    generator = torch.Generator().manual_seed(episode.seed)
    start = head.start({"text": model.text[None]}, {}, [generator])
    model.net[0].weight.data, model.net[2].weight.data = (
        start["visual_w1"][0].T.contiguous(),
        start["visual_w2"][0].T.contiguous(),
    )
    plan = head.plan(len(y), episode.shots)
    optimiser = torch.optim.AdamW(model.parameters(), lr=head.lr, weight_decay=head.weight_decay)
    for step in range(plan.steps):
        if plan.per_epoch > 1 and step % plan.per_epoch == 0:
            parts = torch.randperm(len(y), generator=generator).tensor_split(plan.per_epoch)
        part = parts[step % plan.per_epoch] if plan.per_epoch > 1 else slice(None)
        optimiser.param_groups[0]["lr"] = rate(plan, step, head.lr)
        optimiser.zero_grad()
        F.cross_entropy(model(x[part]), y[part]).backward()
        optimiser.step()
    return model


def seconds(work) -> tuple[float, object]:
    started = time.perf_counter()
    done = work()
    return time.perf_counter() - started, done


def matmul_rate() -> float:
    """Float32 operations per second of a large matrix product."""
    a, b = torch.randn(2, 2048, 2048)
    return 2 * 2048**3 / min(seconds(lambda: a @ b)[0] for _ in range(4))


def accuracy(logits: Tensor, y: Tensor) -> float:
    return (logits.argmax(dim=-1) == y).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("features", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer runs and repeats")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--group", type=int, default=16, help="runs trained at once")
    asked = parser.parse_args()
    set_up_process()  # both sides run as `cliad grid` does
    repeats = 2 if asked.quick else asked.repeats
    with tempfile.TemporaryDirectory() as folder:
        cache = open_cache(_import(asked.features, Path(folder)))
        test = score_rows(cache, "test", torch.device("cpu"))
        print(
            f"{cache.dataset}: {len(cache.classnames)} classes, {len(test[1])} test images; {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
        )
        for shots in (1, 4, 16) if asked.quick else COOP_EPOCHS:
            drawn = make_episodes(
                cache, [DrawRequest(shots, seed) for seed in SEEDS], torch.device("cpu")
            )
            runs = [(ClipAdapter(alpha=alpha), one.episode) for one in drawn for alpha in ALPHAS][
                : asked.group
            ]
            _compare(runs, shots, test, repeats)


def _import(features: Path, folder: Path) -> Path:
    words = {
        "dataset": "caltech65",
        "encoder": "ViT-B-32",
        "text": features / "caltech101_text_vitb32.npz",
    }
    return import_features(
        "tip-adapter", features / "tip-adapter-caches" / "caltech101", cache_folder=folder, **words
    )


def _compare(runs: list, shots: int, test: tuple, repeats: int) -> None:
    """Print (a), (b) and (c) for one number of shots."""
    coop, same, share, accuracies = [], [], [], []
    x, y = unit(test[0]), test[1]
    for repeat in range(repeats):
        alone = runs[repeat * 5 % len(runs)]
        rate_now = matmul_rate()
        together, fitted = seconds(lambda: fit(runs))
        one, coop_model = seconds(lambda run=alone: coop_loop(run[1], run[0].alpha, shots))
        mine, same_model = seconds(lambda run=alone: same_recipe_loop(*run))
        each = together / len(runs)
        coop.append(one / each)
        same.append(mine / each)
        share.append(operations(*runs[0]) / each / rate_now)
        with torch.no_grad():
            ours = logits_of([fitted[runs.index(alone)]], x)[0]
            accuracies.append(
                [accuracy(logits, y) for logits in (ours, coop_model(x), same_model(x))]
            )
    mid, means = (
        statistics.median,
        [100 * statistics.mean(column) for column in zip(*accuracies, strict=True)],
    )
    print(
        f"{shots:2} shots: {1 / each:6.1f} runs/s, accuracy {means[0]:.2f}"
        f" | (a) {mid(coop):5.1f} x CoOp's loop, accuracy {means[1]:.2f}"
        f" | (b) {mid(same):4.1f} x the same recipe, accuracy {means[2]:.2f}, logits in float64 differ by {exact_gap(runs[3], x):.0e}"
        f" | (c) {mid(share):.0%} of the matrix-product rate",
        flush=True,
    )


def operations(head: ClipAdapter, episode: Episode) -> float:
    """Floating-point operations of one run: 10 D H + 4 D C for each sample."""
    n, dim, n_class = len(episode.y), episode.features.shape[1], episode.n_class
    plan = head.plan(n, episode.shots)
    return plan.steps / plan.per_epoch * n * (10 * dim * (dim // 4) + 4 * dim * n_class)


def exact_gap(run: tuple, x: Tensor) -> float:
    """The largest difference of logits between `fit` and the plain loop in double precision.

    In single precision Adam makes steps of full size out of gradients that are rounding alone, so that equal recipes part.
    """
    head, episode = run
    episode = replace(episode, features=episode.features.double(), text=episode.text.double())
    model, (fitted,) = same_recipe_loop(head, episode), fit([(head, episode)])
    with torch.no_grad():
        return (model(x.double()) - fitted.logits(x.double())).abs().max().item()


if __name__ == "__main__":
    main()

"""What training many runs together gains, on real cached CLIP features. By hand:

    python benchmarks/grid.py FEATURES [--quick] [--repeats 5]

FEATURES holds tip-adapter-caches/caltech101 and caltech101_text_vitb32.npz. Prints, as medians of
repeats made side by side (accuracies as means):
(a) the default recipe, batched, against a plain PyTorch loop, one run at a time, with CoOp's recipe
    (batch 32; 50, 100, 100, 200, 200 epochs at 1, 2, 4, 8, 16 shots): runs per second and accuracy
    of both;
(b) the same recipe on both sides, and the largest difference of logits in double precision;
(c) the share of the machine's float32 matrix-product rate that the 16-shot group of (a) reaches.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cliad.adapters.clip_adapter import ClipAdapter
from cliad.adapters.core.classifier import logits_of
from cliad.adapters.core.episode import Episode
from cliad.adapters.core.fit import Run, fit
from cliad.adapters.core.ops import class_weights, unit
from cliad.adapters.core.optimiser import rate
from cliad.cache.file.read import FeatureCache, open_cache
from cliad.cache.formats.importing import import_features
from cliad.cli import set_up_process
from cliad.pipelines.experiments.episode import LabelledRows, make_episodes, score_rows
from cliad.pipelines.fewshot.draw import DrawRequest

COOP_EPOCHS = {1: 50, 2: 100, 4: 100, 8: 200, 16: 200}  # by shots
QUICK_SHOTS = (1, 4, 16)
ALPHAS = (0.2, 0.4, 0.6, 0.8)
SEEDS = (1, 2, 3, 4)
CPU = torch.device("cpu")
T = TypeVar("T")


# --------------------------------------------------------------- the plain loops


class Adapter(nn.Module):
    """CLIP-Adapter as its released code writes it."""

    def __init__(self, episode: Episode, alpha: float):
        super().__init__()
        dim = episode.features.shape[1]
        self.net = nn.Sequential(
            nn.Linear(dim, dim // 4, bias=False),
            nn.ReLU(),
            nn.Linear(dim // 4, dim, bias=False),
            nn.ReLU(),
        )
        self.text = class_weights(episode.text)
        self.scale = episode.logit_scale
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """Unit features (n, dim) -> logits (n, n_class)."""
        x = self.alpha * self.net(x) + (1 - self.alpha) * x
        return self.scale * (x / x.norm(dim=-1, keepdim=True)) @ self.text.T


def coop_loop(run: Run, shots: int) -> Adapter:
    """One run by CoOp's recipe.

    SGD 0.002, momentum 0.9, decay 5e-4, cosine per epoch after one epoch at 1e-5, shuffled batches
    of 32.
    """
    episode = run.episode
    torch.manual_seed(episode.seed)
    x = unit(episode.features)[episode.index]
    y = episode.y
    model = Adapter(episode, run.head.alpha)
    epochs = COOP_EPOCHS[shots]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for epoch in range(epochs):
        if epoch == 0:
            optimiser.param_groups[0]["lr"] = 1e-5
        for part in torch.randperm(len(y)).split(32):
            train_step(model, optimiser, x[part], y[part])
        if epoch == 0:
            optimiser.param_groups[0]["lr"] = 0.002
        schedule.step()
    return model


def same_recipe_loop(run: Run) -> Adapter:
    """One run of the head's own recipe in plain PyTorch.

    AdamW, cosine, the same minibatches and the same start as `fit` has.
    """
    head, episode = run
    x = unit(episode.features)[episode.index]
    y = episode.y
    model = Adapter(episode, head.alpha)
    generator = torch.Generator().manual_seed(episode.seed)
    # The head keeps its weights as (n_run, in, out), nn.Linear as (out, in).
    start = head.start({"text": model.text[None]}, {}, [generator])
    model.net[0].weight.data = start["visual_w1"][0].T.contiguous()
    model.net[2].weight.data = start["visual_w2"][0].T.contiguous()
    plan = head.plan(len(y), episode.shots)
    optimiser = torch.optim.AdamW(model.parameters(), lr=head.lr, weight_decay=head.weight_decay)
    parts: Sequence[Tensor | slice] = [slice(None)]  # one batch of all items
    for step in range(plan.steps):
        if plan.per_epoch > 1 and step % plan.per_epoch == 0:
            parts = torch.randperm(len(y), generator=generator).tensor_split(plan.per_epoch)
        part = parts[step % plan.per_epoch]
        optimiser.param_groups[0]["lr"] = rate(plan, step, head.lr)
        train_step(model, optimiser, x[part], y[part])
    return model


def train_step(model: Adapter, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimiser.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimiser.step()


# --------------------------------------------------------------- measuring


@dataclass
class Measured:
    """One number per repeat.

    Gains are times faster than the plain loop of the name, share is of the machine's rate of matrix
    products; the others are accuracies.
    """

    runs_per_second: list[float] = field(default_factory=list)
    coop_gain: list[float] = field(default_factory=list)
    same_gain: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    coop: list[float] = field(default_factory=list)
    same: list[float] = field(default_factory=list)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """The seconds that `work` takes, and what it gives."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def matmul_rate() -> float:
    """Float32 operations per second of a large matrix product."""
    a, b = torch.randn(2, 2048, 2048)
    times = []
    for _ in range(4):
        seconds, _ = timed(lambda: a @ b)
        times.append(seconds)
    return 2 * 2048**3 / min(times)


def operations(run: Run) -> float:
    """Floating-point operations of one run.

    Each sample takes 10 D H + 4 D C, where a multiply-add is 2 operations. Forward: two layers of
    D x H and the product with the text, D x C. Backward: both gradients of the second layer, that
    of the weights of the first, and that of the product's input.
    """
    head, episode = run
    n = len(episode.y)
    dim = episode.features.shape[1]
    plan = head.plan(n, episode.shots)
    epochs = plan.steps / plan.per_epoch
    return epochs * n * (10 * dim * (dim // 4) + 4 * dim * episode.n_class)


def accuracy(logits: Tensor, y: Tensor) -> float:
    return (logits.argmax(dim=-1) == y).float().mean().item()


def exact_gap(run: Run, x: Tensor) -> float:
    """The largest difference of logits between `fit` and the plain loop in double precision.

    In single precision Adam makes steps of full size out of gradients that are rounding alone, so
    that equal recipes part.
    """
    episode = replace(
        run.episode, features=run.episode.features.double(), text=run.episode.text.double()
    )
    exact = Run(run.head, episode)
    model = same_recipe_loop(exact)
    (fitted,) = fit([exact])
    with torch.no_grad():
        gap = model(x.double()) - fitted.logits(x.double())
    return gap.abs().max().item()


def compare(runs: Sequence[Run], shots: int, test: LabelledRows, repeats: int) -> None:
    """Print (a), (b) and (c) for one number of shots."""
    measured = Measured()
    x = unit(test.features)
    for repeat in range(repeats):
        position = repeat * 5 % len(runs)  # another alpha and seed each time
        alone = runs[position]
        # All at once and one by one in turns, so that a busy machine slows all of them.
        rate_now = matmul_rate()
        seconds_together, fitted = timed(functools.partial(fit, runs))
        seconds_coop, coop_model = timed(functools.partial(coop_loop, alone, shots))
        seconds_same, same_model = timed(functools.partial(same_recipe_loop, alone))
        seconds_each = seconds_together / len(runs)
        measured.runs_per_second.append(1 / seconds_each)
        measured.coop_gain.append(seconds_coop / seconds_each)
        measured.same_gain.append(seconds_same / seconds_each)
        measured.share.append(operations(runs[0]) / seconds_each / rate_now)
        with torch.no_grad():
            measured.ours.append(accuracy(logits_of([fitted[position]], x)[0], test.y))
            measured.coop.append(accuracy(coop_model(x), test.y))
            measured.same.append(accuracy(same_model(x), test.y))
    print(_line(measured, shots, exact_gap(runs[3], x)), flush=True)


def _line(measured: Measured, shots: int, gap: float) -> str:
    parts = [
        f"{shots:2} shots: {statistics.median(measured.runs_per_second):6.1f} runs/s, "
        f"accuracy {_percent(measured.ours)}",
        f"(a) {statistics.median(measured.coop_gain):5.1f} x CoOp's loop, "
        f"accuracy {_percent(measured.coop)}",
        f"(b) {statistics.median(measured.same_gain):4.1f} x the same recipe, "
        f"accuracy {_percent(measured.same)}, logits in float64 differ by {gap:.0e}",
        f"(c) {statistics.median(measured.share):.0%} of the matrix-product rate",
    ]
    return " | ".join(parts)


def _percent(accuracies: Sequence[float]) -> str:
    return f"{100 * statistics.mean(accuracies):.2f}"


# --------------------------------------------------------------- the command


def import_caltech(features: Path, folder: Path) -> FeatureCache:
    """Tip-Adapter's Caltech101 features as a cache: the 65 classes that the text file has."""
    path = import_features(
        "tip-adapter",
        features / "tip-adapter-caches" / "caltech101",
        dataset="caltech65",
        encoder="ViT-B-32",
        text=features / "caltech101_text_vitb32.npz",
        cache_folder=folder,
    )
    return open_cache(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("features", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer runs and repeats")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--group", type=int, default=16, help="runs trained at once")
    options = parser.parse_args()
    set_up_process()  # both sides run as `cliad grid` does
    repeats = 2 if options.quick else options.repeats
    with tempfile.TemporaryDirectory() as folder:
        cache = import_caltech(options.features, Path(folder))
        test = score_rows(cache, "test", CPU)
        print(
            f"{cache.dataset}: {len(cache.classnames)} classes, {len(test.y)} test images; "
            f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
        )
        for shots in QUICK_SHOTS if options.quick else COOP_EPOCHS:
            requests = [DrawRequest(shots, seed) for seed in SEEDS]
            runs = []
            for drawn in make_episodes(cache, requests, CPU):
                runs += [Run(ClipAdapter(alpha=alpha), drawn.episode) for alpha in ALPHAS]
            compare(runs[: options.group], shots, test, repeats)


if __name__ == "__main__":
    main()

"""Every head beside a plain loop written after its authors' released code, on the same draws.

    python benchmarks/reference.py FILE.h5 [--heads clap,gda] [--shots 1,4,16] [--seeds 1,2,3]

FILE.h5 is a cache. A line to a head and a number of shots: mean test accuracy of `cliad train`
without options, that of the loop, and their paired difference with its standard error over seeds.
The loops share no code with the heads: they are PyTorch, numpy and scikit-learn, one run at a time.
Where released code augments images, it has here what the cache has, the plain view. Where it looks
at the test set (Tip-Adapter-F keeps its best epoch there) it looks at validation or takes the last
epoch. Values that it has for each data set are those of Caltech101 and OxfordPets, else those that
most sets have. CLIP-Adapter has a second loop, which does not count epochs by the shots. ProLIP is
left out: hardly any cache has features before the projection. Cross-modal loops take minutes a run.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from cliad.adapters.core.episode import Episode
from cliad.cache.file.read import FeatureCache, open_cache
from cliad.pipelines.experiments.episode import make_episodes, pick_device, score_rows
from cliad.pipelines.experiments.run import run
from cliad.pipelines.experiments.spec import make_head, spec_of
from cliad.pipelines.fewshot.draw import DrawRequest

Logits = Callable[[Tensor], Tensor]  # raw features (n, dim) -> logits (n, n_class)
CPU = pick_device("cpu")


@dataclass(frozen=True)
class Configuration:
    """What the released code of Tip-Adapter and APE sets for each data set."""

    first_alpha: float = 1.17
    most_beta: float = 7
    most_alpha: float = 3
    ape_share: float = 800 / 1024
    ape_w: tuple[float, float] = (0.7, 0.3)
    ape_most: tuple[float, float, float] = (7, 7, 1)  # of beta, alpha, gamma


CALTECH = Configuration(first_alpha=3, most_beta=12, most_alpha=5, ape_w=(0.5, 0.5))
CONFIGURATIONS = {"caltech101": CALTECH, "caltech65": CALTECH}


@dataclass(frozen=True, eq=False)
class Data:
    """One draw: raw features x (n, dim), f unit rows of them, labels y, the same of validation.

    t (n_class, dim) are unit class texts, raw_t their mean as long as CLIP's texts are, sentences
    (n_template, n_class, dim) unit rows; s is the logit scale.
    """

    x: Tensor
    y: Tensor
    val_x: Tensor
    val_y: Tensor
    sentences: Tensor
    raw_t: Tensor
    s: float
    shots: int
    configuration: Configuration

    @classmethod
    def of(cls, episode: Episode, shots: int, dataset: str) -> Data:
        """The data of an episode without missing texts."""
        text = episode.text
        length = 10.0 if text.norm(dim=-1).max() < 1.5 else 1.0
        return cls(
            x=episode.features[episode.index],
            y=episode.y,
            val_x=episode.features[episode.val_index],
            val_y=episode.val_y,
            sentences=F.normalize(text, dim=-1),
            raw_t=text.mean(dim=0) * length,
            s=episode.logit_scale,
            shots=shots,
            configuration=CONFIGURATIONS.get(dataset, Configuration()),
        )

    @property
    def f(self) -> Tensor:
        return F.normalize(self.x, dim=1)

    @property
    def t(self) -> Tensor:
        return F.normalize(self.sentences.mean(dim=0), dim=1)

    @property
    def onehot(self) -> Tensor:
        return F.one_hot(self.y, len(self.t)).float()

    def right(self, logits: Logits) -> float:
        """The share of validation that is classified rightly."""
        with torch.no_grad():
            return accuracy(logits(self.val_x), self.val_y)


def accuracy(logits: Tensor, y: Tensor) -> float:
    return (logits.argmax(dim=-1) == y).float().mean().item()


def shuffled(n: int, batch: int, *, drop_last: bool = False) -> Iterator[Tensor]:
    """An epoch's minibatches of positions; Dassl drops a short last one, but never the only one."""
    parts = torch.randperm(n).split(batch)
    if drop_last and n >= batch and len(parts[-1]) < batch:
        parts = parts[:-1]
    return iter(parts)


# ------------------------------------------------------- CoOp's trainer: CLIP-Adapter and others


def dassl(
    data: Data,
    logits: Logits,
    optimiser: torch.optim.Optimizer,
    *,
    epochs: int,
    batch: int,
    penalty: Callable[[], Tensor | float] = lambda: 0.0,
) -> None:
    """Dassl's loop: an epoch at 1e-5, then a cosine that steps once an epoch."""
    highest = optimiser.param_groups[0]["lr"]
    for epoch in range(epochs):
        cosine = highest * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2
        optimiser.param_groups[0]["lr"] = cosine if epoch else 1e-5
        for part in shuffled(len(data.y), batch, drop_last=True):
            loss = F.cross_entropy(logits(data.x[part]), data.y[part]) + penalty()
            step(optimiser, loss)


def step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def adapter_network(dim: int) -> nn.Sequential:
    """CLIP-Adapter's bottleneck as released: a second ReLU, no bias."""
    return nn.Sequential(
        nn.Linear(dim, dim // 4, bias=False),
        nn.ReLU(),
        nn.Linear(dim // 4, dim, bias=False),
        nn.ReLU(),
    )


def clip_adapter(data: Data) -> Logits:
    """CLIP-Adapter by CoOp's recipe (batch 32; 50, 100, 200 epochs)."""
    network = adapter_network(data.x.shape[1])

    def logits(x: Tensor) -> Tensor:
        return data.s * F.normalize(0.2 * network(x) + 0.8 * x, dim=1) @ data.t.T

    sgd = torch.optim.SGD(network.parameters(), lr=0.002, momentum=0.9, weight_decay=5e-4)
    epochs = 50 if data.shots == 1 else 100 if data.shots <= 4 else 200
    dassl(data, logits, sgd, epochs=epochs, batch=32)
    return logits


def clip_adapter_adamw(data: Data) -> Logits:
    """CLIP-Adapter by AdamW at 1e-3 with a cosine over 100 epochs of batches of 256."""
    network = adapter_network(data.x.shape[1])

    def logits(x: Tensor) -> Tensor:
        return data.s * F.normalize(0.2 * network(x) + 0.8 * x, dim=1) @ data.t.T

    adamw = torch.optim.AdamW(network.parameters(), lr=1e-3)
    steps = 100 * math.ceil(len(data.y) / 256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, steps)
    for _ in range(100):
        for part in shuffled(len(data.y), 256):
            step(adamw, F.cross_entropy(logits(data.f[part]), data.y[part]))
            schedule.step()
    return logits


def taskres(data: Data) -> Logits:
    """TaskRes: trainers/taskres.py with its generic configuration."""
    residual = nn.Parameter(torch.zeros_like(data.raw_t))

    def logits(x: Tensor) -> Tensor:
        text = F.normalize(data.raw_t + 0.5 * residual, dim=1)
        return data.s * F.normalize(x, dim=1) @ text.T

    adam = torch.optim.Adam([residual], lr=2e-3, weight_decay=5e-4)
    dassl(data, logits, adam, epochs=100 if data.shots <= 4 else 200, batch=256)
    return logits


def zs_lp(data: Data) -> Logits:
    """ZS-LP: CLAP's trainer without its penalty."""
    return clap(data, strength=0)


def clap(data: Data, strength: float = 1) -> Logits:
    """CLAP: trainers/adapters.py, SGD_lr1e-1_B256_ep300."""
    w = nn.Parameter(data.raw_t.clone())

    def logits(x: Tensor) -> Tensor:
        return data.s * F.normalize(x, dim=1) @ F.normalize(w, dim=1).T

    with torch.no_grad():
        probability = logits(data.x).softmax(dim=1)
    trust = torch.stack([probability[data.y == k, k].mean() for k in range(len(w))])

    def penalty() -> Tensor:
        return strength * (trust * (w - data.raw_t).pow(2).sum(dim=1)).mean()

    sgd = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    dassl(data, logits, sgd, epochs=300, batch=256, penalty=penalty)
    return logits


# ------------------------------------------------------- full-batch heads


def reg_linear(data: Data) -> Logits:
    """ProLIP's regularised linear adapter: methods/RegLinearAdapter.py, lambda 1 / N."""
    dim = data.x.shape[1]
    matrix = nn.Parameter(torch.eye(dim))

    def logits(x: Tensor) -> Tensor:
        return data.s * F.normalize(F.normalize(x, dim=1) @ matrix.T, dim=1) @ data.t.T

    adam = torch.optim.Adam([matrix], lr=1e-3, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 300)
    for _ in range(300):
        distance = F.mse_loss(matrix, torch.eye(dim), reduction="sum")
        step(adam, F.cross_entropy(logits(data.x), data.y) + distance / data.shots)
        schedule.step()
    return logits


def lp_plus_plus(data: Data) -> Logits:
    """LP++: methods/linear_probe_p2.py; the gradient of a is never cleared there."""
    layer = nn.Linear(data.x.shape[1], len(data.t))
    own = torch.stack([(data.f[data.y == k] @ data.t[k]).mean() for k in range(len(data.t))])
    layer.weight.data = data.onehot.T @ data.f
    a = torch.full((len(data.t),), 250 * own.mean().item(), requires_grad=True)

    def logits(x: Tensor) -> Tensor:
        f = F.normalize(x, dim=1)
        return layer(f) + a * (f @ data.t.T)

    n = len(data.y)
    lr = 4 * n / torch.linalg.matrix_norm(data.f, ord=2).item() ** 2
    lr_a = n / (4 * (data.f @ data.t.T).pow(2).sum(dim=0).max().item())
    sgd = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9)
    best = -1.0
    kept: tuple[Tensor, ...] = ()
    for epoch in range(300):
        step(sgd, F.cross_entropy(logits(data.x), data.y))
        if (epoch + 1) % 10 == 0:
            a.data -= lr_a * a.grad
        right = data.right(logits)
        if right >= best:
            best = right
            kept = (layer.weight.data.clone(), layer.bias.data.clone(), a.data.clone())
    layer.weight.data, layer.bias.data, a.data = kept
    return logits


def linear_probe(data: Data) -> Logits:
    """CoOp's lpclip/linear_probe.py: scikit-learn, C on validation in powers, then by bisection."""
    fitted = {}

    def right(log_c: float) -> float:
        if log_c not in fitted:
            model = LogisticRegression(C=10**log_c, max_iter=1000)
            fitted[log_c] = model.fit(data.x.numpy(), data.y.numpy())
        return fitted[log_c].score(data.val_x.numpy(), data.val_y.numpy())

    peak = max((6, 4, 2, 0, -2, -4, -6), key=right)
    left = peak - 1.0
    right_end = peak + 1.0
    chosen = left
    for _ in range(8):
        if right(left) < right(right_end):
            chosen = right_end
            left = (left + right_end) / 2
        else:
            chosen = left
            right_end = (left + right_end) / 2

    def logits(x: Tensor) -> Tensor:
        return torch.from_numpy(fitted[chosen].decision_function(x.numpy()))

    return logits


# ------------------------------------------------------- closed forms beside zero-shot


def gda(data: Data) -> Logits:
    """ICLR24's main_few_shots.py; one view of one shot has no scatter, there W = 0."""
    means = torch.stack([data.f[data.y == k].mean(dim=0) for k in range(len(data.t))])
    centred = (data.f - means[data.y]).numpy()
    n, dim = centred.shape
    covariance = np.cov(centred.T)
    ridged = (n - 1) * covariance + np.trace(covariance) * np.eye(dim)
    precision = torch.from_numpy(dim * np.linalg.pinv(ridged, hermitian=True)).float()
    w = means @ precision
    b = math.log(1 / len(means)) - (w * means).sum(dim=1) / 2

    def logits_at(alpha: float) -> Logits:
        def logits(x: Tensor) -> Tensor:
            f = F.normalize(x, dim=1)
            return data.s * f @ data.t.T + alpha * (f @ w.T + b)

        return logits

    alphas = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0)
    return logits_at(max(alphas, key=lambda alpha: data.right(logits_at(alpha))))


def values_up_to(most: float, count: int, first: float = 0.1) -> list[float]:
    return [first + i * (most - first) / count for i in range(count)]


def key_logits(data: Data, keys: Tensor, alpha: float, beta: float) -> Logits:
    """Tip-Adapter's logits with keys (n, dim)."""

    def logits(x: Tensor) -> Tensor:
        f = F.normalize(x, dim=1)
        near = torch.exp(-beta * (1 - f @ keys.T)) @ data.onehot
        return data.s * f @ data.t.T + alpha * near

    return logits


def search_keys(data: Data, keys: Tensor) -> Logits:
    """utils.py's search_hp: 200 betas, 20 alphas, the first of the best on validation."""
    f = F.normalize(data.val_x, dim=1)
    zero_shot = data.s * f @ data.t.T
    affinity = f @ keys.T
    best = (-1.0, 0.0, 0.0)
    for beta in values_up_to(data.configuration.most_beta, 200):
        near = torch.exp(-beta * (1 - affinity)) @ data.onehot
        for alpha in values_up_to(data.configuration.most_alpha, 20):
            right = accuracy(zero_shot + alpha * near, data.val_y)
            if right > best[0]:
                best = (right, alpha, beta)
    return key_logits(data, keys, best[1], best[2])


def tip_adapter(data: Data) -> Logits:
    """Tip-Adapter's main.py, run_tip_adapter."""
    return search_keys(data, data.f)


def tip_adapter_f(data: Data) -> Logits:
    """The same file's run_tip_adapter_F, with its last epoch."""
    keys = nn.Parameter(data.f.clone())
    adamw = torch.optim.AdamW([keys], lr=1e-3, eps=1e-4)
    steps = 20 * math.ceil(len(data.y) / 256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, steps)
    logits = key_logits(data, keys, data.configuration.first_alpha, 1.0)
    for _ in range(20):
        for part in shuffled(len(data.y), 256):
            step(adamw, F.cross_entropy(logits(data.x[part]), data.y[part]))
            schedule.step()
    return search_keys(data, keys.detach())


def ape(data: Data) -> Logits:
    """APE's main.py without its language model's sentences; beta, alpha, gamma on validation."""
    chosen = ape_channels(data)
    keys = F.normalize(data.f[:, chosen], dim=1)
    text = F.normalize(data.t[:, chosen], dim=1)
    probability = (keys @ text.T).softmax(dim=1)
    log_ratio = ((data.onehot + 1e-6) / (probability + 1e-6)).log2()
    divergence = (data.onehot * log_ratio).sum(dim=1, keepdim=True)

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        f = F.normalize(x, dim=1)
        return data.s * f @ data.t.T, F.normalize(f[:, chosen], dim=1) @ keys.T

    zero_shot, affinity = parts(data.val_x)
    most_beta, most_alpha, most_gamma = data.configuration.ape_most
    betas = values_up_to(most_beta, 50)  # 200 in the released code
    alphas = torch.tensor(values_up_to(most_alpha, 20))[:, None, None]
    best = (-1.0, 0.0, 0.0, 0.0)
    for beta, gamma in itertools.product(betas, values_up_to(most_gamma, 20, 0)):
        near = torch.exp(-beta * (1 - affinity)) @ (data.onehot * (gamma * divergence).exp())
        right = ((zero_shot + alphas * near).argmax(dim=-1) == data.val_y).float().mean(dim=1)
        if right.max().item() > best[0]:
            best = (right.max().item(), alphas[right.argmax()].item(), beta, gamma)
    _, alpha, beta, gamma = best

    def logits(x: Tensor) -> Tensor:
        zero_shot, affinity = parts(x)
        near = torch.exp(-beta * (1 - affinity)) @ (data.onehot * (gamma * divergence).exp())
        return zero_shot + alpha * near

    return logits


def ape_channels(data: Data) -> Tensor:
    """utils.py's cal_criterion, of texts and keys, summed class by class."""
    similar = torch.zeros(data.t.shape[1])
    pairs = 0
    samples = torch.cat([data.t, data.f])
    classes = torch.cat([torch.arange(len(data.t)), data.y])
    for k in range(len(data.t)):
        of_class = samples[classes == k]
        others = samples[classes != k]
        similar += of_class.sum(dim=0) * others.sum(dim=0)
        pairs += len(of_class) * len(others)
    of_similarity, of_variance = data.configuration.ape_w
    score = of_variance * data.t.var(dim=0) - of_similarity * similar / pairs
    return score.topk(round(data.configuration.ape_share * len(score))).indices


# ------------------------------------------------------- cross-modal adaptation

STEPS = 12_800


def cross_modal(data: Data) -> Logits:
    """train.py of cross-modal adaptation with a linear head: 12 cells, the best on validation."""
    cells = list(itertools.product((1e-3, 1e-4), (0.0, 0.01, 1e-4)))
    most = min(len(data.y), data.sentences[..., 0].numel())
    batches = [batch for batch in (8, 32) if batch // 2 < most]
    found = [best_cell(data, cells, batch, with_adapter=False) for batch in batches]
    return max(found, key=lambda one: one[0])[1]


def cross_modal_adapter(data: Data) -> Logits:
    """The same with CLIP-Adapter's network before the head, without the decays.

    At rates up to 1e-4 a decay of 1e-3 changes a weight by less than a thousandth.
    """
    cells = [(lr, 0.0) for lr in (1e-4, 1e-5, 1e-6, 1e-7)]
    return best_cell(data, cells, 8, with_adapter=True)[1]


class CrossModalCells(nn.Module):
    """Heads of several cells (rate, decay) side by side, on unit rows (n, dim)."""

    def __init__(self, data: Data, n_cell: int, *, with_adapter: bool):
        super().__init__()
        self.s = data.s
        self.heads = nn.ParameterList([data.t.clone() for _ in range(n_cell)])
        first = adapter_network(data.t.shape[1])
        self.down = nn.ParameterList()
        self.up = nn.ParameterList()
        for _ in range(n_cell if with_adapter else 0):
            self.down.append(first[0].weight.data.clone())
            self.up.append(first[2].weight.data.clone())

    def forward(self, f: Tensor) -> Tensor:
        """(n_cell, n, n_class)."""
        if len(self.down):
            hidden = F.relu(f @ torch.stack(list(self.down)).mT)
            adapted = F.relu(hidden @ torch.stack(list(self.up)).mT)
            f = 0.2 * adapted + 0.8 * f
        return self.s * (f @ torch.stack(list(self.heads)).mT)


def best_cell(
    data: Data, cells: Sequence[tuple[float, float]], batch: int, *, with_adapter: bool
) -> tuple[float, Logits]:
    """Validation accuracy and logits of the best cell at its best step, looked at every 100."""
    model = CrossModalCells(data, len(cells), with_adapter=with_adapter)
    groups = []
    for cell, (lr, decay) in enumerate(cells):
        own = [one[cell] for one in (model.heads, model.down, model.up) if len(one)]
        groups.append({"params": own, "lr": lr, "weight_decay": decay})
    adamw = torch.optim.AdamW(groups)
    batches = half_and_half(data, batch)
    val = F.normalize(data.val_x, dim=1)
    best = -1.0
    kept: tuple[int, dict] = (0, {})
    for i in range(STEPS):
        cosine = (1 + math.cos(math.pi * max(i - 50, 0) / STEPS)) / 2
        for group, (lr, _) in zip(adamw.param_groups, cells, strict=True):
            group["lr"] = lr * cosine if i >= 50 else lr * i / 50 if i else 1e-5
        f, y = next(batches)
        logits = model(f)
        losses = F.cross_entropy(logits.flatten(0, 1), y.repeat(len(cells)), reduction="none")
        step(adamw, losses.view(len(cells), -1).mean(dim=1).sum())
        if i % 100 == 0:
            with torch.no_grad():
                right = (model(val).argmax(dim=-1) == data.val_y).float().mean(dim=1)
            if right.max().item() > best:
                best = right.max().item()
                state = {name: value.clone() for name, value in model.state_dict().items()}
                kept = (int(right.argmax()), state)
    cell, state = kept
    model.load_state_dict(state)
    return best, lambda x: model(F.normalize(x, dim=1))[cell]


def half_and_half(data: Data, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless minibatches: half of them images, half sentences, each shuffled on its own."""
    n_template, n_class, _ = data.sentences.shape
    sentences = data.sentences.flatten(0, 1)
    labels = torch.arange(n_class).repeat(n_template)
    f = data.f
    images = endless(len(f), batch // 2)
    texts = endless(len(sentences), batch // 2)
    for of_images, of_texts in zip(images, texts, strict=True):
        x = torch.cat([f[of_images], sentences[of_texts]])
        yield x, torch.cat([data.y[of_images], labels[of_texts]])


def endless(n: int, batch: int) -> Iterator[Tensor]:
    while True:
        yield from shuffled(n, batch, drop_last=True)


# ------------------------------------------------------- measuring

REFERENCES: dict[str, tuple[str, Callable[[Data], Logits]]] = {
    "clip-adapter": ("clip-adapter", clip_adapter),
    "clip-adapter (AdamW)": ("clip-adapter", clip_adapter_adamw),
    "tip-adapter": ("tip-adapter", tip_adapter),
    "tip-adapter-f": ("tip-adapter-f", tip_adapter_f),
    "ape": ("ape", ape),
    "gda": ("gda", gda),
    "taskres": ("taskres", taskres),
    "zs-lp": ("zs-lp", zs_lp),
    "clap": ("clap", clap),
    "lp++": ("lp++", lp_plus_plus),
    "reg-linear": ("reg-linear", reg_linear),
    "linear-probe": ("linear-probe", linear_probe),
    "cross-modal": ("cross-modal", cross_modal),
    "cross-modal-adapter": ("cross-modal-adapter", cross_modal_adapter),
}


def ours(cache: FeatureCache, head: str, shots: int, seeds: Sequence[int]) -> list[float]:
    """Test accuracies of the head as `cliad train` has it, one to a seed."""
    specs = [spec_of(cache, make_head(head, {}), shots=shots, seed=seed) for seed in seeds]
    by_seed = {}
    for results in run(cache, specs, CPU):
        for result in results:
            by_seed[result.spec.seed] = result.row()["top1"]
    return [by_seed[seed] for seed in seeds]


def compare(cache: FeatureCache, name: str, shots: int, seeds: Sequence[int]) -> str:
    """A line: both accuracies in per cent, the paired difference and its standard error."""
    head, reference = REFERENCES[name]
    test = score_rows(cache, "test", CPU)
    drawn = make_episodes(cache, [DrawRequest(shots, seed) for seed in seeds], CPU)
    theirs = []
    started = time.perf_counter()
    for seed, one in zip(seeds, drawn, strict=True):
        torch.random.manual_seed(seed)
        logits = reference(Data.of(one.episode, shots, cache.dataset))
        with torch.no_grad():
            theirs.append(accuracy(logits(test.x), test.y))
    seconds = time.perf_counter() - started
    own = ours(cache, head, shots, seeds)
    gaps = [100 * (a - b) for a, b in zip(own, theirs, strict=True)]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
    return (
        f"{cache.dataset:12} {name:21} {shots:>2} shots: ours {100 * statistics.fmean(own):.2f}"
        f"  reference {100 * statistics.fmean(theirs):.2f}"
        f"  difference {statistics.fmean(gaps):+.2f} +- {error:.2f}  ({seconds:.0f} s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--heads", default=",".join(REFERENCES), help="all by default")
    parser.add_argument("--shots", default="1,4,16")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cache = open_cache(options.cache)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    for name in options.heads.split(","):
        for shots in options.shots.split(","):
            print(compare(cache, name, int(shots), seeds), flush=True)


if __name__ == "__main__":
    main()

"""Plain PyTorch beside which the heads are trained: torch.optim and autograd in double precision.

Nothing here comes from the code under test. What a run's own generator decides is drawn as
adapters/core/batches.py documents it: the first weights, then in each epoch one order of the items,
and with views a view for each item of a minibatch.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def cosine(steps, highest, warmup=0):
    """The rate of each step: rising linearly through `warmup` steps, then falling by a cosine."""
    rates = []
    for step in range(steps):
        if step < warmup:
            rates.append(highest * (step + 1) / (warmup + 1))
        else:
            done = (step - warmup) / (steps - warmup)
            rates.append(highest * (1 + math.cos(math.pi * done)) / 2)
    return rates


def dassl(epochs, per_epoch, highest):
    """The rate of each step in CoOp's trainer: an epoch at 1e-5, then a cosine by epochs."""
    rates = [1e-5] * per_epoch
    for epoch in range(epochs - 1):
        rates += [highest * (1 + math.cos(math.pi * epoch / epochs)) / 2] * per_epoch
    return rates


def train(optimiser, rates, batches, loss_of):
    """One step of the optimiser for each rate, on loss_of(batch)."""
    for rate, batch in zip(rates, batches, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        loss_of(batch).backward()
        optimiser.step()


def minibatches(n, per_epoch, steps, generator):
    """The positions of each step's items: all n in a new order each epoch, cut nearly evenly."""
    batches = []
    while len(batches) < steps:
        order = torch.randperm(n, generator=generator)
        batches += order.tensor_split(per_epoch)
    return batches[:steps]


def minibatches_of_views(n, n_view, per_epoch, steps, generator):
    """(positions, the view of each) of each step's items."""
    batches = []
    while len(batches) < steps:
        for items in torch.randperm(n, generator=generator).tensor_split(per_epoch):
            views = torch.randint(n_view, items.shape, generator=generator)
            batches.append((items, views))
    return batches[:steps]


def unit_support(episode):
    """The support's features, unit rows."""
    return F.normalize(episode.features[episode.index].double(), dim=1)


def class_text(text):
    """One unit row to a class: the mean of its unit sentences."""
    weights = []
    for sentences in text.double().unbind(dim=1):
        there = sentences[sentences.abs().sum(dim=1) > 0]
        mean = torch.stack([row / row.norm() for row in there]).mean(dim=0)
        weights.append(mean / mean.norm())
    return torch.stack(weights)


def raw_class_text(text):
    """One row to a class: the mean of its sentences, as long as they are."""
    weights = []
    for sentences in text.double().unbind(dim=1):
        there = sentences[sentences.abs().sum(dim=1) > 0]
        weights.append(there.mean(dim=0))
    return torch.stack(weights)


def text_items(text):
    """Every sentence that there is, a unit row, and its class."""
    rows, labels = [], []
    for template in text.double():
        for class_, row in enumerate(template):
            if row.abs().sum() > 0:
                rows.append(row / row.norm())
                labels.append(class_)
    return torch.stack(rows), torch.tensor(labels)


def linear(n_in, n_out, generator):
    """A layer without bias that starts as nn.Linear: uniform within 1 over the root of n_in."""
    layer = nn.Linear(n_in, n_out, bias=False, dtype=torch.float64)
    weight = (2 * torch.rand(n_in, n_out, generator=generator) - 1) / math.sqrt(n_in)
    with torch.no_grad():
        layer.weight.copy_(weight.T)
    return layer


class Bottleneck(nn.Module):
    """CLIP-Adapter's network: down, ReLU, up, and in the released code another ReLU."""

    def __init__(self, dim, hidden, generator, *, final_relu=True):
        super().__init__()
        self.down = linear(dim, hidden, generator)
        self.up = linear(hidden, dim, generator)
        self.final_relu = final_relu

    def forward(self, x):
        adapted = self.up(torch.relu(self.down(x)))
        if self.final_relu:
            return torch.relu(adapted)
        return adapted


def assert_moved_alike(actual, expected, start, share=1e-3):
    """The error is less than a share of how far training moved: standing still fails."""
    expected = expected.detach().double()
    movement = (expected - start.detach().double()).norm()
    error = (actual.double() - expected).norm()
    assert movement > 0
    assert error / movement < share, f"an error of {error / movement:.2g} of the movement"


def softmax(logits):
    """Probabilities (n, n_class) of a numpy array of logits."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def adapted_to_batch(logits, q, x, y):
    """Logits of a batch adapted to it, up to one number an image, by numpy in double precision.

    It loops over images and classes. The numbers are those of docs/transductive.md.
    """
    own = logits.double().numpy()
    batch = q.double().numpy()
    images = np.concatenate([x.double().numpy(), batch])
    n, dim = images.shape
    n_class = own.shape[1]
    now = own
    for _ in range(5):
        shares = np.concatenate([np.eye(n_class)[y.numpy()], softmax(now)])
        means = []
        scatter = np.zeros((dim, dim))
        for class_ in range(n_class):
            share = shares[:, class_]
            means.append(np.average(images, axis=0, weights=share))
            for off, weight in zip(images - means[class_], share, strict=True):
                scatter += weight * np.outer(off, off)
        covariance = scatter / (n - n_class)
        covariance += 3.0 * np.trace(covariance) / n * np.eye(dim)
        # The exponents of normal densities, of which the discriminants are what classes differ in.
        exponents = []
        for mean in means:
            off = batch - mean
            exponents.append(-(off @ np.linalg.inv(covariance) * off).sum(axis=1) / 2)
        now = own + 0.1 * np.stack(exponents, axis=1)
    return torch.from_numpy(now)

"""Toy worlds as tensors: episodes that share one feature matrix, for tests of the heads."""

from dataclasses import replace

import torch

from cliad.adapters.base import Episode

N_CLASS, DIM, PER_CLASS, N_VAL = 5, 16, 24, 4


class World:
    """`n_class` blobs around random directions with text near them; rows PER_CLASS per class, the last N_VAL of each for validation.

    n_view: augmented views of each row. Every draw comes from the world's own generator.
    """

    def __init__(self, *, n_class=N_CLASS, dim=DIM, noise=0.6, n_template=2, n_view=0, seed=0):
        g = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*shape, generator=g)
        self.n_class, dim_pre = n_class, dim + 8
        projection = normal(dim_pre, dim) / dim_pre**0.5
        centres = normal(n_class, dim_pre)
        self.labels = torch.arange(n_class * PER_CLASS) % n_class
        self.pre_projection = 10 * (centres[self.labels] + noise * normal(len(self.labels), dim_pre))
        self.features = self.pre_projection @ projection
        self.text = 3 * (centres @ projection + 0.4 * normal(n_template, n_class, dim))
        self.views = self.features + 2 * normal(n_view, len(self.labels), dim) if n_view else None
        test_pre = 10 * (centres[self.labels] + noise * normal(len(self.labels), dim_pre))
        self.test = test_pre @ projection, test_pre, self.labels

    def episode(self, shots=16, seed=1, **other):
        """The run of a seed: `shots` rows per class as support, N_VAL as validation."""
        order = torch.randperm(PER_CLASS - N_VAL, generator=torch.Generator().manual_seed(seed))[:shots]
        rows = lambda of_class: torch.cat([of_class * self.n_class + c for c in range(self.n_class)])
        index, val = rows(order), rows(torch.arange(PER_CLASS - N_VAL, PER_CLASS))
        made = Episode(self.features, index, self.labels[index], val, self.labels[val], self.text, 20.0, seed, self.n_class)
        return replace(made, **{"views": self.views, "pre_projection": self.pre_projection} | other)

    def scored_on(self, head):
        """Test rows as `Classifier.logits` takes them, and labels."""
        x, pre_projection, y = self.test
        return (torch.cat([x, pre_projection], dim=-1) if "pre_projection" in head.needs else x), y

"""Toy worlds as tensors: episodes that share one feature matrix, for tests of the heads."""

from dataclasses import replace

import torch

from cliad.adapters.core.episode import Episode

N_CLASS, DIM, PER_CLASS, N_VAL, N_TOKEN = 5, 16, 24, 4, 3


class World:
    """`n_class` blobs around random directions with text near them.

    There are PER_CLASS rows to a class, the last N_VAL of each for validation.
    noise: 0.6 is a world that every head solves; at 2.5 the classes overlap, so that gradients
    stay large.
    n_view: augmented views of each row. missing: (template, class) pairs that have no sentence.
    Every draw comes from the world's own generator.
    """

    def __init__(
        self,
        *,
        n_class=N_CLASS,
        dim=DIM,
        noise=0.6,
        n_template=2,
        n_view=0,
        missing=(),
        seed=0,
    ):
        g = torch.Generator().manual_seed(seed)
        self.n_class = n_class
        dim_pre = dim + 8
        n_row = n_class * PER_CLASS
        self.projection = torch.randn(dim_pre, dim, generator=g) / dim_pre**0.5
        centres = torch.randn(n_class, dim_pre, generator=g)
        self.labels = torch.arange(n_row) % n_class
        spread = noise * torch.randn(n_row, dim_pre, generator=g)
        self.pre_projection = 10 * (centres[self.labels] + spread)
        self.features = self.pre_projection @ self.projection
        text_noise = torch.randn(n_template, n_class, dim, generator=g)
        self.text = 3 * (centres @ self.projection + 0.4 * text_noise)
        for template, class_ in missing:
            self.text[template, class_] = 0
        self.views = None
        if n_view:
            self.views = self.features + 2 * torch.randn(n_view, n_row, dim, generator=g)
        test_spread = noise * torch.randn(n_row, dim_pre, generator=g)
        test_pre = 10 * (centres[self.labels] + test_spread)
        self.test = test_pre @ self.projection, test_pre, self.labels
        # A generator of their own: what tests know by number stays.
        g = torch.Generator().manual_seed(seed + 1)
        token_noise = torch.randn(2, N_TOKEN, n_row, dim, generator=g)
        near = 10 * centres[self.labels] @ self.projection
        spread = 15 * noise * token_noise
        self.tokens, self.test_tokens = (near + spread).movedim(1, 2).half()

    def episode(self, shots=16, seed=1, **other):
        """The run of a seed: `shots` rows per class as support, N_VAL as validation."""
        n_train = PER_CLASS - N_VAL
        order = torch.randperm(n_train, generator=torch.Generator().manual_seed(seed))[:shots]
        index = self._rows(order)
        val = self._rows(torch.arange(n_train, PER_CLASS))
        episode = Episode(
            features=self.features,
            index=index,
            y=self.labels[index],
            val_index=val,
            val_y=self.labels[val],
            text=self.text,
            logit_scale=20.0,
            seed=seed,
            n_class=self.n_class,
            views=self.views,
            pre_projection=self.pre_projection,
            tokens=self.tokens,
        )
        return replace(episode, **other)

    def _rows(self, nth):
        """The rows of each class that are its nth ones, class by class."""
        return torch.cat([nth * self.n_class + class_ for class_ in range(self.n_class)])

    def scored_on(self, head):
        """Test rows as `Classifier.logits` takes them, and labels."""
        x, pre_projection, y = self.test
        if "pre_projection" in head.needs:
            x = torch.cat([x, pre_projection], dim=-1)
        if "tokens" in head.needs:
            x = torch.cat([x, self.test_tokens.float().flatten(1)], dim=-1)
        return x, y


def without(episode, *positions):
    """The episode less the support items at these positions: its classes become uneven."""
    kept = torch.ones(len(episode.y), dtype=torch.bool)
    kept[list(positions)] = False
    return replace(episode, index=episode.index[kept], y=episode.y[kept])

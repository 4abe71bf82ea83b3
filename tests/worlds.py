"""Toy worlds as tensors: episodes that share one feature matrix, for tests of the heads."""

from dataclasses import replace

import torch

from cliad.adapters.core.episode import Episode

N_CLASS, DIM, PER_CLASS, N_VAL = 5, 16, 24, 4


class ToyTower:
    """A text tower of one causal layer with random weights, which computes every prompt whole.

    names: the classes; the last word of each has its row of vectors (n_class, dim), so that what
    the tower says of a class lies near its row. Other words are small and random. It lies where
    the vectors do.
    """

    width: int

    def __init__(self, names, vectors, length=32):
        dim = vectors.shape[-1]
        self.width, self.length, self.floats = dim, length, 17 * dim
        g = torch.Generator().manual_seed(5)
        self.vectors = vectors / vectors.norm(dim=-1, keepdim=True)
        self.places = {name.split()[-1]: place for place, name in enumerate(names)}
        self.vocabulary = 0.1 * self._random(97, dim, generator=g)
        self.queries = self._random(dim, dim, generator=g) / dim**0.5
        self.values = 0.2 * self._random(dim, dim, generator=g) / dim**0.5
        self.values += torch.eye(dim, device=vectors.device)
        self.positions = 0.05 * self._random(length, dim, generator=g)
        self.start = self.vocabulary[:1]
        self.end = self.vocabulary[1:2]

    def _random(self, *shape, generator):
        return torch.randn(shape, generator=generator, device="cpu").to(self.vectors)

    def _word(self, word):
        if word in self.places:
            return self.vectors[self.places[word]]
        return self.vocabulary[2 + sum(map(ord, word)) % 95]

    def words(self, lines):
        rows = [line.replace(".", " .").split() for line in lines]
        counts = [len(row) for row in rows]
        embeddings = self.vectors.new_zeros(len(rows), max(counts), self.width)
        for line, row in enumerate(rows):
            for place, word in enumerate(row):
                embeddings[line, place] = self._word(word)
        return embeddings, counts

    def __call__(self, prefix, suffix, last):
        n_run, (n_class, n_suffix) = max(len(prefix), len(suffix)), suffix.shape[1:3]
        before = prefix[:, None].expand(n_run, n_class, -1, -1)
        x = torch.cat([before, suffix.expand(n_run, -1, -1, -1)], dim=2)
        x = x + self.positions[: x.shape[2]]
        places = torch.arange(x.shape[2], device=x.device)
        scores = x @ self.queries @ x.mT
        scores = scores.masked_fill(places > places[:, None], -torch.inf)
        x = x + scores.softmax(dim=-1) @ x @ self.values
        end = (x.shape[2] - n_suffix + last.to(x.device))[None, :, None, None]
        ends = x.gather(2, end.expand(n_run, -1, 1, self.width))
        return torch.tanh(ends[:, :, 0]) @ self.values

    def __eq__(self, other):
        return all(torch.equal(a, b) for a, b in zip(self._state(), other._state(), strict=True))

    def __hash__(self):
        return id(self)

    def _state(self):
        return self.vectors, self.vocabulary, self.queries, self.values, self.positions


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
        # Of uneven length, as names are.
        self.names = tuple(f"class {i}" if i % 2 else f"{i}" for i in range(n_class))
        self.tower = ToyTower(self.names, (centres @ self.projection).float())
        self.views = None
        if n_view:
            self.views = self.features + 2 * torch.randn(n_view, n_row, dim, generator=g)
        test_spread = noise * torch.randn(n_row, dim_pre, generator=g)
        test_pre = 10 * (centres[self.labels] + test_spread)
        self.test = test_pre @ self.projection, test_pre, self.labels

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
            names=self.names,
            tower=self.tower,
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
        return x, y


def without(episode, *positions):
    """The episode less the support items at these positions: its classes become uneven."""
    kept = torch.ones(len(episode.y), dtype=torch.bool)
    kept[list(positions)] = False
    return replace(episode, index=episode.index[kept], y=episode.y[kept])

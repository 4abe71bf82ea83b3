"""Wide rows: what a head is given, and how many of them are in memory at once."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from worlds import World

from cliad.adapters.core.batches import Batches
from cliad.adapters.core.classifier import inputs, logits_of, validation
from cliad.adapters.core.episode import stack
from cliad.adapters.core.fit import fit
from cliad.adapters.core.head import Head, HeadError, Plan, hypers
from cliad.adapters.core.ops import cosine_logits
from cliad.adapters.core.rows import HeldColumn, WideRows
from cliad.adapters.core.texts import zero_shot_constants
from cliad.pipelines.experiments.episode import MappedColumn

WORLD = World(noise=2.5)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Patches(Head):
    """A toy: the feature and the mean of its patches, each dimension weighted."""

    lr: float = 0.05
    vary: ClassVar[frozenset[str]] = frozenset({"lr"})
    needs: ClassVar[frozenset[str]] = frozenset({"text", "raw", "pre_projection", "tokens"})
    scored: ClassVar[int] = 7

    def __post_init__(self):
        pass

    def plan(self, n, shots):
        return Plan.epochs(n, epochs=3, batch=4, keep="best")

    def bind(self, support, h):
        return zero_shot_constants(support)

    def start(self, c, h, generators):
        return {"weight": torch.ones(len(generators), 1, c["text"].shape[-1])}

    def logits(self, p, c, h, x):
        dim = c["text"].shape[-1]
        patches = x[..., dim + WORLD.pre_projection.shape[1] :].unflatten(-1, (-1, dim))
        return cosine_logits(
            (x[..., :dim] + patches.mean(dim=-2)) * p["weight"], c["text"], c["scale"]
        )


@dataclass
class Counting:
    """A column that notes how many rows each gathering takes."""

    values: torch.Tensor
    seen: list = field(default_factory=list)

    def __len__(self):
        return len(self.values)

    @property
    def width(self):
        return self.values[0].numel()

    def gather(self, rows):
        self.seen.append(len(rows))
        return self.values[rows].flatten(1)


def expected_rows(world):
    """All rows as plain numpy puts them side by side."""
    parts = [world.features, world.pre_projection, world.tokens]
    return np.concatenate([part.float().numpy().reshape(len(part), -1) for part in parts], axis=1)


def test_the_columns_stand_behind_the_feature_in_their_order():
    rows = inputs(Patches(), WORLD.episode(2))
    expected = expected_rows(WORLD)
    some = torch.tensor([[3, 1], [0, 3]])
    found = rows.gather(some)
    assert found.dtype == torch.float32 and rows.width == expected.shape[1]
    np.testing.assert_array_equal(found, expected[some])
    np.testing.assert_array_equal(torch.cat(list(rows.blocks(50))), expected)
    np.testing.assert_array_equal(rows.take(some[0]).gather(some[1] % 2), expected[[3, 1]])


def test_columns_keep_their_precision_until_they_are_gathered():
    rows = inputs(Patches(), WORLD.episode(2))
    assert rows.columns[1].values is WORLD.tokens
    assert rows.take(torch.tensor([1, 2])).columns[1].values.dtype == torch.float16
    double = WideRows(WORLD.features.double(), (HeldColumn(WORLD.tokens),))
    assert double.gather(torch.tensor([0])).dtype == torch.float64


def test_a_column_of_a_file_gathers_its_own_rows():
    array = np.arange(40, dtype=np.float16).reshape(5, 2, 4)
    column = MappedColumn(array, np.array([4, 0, 3]), CPU)
    np.testing.assert_array_equal(column.gather(torch.tensor([2, 0])), array[[3, 4]].reshape(2, 8))
    taken = column.take(torch.tensor([1]))
    assert len(taken) == 1 and taken.width == 8
    np.testing.assert_array_equal(taken.gather(torch.tensor([0])), array[[0]].reshape(1, 8))


def test_columns_of_another_number_of_rows_are_refused():
    with pytest.raises(ValueError, match="120 rows, got one of 3"):
        WideRows(WORLD.features, (HeldColumn(WORLD.tokens[:3]),))


@pytest.mark.parametrize(
    "needs, optional",
    [({"tokens"}, set()), ({"raw", "tokens", "views"}, set()), ({"raw", "tokens"}, {"views"})],
)
def test_a_head_on_columns_takes_raw_rows_and_no_views(needs, optional):
    with pytest.raises(ValueError, match="columns"):
        type("Wrong", (Head,), {"needs": frozenset(needs), "optional_inputs": frozenset(optional)})


def test_what_is_missing_is_named_with_the_option_that_makes_it():
    episode = replace(WORLD.episode(2), tokens=None)
    with pytest.raises(HeadError, match="patch tokens; extract with --tokens"):
        fit([(Patches(), episode)])


def test_a_support_is_gathered_on_first_use():
    tokens = Counting(WORLD.tokens)
    rows = WideRows(WORLD.features, (tokens,))
    support, _ = stack([WORLD.episode(4), WORLD.episode(2)], rows)
    assert support.width == rows.width and support.scale.item() == 20 and tokens.seen == []
    assert torch.equal(support.x, support.x) and tokens.seen == [2 * 20]
    assert support.x[1, 10:].abs().max() == 0
    index = WORLD.episode(2).index
    np.testing.assert_array_equal(support.x[1, :10, 16:], WORLD.tokens[index].flatten(1))


def test_training_gathers_minibatch_by_minibatch():
    tokens = Counting(WORLD.tokens)
    rows = WideRows(WORLD.features, (tokens,))
    episode = WORLD.episode(4)
    support, numbers = stack([episode], rows)
    plan = Plan.epochs(20, epochs=3, batch=4)
    batches = Batches(rows, support, numbers, plan, [torch.Generator().manual_seed(1)])
    shown = torch.cat([batches(step).x for step in range(5)], dim=1)[0]  # an epoch
    assert tokens.seen == [4] * 5
    expected = np.sort(WORLD.tokens[episode.index].float().flatten(1).numpy(), axis=0)
    np.testing.assert_array_equal(np.sort(shown[:, 16:].numpy(), axis=0), expected)


def test_scoring_gathers_block_by_block():
    (classifier,) = fit([(Patches(), WORLD.episode(4))])
    tokens = Counting(WORLD.tokens)
    rows = WideRows(WORLD.features, (HeldColumn(WORLD.pre_projection), tokens))
    logits = classifier.logits(rows)
    assert tokens.seen == [7] * 17 + [1]
    x = torch.from_numpy(expected_rows(WORLD))
    h = hypers([classifier.head], x)
    (whole,) = classifier.head.logits(classifier.p, classifier.c, h, x[None])
    torch.testing.assert_close(logits, whole, rtol=1e-5, atol=1e-5)


def test_runs_are_scored_alike_on_rows_on_tensors_and_on_their_own_validation():
    runs = [(Patches(), WORLD.episode(4, seed)) for seed in (1, 2)]
    classifiers = fit(runs, validate=True)
    x, y = validation(Patches(), runs[0][1])
    wide = logits_of(classifiers, x)
    as_tensor = logits_of(classifiers, x.gather(torch.arange(len(x))))
    assert torch.equal(wide, as_tensor) and wide.shape == (2, len(y), 5)
    episodes = [episode for _, episode in runs]
    as_support, _ = stack(
        [replace(episode, index=episode.val_index, y=episode.val_y) for episode in episodes],
        inputs(Patches(), episodes[0]),
    )
    assert torch.equal(logits_of(classifiers, as_support), wide)

"""The cache of keys by plain loops over runs, classes and items."""

from dataclasses import replace

import pytest
import torch
from worlds import World

from cliad.adapters.core.episode import Support, stack
from cliad.adapters.core.keys import keys_by_class, nearness, slots

LABELS = ([2, 0, 2, 1, 2, 0], [1, 1, 0, 3])  # of two runs; the second is padded


def uneven(views=None):
    """Support of two runs with uneven classes; class 3 is missing in one, class 2 in the other."""
    y, mask = torch.zeros(2, 6, dtype=torch.long), torch.zeros(2, 6)
    for run, labels in enumerate(LABELS):
        y[run, : len(labels)] = torch.tensor(labels)
        mask[run, : len(labels)] = 1
    x = 3 * torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)) * mask[..., None]
    rows = torch.tensor([[5, 3, 1, 0, 2, 4], [2, 4, 3, 1, 0, 0]])
    return Support(x, y, mask, None, 1.0, 4, rows, views, counts=[6, 4], largest_class=3)


def places(labels, n_class):
    """Positions of each class's items, in their order."""
    found = []
    for label in range(n_class):
        members = [item for item, own in enumerate(labels) if own == label]
        found.append(members)
    return found


def test_slots_hold_each_classs_items_in_their_order():
    support = uneven()
    positions, values = slots(support.y, support.mask, 4, n_slot=3)
    assert positions.shape == values.shape == (2, 4, 3) and values.dtype == torch.float32
    for run, labels in enumerate(LABELS):
        for label, items in enumerate(places(labels, 4)):
            assert values[run, label].tolist() == [1] * len(items) + [0] * (3 - len(items))
            assert positions[run, label, : len(items)].tolist() == items


def test_padding_takes_no_slot_though_it_has_a_label():
    y = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0]])
    mask = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 0]])  # padding has label 0 but is no item
    positions, values = slots(y, mask, 2, n_slot=1)
    assert values.tolist() == [[[1], [1]], [[0], [1]]]
    assert positions[0].tolist() == [[0], [1]] and positions[1, 1].tolist() == [0]


@pytest.mark.parametrize("n_view", [0, 3])
def test_keys_are_unit_rows_by_class_and_empty_slots_are_zeros(n_view):
    views = None
    if n_view:
        views = 4 * torch.randn(n_view, 6, 5, generator=torch.Generator().manual_seed(1))
    support = uneven(views)
    keys, values = keys_by_class(support)
    assert keys.shape == (2, 12, 5) and values.shape == (2, 4, 3)
    for run, labels in enumerate(LABELS):
        for label, items in enumerate(places(labels, 4)):
            for slot in range(3):
                key = keys[run, 3 * label + slot]
                if slot >= len(items):
                    assert not key.any() and values[run, label, slot] == 0
                    continue
                item = items[slot]
                source = support.x[run, item]
                if n_view:
                    source = views[:, support.rows[run, item]].mean(dim=0)
                torch.testing.assert_close(key, source / source.norm())
                assert values[run, label, slot] == 1


def test_keys_of_an_episodes_views_are_the_means_of_its_own_rows():
    world = World(n_view=4, noise=2.5)
    episodes = [world.episode(2, seed) for seed in (3, 4)]
    support, rows = stack(episodes, world.features)
    views = replace(support, rows=rows, all_views=world.views)
    keys, _ = keys_by_class(views)
    for run, episode in enumerate(episodes):
        for label in range(world.n_class):
            own = episode.index[episode.y == label]
            mean = world.views[:, own].mean(dim=0)
            expected = mean / mean.norm(dim=-1, keepdim=True)
            torch.testing.assert_close(keys[run, 2 * label : 2 * label + 2], expected)


@pytest.mark.parametrize("shared", [True, False])
def test_nearness_sums_over_a_classs_filled_slots(shared):
    keys, values = keys_by_class(uneven())
    x = torch.randn(1 if shared else 2, 3, 5, generator=torch.Generator().manual_seed(2))
    x = x / x.norm(dim=-1, keepdim=True)
    beta = torch.tensor([0.5, 4.0])
    ours = nearness(x, keys, values, beta)
    assert ours.shape == (2, 3, 4)
    for run in range(2):
        for row in range(3):
            query = x[0 if shared else run, row]
            for label in range(4):
                total = 0.0
                for slot in range(3):
                    cosine = query @ keys[run, 3 * label + slot]
                    near = torch.exp(-beta[run] * (1 - cosine))
                    total += (values[run, label, slot] * near).item()
                assert ours[run, row, label].item() == pytest.approx(total, rel=1e-5, abs=1e-7)


def test_rows_that_meet_the_keys_in_parts_are_near_alike(monkeypatch):
    support = uneven()
    keys, values = keys_by_class(support)
    x = support.x / support.x.norm(dim=-1, keepdim=True).clamp(min=1)
    beta = torch.tensor([0.5, 4.0])
    whole = nearness(x, keys, values, beta)
    monkeypatch.setattr("cliad.adapters.core.keys.AFFINITIES", 50)  # 2 runs x 12 keys: two rows
    with torch.no_grad():
        parts = nearness(x, keys, values, beta)
    torch.testing.assert_close(parts, whole)

"""The cache of keys that Tip-Adapter, its fine-tuned form and APE share.

Keys are support features by class; a query's nearness to them votes for the classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cliad.adapters.core.episode import Support
from cliad.adapters.core.head import Candidates, Hypers
from cliad.adapters.core.ops import unit

# What is searched on validation: alpha, the weight of the keys beside zero-shot, and beta.
KEY_ALPHAS = (0.1, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0)
KEY_BETAS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.5, 7.0, 9.0, 12.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0)

AFFINITIES = 2**22  # cosines with keys that are held at once where no gradient is taken


def keys_by_class(support: Support) -> tuple[Tensor, Tensor]:
    """Unit keys (n_run, n_class * n_slot, dim) and their values (n_run, n_class, n_slot).

    Each class has n_slot slots; a value is 1, or 0 in an empty slot. An item's key is the unit mean
    of its raw views where there are views (Tip-Adapter, Section 4.1), else the plain feature.
    """
    mean = support.per_view(lambda views: views.mean(dim=0))
    keys = unit(support.x if mean is None else mean)  # (n_run, n, dim)
    positions, values = slots(support.y, support.mask, support.n_class, support.largest_class)
    index = positions.flatten(1)[..., None].expand(-1, -1, keys.shape[-1])
    # an empty slot points to item 0: times its value, it is a row of zeros
    return keys.gather(1, index) * values.flatten(1)[..., None], values


def slots(y: Tensor, mask: Tensor, n_class: int, n_slot: int) -> tuple[Tensor, Tensor]:
    """The items of each class in `n_slot` slots, as many as the largest class of any run has items.

    From labels y (n_run, n) and mask (n_run, n): positions (n_run, n_class, n_slot) in y, and
    values (n_run, n_class, n_slot): 1.0, or 0.0 in an empty slot.
    """
    # 1. Padding becomes a class of its own behind the others, which step 5 leaves out.
    y = torch.where(mask > 0, y, n_class)
    # 2. Sort each run's items by class; stable, so that a class's items keep their order.
    order = y.argsort(dim=1, stable=True)  # (n_run, n) positions in y
    sorted_y = y.gather(1, order)  # (n_run, n)
    # 3. Where each class begins in that order: the number of items in the classes before it.
    count = y.new_zeros(len(y), n_class + 1)
    count = count.scatter_add_(1, y, torch.ones_like(y))
    begin = count.cumsum(dim=1) - count  # (n_run, n_class + 1)
    # 4. An item's slot: its place in that order, counted from where its class begins.
    place = torch.arange(y.shape[1], device=y.device)
    slot = place - begin.gather(1, sorted_y)  # (n_run, n)
    # 5. Write each item to (run, class, slot), both last axes as one; padding to a place behind
    #    them, which is cut off: to pick the items that are none would wait for the device.
    target = torch.where(sorted_y < n_class, sorted_y * n_slot + slot, n_class * n_slot)
    positions = y.new_zeros(len(y), n_class * n_slot + 1).scatter_(1, target, order)
    values = mask.new_zeros(positions.shape).scatter_(1, target, 1.0)
    shape = (n_class, n_slot)
    return positions[:, :-1].unflatten(1, shape), values[:, :-1].unflatten(1, shape)


def nearness(x: Tensor, keys: Tensor, values: Tensor, beta: Tensor) -> Tensor:
    """sum over a class's slots of values * exp(-beta (1 - x . key)): (n_run, n, n_class).

    x (n_run or 1, n, dim), keys (n_run or 1, n_class * n_slot, dim),
    values (n_run or 1, n_class, n_slot), beta (n_run,) (Tip-Adapter, Section 3.1).
    """
    if torch.is_grad_enabled():
        return _votes(x @ keys.mT, values, beta)
    # A row meets every key: many rows at once would take gigabytes where there are many classes.
    at_once = max(1, AFFINITIES // (len(beta) * keys.shape[1]))
    parts = [_votes(part @ keys.mT, values, beta) for part in x.split(at_once, dim=1)]
    return torch.cat(parts, dim=1)


def _votes(affinity: Tensor, values: Tensor, beta: Tensor) -> Tensor:
    """`nearness` from the cosines x . key, (n_run or 1, n, n_class * n_slot)."""
    return _sum_of_slots(((affinity - 1) * beta[:, None, None]).exp(), values)


def _sum_of_slots(near: Tensor, values: Tensor) -> Tensor:
    """near (n_run, n, n_class * n_slot) times its values, summed: (n_run, n, n_class)."""
    by_class = near.unflatten(-1, values.shape[-2:])  # (n_run, n, n_class, n_slot)
    return (by_class * values[:, None]).sum(dim=-1)


@dataclass(frozen=True, eq=False)
class Votes:
    """What a cache of keys needs to know of items, for any alpha, beta and values.

    zero_shot (1, n, n_class): logits. affinity (1, n, n_class * n_slot): cosines with the keys.
    """

    zero_shot: Tensor
    affinity: Tensor

    def candidates(
        self, h: Hypers, values_at: Callable[[float], Tensor], field: str = ""
    ) -> Iterator[Candidates]:
        """The logits of all runs of h, those with one beta and one value of `field` at once.

        They differ in alpha alone, which costs a multiplication: the votes are counted once.
        values_at gives the values (1, n_class, n_slot) for a value of `field`, 0 without one.
        """
        alpha = h["alpha"][:, None, None]
        field_of_run = h.host.get(field, [0.0] * len(alpha))
        runs_of: dict[float, dict[float, list[int]]] = defaultdict(lambda: defaultdict(list))
        for run, beta in enumerate(h.host["beta"]):
            runs_of[beta][field_of_run[run]].append(run)
        for beta, by_field in runs_of.items():
            near = (self.affinity - 1).mul_(beta).exp_()
            for value, members in by_field.items():
                runs = torch.tensor(members, device=near.device)
                votes = _sum_of_slots(near, values_at(value))
                yield Candidates(runs, self.zero_shot + alpha[runs] * votes)

"""The cache of keys that Tip-Adapter, its fine-tuned form and APE share: support features by class, and how near a query is to them."""

from __future__ import annotations

import torch
from torch import Tensor

from cliad.adapters.core.episode import Support
from cliad.adapters.core.ops import unit

KEY_ALPHAS = (0.1, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0)
KEY_BETAS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.5, 7.0, 9.0, 12.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0)


def keys_by_class(support: Support) -> tuple[Tensor, Tensor]:
    """Unit keys (n_run, n_class * n_slot, dim), n_slot to a class, and their values (n_run, n_class, n_slot): 1, or 0 in an empty slot.

    An item's key is the unit mean of its raw views where there are views (Tip-Adapter, Section 4.1), else the plain feature.
    """
    mean = support.per_view(lambda views: views.mean(dim=0))
    at, values = slots(support.y, support.mask, support.n_class)
    keys = unit(support.x if mean is None else mean)
    index = at.flatten(1)[..., None].expand(-1, -1, keys.shape[-1])
    return keys.gather(1, index) * values.flatten(1)[..., None], values


def slots(y: Tensor, mask: Tensor, n_class: int) -> tuple[Tensor, Tensor]:
    """Where each class's items are: positions (n_run, n_class, n_slot) in y (n_run, n), and 1.0, or 0.0 in an empty slot."""
    y = torch.where(mask > 0, y, n_class)  # padding is a class of its own, dropped below
    order = y.argsort(dim=1, stable=True)
    sorted_y = y.gather(1, order)
    count = torch.zeros_like(y[:, :1]).repeat(1, n_class + 1).scatter_add_(1, y, torch.ones_like(y))
    nth = torch.arange(y.shape[1], device=y.device) - (count.cumsum(dim=1) - count).gather(
        1, sorted_y
    )
    n_slot = int(count[:, :n_class].max())
    run, item = (sorted_y < n_class).nonzero(as_tuple=True)
    at, value = (
        torch.zeros(len(y), n_class, n_slot, dtype=kind, device=y.device)
        for kind in (torch.long, mask.dtype)
    )
    at[run, sorted_y[run, item], nth[run, item]] = order[run, item]
    value[run, sorted_y[run, item], nth[run, item]] = 1
    return at, value


def distinct(shared: Tensor, *hyper: Tensor) -> tuple[Tensor, Tensor | slice]:
    """Distinct rows (k, n_hyper) of hyper-parameters (n_run,), and which of them each run has.

    Where one fitted run is asked under many hyper-parameters (`shared` has one run), equal ones are computed once.
    """
    rows = torch.stack(hyper, dim=1)
    return rows.unique(dim=0, return_inverse=True) if len(shared) == 1 else (rows, slice(None))


def nearness(x: Tensor, keys: Tensor, values: Tensor, beta: Tensor) -> Tensor:
    """sum over a class's slots of values * exp(-beta (1 - x . key)): (n_run, n, n_class).

    x (n_run or 1, n, dim), keys (n_run or 1, n_class * n_slot, dim), values (n_run or 1, n_class, n_slot), beta (n_run,).
    """
    affinity = x @ keys.mT
    near = ((affinity - 1) * beta[:, None, None]).exp()
    return (near.unflatten(-1, values.shape[-2:]) * values[:, None]).sum(dim=-1)

"""Write heads.json, from which `cliad heads` lists the heads: python -m cliad.pipelines.heads_table

Nothing else imports this module, as it needs the heads themselves, and so torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

import torch

from cliad.adapters import HEADS
from cliad.adapters.core.episode import Support
from cliad.adapters.core.head import Head, default_of, hypers
from cliad.pipelines.heads import TABLE

# A world whose sizes tell which size an axis has: none of them, nor of their shares, is another.
SIZES = {"n_class": 7, "dim": 64, "dim_pre": 36, "dim/2": 32, "dim/4": 16, "dim/8": 8, "dim/16": 4}


def rows() -> dict[str, dict[str, Any]]:
    """The rows of the table by the names of the heads, as JSON has them."""
    return json.loads(json.dumps({name: _row(head) for name, head in HEADS.items()}))


def text() -> str:
    """The table as it stands in the file."""
    return json.dumps(rows(), indent=1, ensure_ascii=False) + "\n"


def _row(head: type[Head]) -> dict[str, Any]:
    first_line = (head.__doc__ or "").splitlines()[0]
    return {
        "what": first_line,
        "needs": sorted(head.needs),
        "select": head.select,
        "hyper": [_field(spec, head) for spec in fields(head)],
        "parameters": _axes_of_parameters(head()),
    }


def _field(spec: Field, head: type[Head]) -> dict[str, object]:
    return {
        "name": spec.name,
        "default": default_of(spec),
        "meaning": spec.metadata["meaning"],
        "range": _range_text(spec.metadata),
        "searched": head.space.get(spec.name),
    }


def _range_text(rule: Mapping) -> str:
    """The values that a field takes, as ` (0 to 1)`."""
    low = rule["low"]
    high = rule["high"]
    if low is not None and high is not None:
        return f" ({low:g} to {high:g})"
    if low is not None:
        return f" (at least {low:g})"
    if rule["choices"]:
        return f" ({', '.join(map(str, rule['choices']))})"
    return ""


def _axes_of_parameters(head: Head) -> dict[str, list[str | int]]:
    """What each axis of a parameter is, but for the runs': a name of SIZES, or a number.

    A head that learns prompts has none: the width of words is that of a text tower.
    """
    if "tower" in head.needs:
        return {}
    name_of_size = {size: name for name, size in SIZES.items()}
    axes = {}
    for name, shape in shapes(head, SIZES["n_class"], SIZES["dim"], SIZES["dim_pre"]).items():
        axes[name] = [name_of_size.get(size, size) for size in shape]
    return axes


def shapes(head: Head, n_class: int, dim: int, dim_pre: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters, without the axis of the runs, for one image of each class.

    They are read off what `start` gives for a world of random numbers.
    """
    generator = torch.Generator().manual_seed(0)
    # A head on features before the projection gets them side by side with the features.
    width = dim + dim_pre if "pre_projection" in head.needs else dim
    x = torch.randn(1, n_class, width, generator=generator)  # (n_run, n, width)
    text = torch.randn(1, n_class, dim, generator=generator)  # one template
    support = Support(
        x=x / x.norm(dim=-1, keepdim=True),
        y=torch.arange(n_class)[None],
        mask=torch.ones(1, n_class),
        text=text / text.norm(dim=-1, keepdim=True),
        logit_scale=100.0,
        n_class=n_class,
        counts=[n_class],
        largest_class=1,
    )
    h = hypers([head], x)
    parameters = head.start(head.bind(support, h), h, [generator])
    return {name: tuple(value.shape[1:]) for name, value in parameters.items()}


if __name__ == "__main__":
    TABLE.write_text(text(), encoding="utf-8")

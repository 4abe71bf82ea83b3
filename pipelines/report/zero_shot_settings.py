"""Which settings of a head are zero-shot under another name, such as alpha 0.

That is not read from names: the head is asked, on a small world of random numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields

import torch

from cliad.adapters import HEADS
from cliad.adapters.core.episode import Support
from cliad.adapters.core.head import Head, hypers
from cliad.adapters.zero_shot import ZeroShot

# Of the small world; two images of each class.
N_CLASS = 3
N = 2 * N_CLASS
DIM = 8
TOLERANCE = 1e-9  # of logits in float64


def equals_zero_shot(head: str, setting: Mapping[str, object]) -> bool:
    """Whether a head of this setting gives zero-shot's answers, whatever it is trained on.

    Args:
        head: its name; zero-shot itself, and heads that are not known here, do not count.
        setting: its hyper-parameters, as far as they are known; others have their defaults.
    """
    if head not in HEADS or head == "zero-shot":
        return False
    known = {spec.name for spec in fields(HEADS[head])}
    values = [(name, value) for name, value in setting.items() if name in known]
    try:
        return _gives_zero_shot(head, tuple(sorted(values)))
    # Rows of other tools, and of other versions, may have values that this head does not take.
    except (TypeError, ValueError, RuntimeError):
        return False


@functools.cache
def _gives_zero_shot(name: str, values: tuple[tuple[str, object], ...]) -> bool:
    kind = HEADS[name]
    # Without texts there is no zero-shot; the others are of no small world.
    if "text" not in kind.needs | kind.optional_inputs or kind.columns():
        return False
    settings = dict(values)
    # What it answers does not depend on its width, its memory does.
    if "hidden" in settings:
        settings["hidden"] = "2"
    head = kind(**settings)
    if not _has_an_end(head):
        return False
    support = _world()
    expected = _centred(ZeroShot(), support, trained=False)
    # With a learning rate of 0, the parameters stay what they were at the start.
    trained = getattr(head, "lr", None) != 0
    found = _centred(head, support, trained=trained)
    return bool((found - expected).abs().max() <= TOLERANCE)


def _has_an_end(head: Head) -> bool:
    """Whether a hyper-parameter is at an end of its range: elsewhere no head is zero-shot."""
    for spec in fields(head):
        value = getattr(head, spec.name)
        # Spelled out, as None, which is no number, stands for a missing end.
        if isinstance(value, float | int) and value in (
            spec.metadata["low"],
            spec.metadata["high"],
        ):
            return True
    return False


def _world() -> Support:
    """Random features and texts; always the same."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, N, DIM, generator=generator, dtype=torch.float64)
    return Support(
        items=x / x.norm(dim=-1, keepdim=True),
        y=torch.arange(N_CLASS).repeat(2)[None],
        mask=torch.ones(1, N, dtype=torch.float64),
        text=torch.randn(1, N_CLASS, DIM, generator=generator, dtype=torch.float64),
        logit_scale=10.0,
        n_class=N_CLASS,
        counts=[N],
        largest_class=2,
    )


def _centred(head: Head, support: Support, *, trained: bool) -> torch.Tensor:
    """Logits (1, N, N_CLASS) on the world's own images, less their mean over classes.

    trained: whether the parameters have moved away from their start, in any direction.
    """
    h = hypers([head], support.x)
    constants = head.bind(support, h)
    generator = torch.Generator().manual_seed(2)
    parameters = head.start(constants, h, [generator])
    if trained:
        parameters = {
            name: value + torch.randn(value.shape, generator=generator, dtype=value.dtype)
            for name, value in parameters.items()
        }
    parameters = head.finish(parameters, constants, h)
    logits = head.logits(parameters, constants, h, support.x)
    return logits - logits.mean(dim=-1, keepdim=True)

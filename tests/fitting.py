"""Fitted heads on the toy world, for the tests of the heads."""

import torch
from worlds import World

from cliad.adapters import HEADS
from cliad.adapters.core.classifier import support_of
from cliad.adapters.core.head import hypers
from cliad.adapters.core.select import fit_all, fit_selected

WORLD = World()


def fitted(head, episode, select="fixed"):
    """The classifier of one run."""
    fit_runs = fit_selected if select == "val" else fit_all
    return fit_runs([(head, episode)])[0]


def zero_shot(world=WORLD):
    """The zero-shot head's logits on a world's test rows; below they are held to the paper."""
    return fitted(HEADS["zero-shot"](), world.episode()).logits(world.test[0])


def at_start(head, episode, x):
    """A head's logits before its first step."""
    support, _ = support_of(head, [episode])
    h = hypers([head], episode.features)
    c = head.bind(support, h)
    return head.logits(head.start(c, h, [torch.Generator().manual_seed(0)]), c, h, x[None])[0]

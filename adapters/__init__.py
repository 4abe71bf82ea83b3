"""Stage two: tensors in, logits out. One method, one file; this table is all that knows them."""

from cliad.adapters.ape import Ape
from cliad.adapters.base import Head
from cliad.adapters.clip_adapter import ClipAdapter
from cliad.adapters.gda import Gda
from cliad.adapters.linear_probe import LinearProbe
from cliad.adapters.tip_adapter import TipAdapter
from cliad.adapters.tip_adapter_f import TipAdapterF
from cliad.adapters.zero_shot import ZeroShot

HEADS: dict[str, type[Head]] = {
    "zero-shot": ZeroShot,
    "linear-probe": LinearProbe,
    "clip-adapter": ClipAdapter,
    "tip-adapter": TipAdapter,
    "tip-adapter-f": TipAdapterF,
    "gda": Gda,
    "ape": Ape,
}

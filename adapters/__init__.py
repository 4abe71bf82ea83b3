"""Stage two: heads, which are tensors in and logits out. One method, one file.

This table is the only place that lists them: commands, classifiers and tests read it.
"""

from cliad.adapters.ape import Ape
from cliad.adapters.auto import Auto
from cliad.adapters.clap import Clap
from cliad.adapters.clip_adapter import ClipAdapter
from cliad.adapters.cocoop import CoCoOp
from cliad.adapters.coop import CoOp
from cliad.adapters.core.head import Head
from cliad.adapters.cpl import Cpl
from cliad.adapters.cross_modal import CrossModal
from cliad.adapters.cross_modal_adapter import CrossModalAdapter
from cliad.adapters.gda import Gda
from cliad.adapters.linear_probe import LinearProbe
from cliad.adapters.lp_plus_plus import LpPlusPlus
from cliad.adapters.meta_adapter import MetaAdapter
from cliad.adapters.offset_lr import OffsetLr
from cliad.adapters.prolip import ProLip
from cliad.adapters.prototype import Prototype
from cliad.adapters.reg_linear import RegLinear
from cliad.adapters.taskres import TaskRes
from cliad.adapters.text_ridge import TextRidge
from cliad.adapters.tip_adapter import TipAdapter
from cliad.adapters.tip_adapter_f import TipAdapterF
from cliad.adapters.vt_clip import VtClip
from cliad.adapters.whitened_lr import WhitenedLr
from cliad.adapters.zero_shot import ZeroShot
from cliad.adapters.zs_lp import ZsLp

HEADS: dict[str, type[Head]] = {
    "zero-shot": ZeroShot,
    "linear-probe": LinearProbe,
    "clip-adapter": ClipAdapter,
    "tip-adapter": TipAdapter,
    "tip-adapter-f": TipAdapterF,
    "gda": Gda,
    "ape": Ape,
    "taskres": TaskRes,
    "zs-lp": ZsLp,
    "clap": Clap,
    "lp++": LpPlusPlus,
    "cross-modal": CrossModal,
    "cross-modal-adapter": CrossModalAdapter,
    "reg-linear": RegLinear,
    "prolip": ProLip,
    "whitened-lr": WhitenedLr,
    "text-ridge": TextRidge,
    "offset-lr": OffsetLr,
    "vt-clip": VtClip,
    "coop": CoOp,
    "cocoop": CoCoOp,
    "cpl": Cpl,
    "prototype": Prototype,
    "meta-adapter": MetaAdapter,
    "auto": Auto,
}


def name_of(head: Head) -> str:
    """The name of a head in the table `HEADS`."""
    for name, kind in HEADS.items():
        if type(head) is kind:
            return name
    raise ValueError(f"expected a head of the table HEADS, got {type(head).__name__}")

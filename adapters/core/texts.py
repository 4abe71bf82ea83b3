"""Class texts in a head: as zero-shot's class weights, and as training items beside the images."""

from __future__ import annotations

from torch import Tensor

from cliad.adapters.core.episode import Support, Tensors
from cliad.adapters.core.head import Plan
from cliad.adapters.core.ops import class_weights, text_shots


def zero_shot_constants(support: Support) -> Tensors:
    """The constants of zero-shot logits, `cosine_logits(x, c["text"], c["scale"])`.

    "text" (1, n_class, dim): unit class weights, which all runs share; "scale" (1, 1, 1).

    Raises:
        ValueError: the support has no class texts.
    """
    return {"text": class_weights(support.need_text())[None], "scale": support.scale}


def zero_shot_weights(support: Support) -> Tensors:
    """Zero-shot as weights of unit rows, for training only: "_zero_shot" (1, n_class, dim).

    Zeros where there are no class texts: zero-shot then says nothing.
    """
    if support.text is None:
        return {"_zero_shot": support.mask.new_zeros(1, support.n_class, support.width)}
    return {"_zero_shot": support.scale * class_weights(support.text)}


# What both heads of cross-modal adaptation (Lin et al., CVPR 2023) do alike.


def cross_modal_plan(n: int, *, steps: int, batch: int) -> Plan:
    """The plan for n images: AdamW with a cosine, and the step that is best on validation.

    The warm-up of 50 steps is the released code's; it looks at validation every 100 of its 12,800
    steps, which is too seldom for the 600 here.
    """
    return Plan.counted(n, steps=steps, batch=batch, warmup=50, keep="best", look=25)


def cross_modal_constants(support: Support) -> Tensors:
    """Zero-shot's constants, and the sentences of all templates as items, see `text_shots`.

    Raises:
        ValueError: the support has no class texts.
    """
    return zero_shot_constants(support) | text_shots(support.need_text())


def wise_average(w: Tensor, text: Tensor, share: Tensor) -> Tensor:
    """(1 - share) w + share text of weights w (n_run, n_class, dim), share (n_run,) to a run.

    The average of fine-tuned and zero-shot weights is WiSE-FT (Wortsman et al., CVPR 2022).
    """
    return w.lerp(text, share[:, None, None])

"""The encoder of a saved run: found by the name in run.json, checked by its hashes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cliad.cache.encoders.base import Encoder, choose_device
from cliad.cache.encoders.names import FROM_FILE, MODEL_NAME, TAG
from cliad.errors import CliadError

if TYPE_CHECKING:
    from cliad.cache.encoders.clip import Clip

# What decides an encoder's numbers, in the order in which a difference is reported.
CHECKED_PARTS = ("weights", "activation", "preprocess")


class PredictError(CliadError):
    """A run and an encoder, or a run and features, that do not go together."""


def recipe_of(about: Mapping) -> Mapping | None:
    """The encoder's recipe in run.json; None for imported features, which have none."""
    recipe = about["image_recipe"].get("encoder")
    if isinstance(recipe, dict) and "weights" in recipe:
        return recipe
    return None


def preprocess_of(recipe: object) -> Mapping | None:
    """The preprocessing in an encoder's recipe; None where it says none."""
    preprocess = recipe.get("preprocess") if isinstance(recipe, dict) else None
    return preprocess if isinstance(preprocess, dict) else None


def load_encoder(
    about: Mapping,
    folder: Path,
    *,
    model: str | None = None,
    pretrained: str | None = None,
    device: str = "auto",
    log: Callable[[str], None] = lambda line: None,
) -> Clip:
    """The encoder that made a run's features, or the one given, checked by its hashes.

    Args:
        about: what run.json says.
        folder: of the run, for messages.
        model, pretrained: the encoder, where it is not the one that run.json names.
        device: auto, cpu, cuda, cuda:1, mps.
        log: is given a line where weights must be fetched.

    Raises:
        PredictError: the weights, activation or preprocessing differ; or the run does not say
            what its encoder was.
        EncoderError: the encoder cannot be had here.
    """
    from cliad.cache.encoders import clip, weights

    recipe = recipe_of(about)
    if model:
        name = model
        tag = pretrained
    elif recipe is None:
        raise PredictError(
            f"the features of {folder} were imported; they name their encoder"
            f" '{about['encoder']}' but hold no hash to check it:"
            " give the one that made them with --model NAME --pretrained TAG"
        )
    else:
        name, tag = _named_in(recipe, pretrained)
    # The device is checked first: a wrong name shall not cost a download.
    torch_device = choose_device(device)
    name, tag = weights.full_name(name, tag)
    missing = weights.to_fetch(name, tag)
    if missing:
        log(f"fetching the weights of {weights.shown_name(name, tag)} from {missing.where}")
    encoder = clip.load(
        name,
        tag,
        half=about["dtype"] == "float16",
        device=torch_device,
        squeeze=_squeezes(recipe),
        quick_gelu=_quick_gelu(recipe, name, tag),
    )
    check_encoder(encoder, about)
    return encoder


def _quick_gelu(recipe: Mapping | None, model: str, tag: str) -> bool | None:
    """The activation of a weights file as the run says it; published weights know their own."""
    from cliad.cache.encoders import weights

    if recipe is None or weights.has_own_activation(model, tag):
        return None
    return recipe.get("activation") == "QuickGELU"


def _squeezes(recipe: Mapping | None) -> bool:
    """Whether images are resized to a square without keeping their proportions."""
    preprocess = preprocess_of(recipe)
    return preprocess is not None and preprocess.get("resize_mode") == "squash"


def _named_in(recipe: Mapping, pretrained: str | None) -> tuple[str, str | None]:
    """Model and weights as run.json names them, or those weights that the user gave.

    A run folder may come from anywhere: it never names a file to load.
    """
    model = recipe.get("model")
    tag = recipe.get("pretrained")
    if not isinstance(model, str) or not isinstance(tag, str) or not MODEL_NAME.fullmatch(model):
        raise PredictError(
            f"run.json names no encoder that can be loaded by name ({model!r:.60});"
            " give --model NAME and --pretrained TAG|FILE"
        )
    if pretrained:
        return model, pretrained
    if tag == FROM_FILE:
        raise PredictError(
            f"the weights of this run's encoder {model} were a file; give it with --pretrained FILE"
        )
    if not TAG.fullmatch(tag):
        raise PredictError(
            f"run.json names weights {tag!r:.60}, which is not a tag; give --pretrained TAG|FILE"
        )
    return model, tag or None


def check_encoder(encoder: Encoder, about: Mapping) -> None:
    """Check that an encoder is the one that made a run's features, as far as run.json can tell.

    Raises:
        PredictError: it is not.
    """
    if encoder.dim != about["dim"]:
        raise PredictError(
            f"{encoder.name} gives {encoder.dim} features, this run takes {about['dim']};"
            f" it was made with {about['encoder']}"
        )
    for part in about["parts"]:
        if part not in encoder.parts:
            raise PredictError(f"{encoder.name} gives no {part}, which this run takes")
    recipe = recipe_of(about)
    if recipe is None:
        return  # imported features: there is no more to compare
    for part in CHECKED_PARTS:
        here = encoder.image_recipe.get(part)
        there = recipe.get(part)
        if here != there:
            raise PredictError(
                f"{encoder.name} is not the encoder of this run:"
                f" its {part} here {_short(here)}, there {_short(there)};"
                " give the right encoder with --model NAME --pretrained TAG|FILE"
            )
    if encoder.encoder_id != about["encoder_id"]:
        raise PredictError(
            f"{encoder.name} is encoder {encoder.encoder_id},"
            f" this run was trained with {about['encoder_id']}"
        )


def _short(value: object) -> str:
    """A hash by its first 16 digits; anything else in full."""
    return value[:16] if isinstance(value, str) else str(value)

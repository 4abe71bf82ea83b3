"""CLIP networks built from their weights, with the activation that these were trained with.

OpenAI trained with QuickGELU, x * sigmoid(1.702 x), others with GELU. A network runs with either,
and is silently worse with the wrong one. So a file that does not say which one is refused.
"""

from __future__ import annotations

import os
import textwrap
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import open_clip
from torch import nn

from cliad.cache.encoders.base import EncoderError
from cliad.cache.encoders.weights import quiet, shown_name, to_fetch, wants_quick_gelu
from cliad.cache.files import sha256_of

TINY = Path(__file__).parent / "tiny"


@dataclass(frozen=True)
class Network:
    """A model of open_clip with its weights, what the ids say of its origin, and its name."""

    model: nn.Module
    recipe: dict[str, str]
    name: str


def build_network(model: str, pretrained: str, quick_gelu: bool | None) -> Network:
    """The network of a model and its weights, named as `weights.full_name` gives them.

    Args:
        model: the architecture, or a model that brings its own weights.
        pretrained: a tag, a weights file, or "".
        quick_gelu: the activation of a weights file, where it is known.

    Raises:
        EncoderError: no weights, those of another model, or an unknown activation.
    """
    if model == "tiny":
        network = _create("tiny", str(TINY / "weights.safetensors"))
        return Network(network, {"model": "tiny", "pretrained": ""}, "tiny")
    if ":" in model:
        return Network(_create(model, None), {"model": model, "pretrained": ""}, model)
    if os.path.isfile(pretrained):
        file = Path(pretrained)
        network = _from_file(model, file, quick_gelu)
        # The recipe leaves out the file's name: the same weights elsewhere are the same encoder.
        return Network(network, {"model": model, "pretrained": "file"}, f"{model}/{file.stem}")
    published = open_clip.get_pretrained_cfg(model, pretrained)
    network = _create(model, pretrained, force_quick_gelu=wants_quick_gelu(published))
    recipe = {"model": model, "pretrained": pretrained}
    return Network(network, recipe, shown_name(model, pretrained))


def _create(model: str, pretrained: str | None, *, force_quick_gelu: bool = False) -> nn.Module:
    """open_clip's model with its weights, or an EncoderError of one line."""
    if model == "tiny" and "tiny" not in open_clip.list_models():
        open_clip.add_model_config(TINY / "tiny.json")
    try:
        with warnings.catch_warnings(), quiet():
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            return open_clip.create_model(
                model,
                pretrained=pretrained,
                require_pretrained=True,
                force_quick_gelu=force_quick_gelu,
            )
    except UserWarning as warning:
        raise EncoderError(f"{warning} Give a model name that fits the weights") from None
    except Exception as error:  # a file that is not a checkpoint may raise anything
        raise _no_weights(model, pretrained, error) from None


def _no_weights(model: str, pretrained: str | None, error: Exception) -> EncoderError:
    """What a user can do where weights cannot be loaded."""
    reason = textwrap.shorten(str(error).rpartition("Last error: ")[2], 160, placeholder=" ...")
    if pretrained and os.path.isfile(pretrained):
        return EncoderError(
            f"{pretrained} does not hold the weights of {model} ({reason}); "
            "give the --model that it was made with"
        )
    if model == "tiny":
        return EncoderError(f"the bundled encoder is incomplete ({reason}); install cliad again")
    missing = to_fetch(model, pretrained or "")
    where = missing.where if missing else model
    return EncoderError(
        f"no weights for {shown_name(model, pretrained)}: tried {where} ({reason}); "
        "give a local file with --pretrained FILE"
    )


def _from_file(model: str, path: Path, quick_gelu: bool | None) -> nn.Module:
    if _is_torchscript(path):
        return _from_openai_archive(model, path)
    if quick_gelu is None:
        quick_gelu = _known_activation(model, path)
    return _create(model, str(path), force_quick_gelu=quick_gelu)


def _is_torchscript(path: Path) -> bool:
    """OpenAI's own files are TorchScript archives: zip files with code in them."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _from_openai_archive(model: str, path: Path) -> nn.Module:
    """OpenAI's weights; these always need QuickGELU, and open_clip builds it for them."""
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")  # torch says that such archives are deprecated
        try:
            network = open_clip.load_openai_model(str(path), precision="fp32", device="cpu")
        except Exception as error:  # an archive of something else may raise anything
            raise _no_weights(model, str(path), error) from None
        expected = open_clip.create_model(model, pretrained=None, device="meta")
    if _shapes(network) != _shapes(expected):
        raise EncoderError(
            f"{path} is an OpenAI archive of another model than {model}; "
            "give the --model that it was made with"
        )
    return network


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in network.state_dict().items()}


def _known_activation(model: str, path: Path) -> bool:
    """Whether a weights file of `model` needs QuickGELU, where that can be known from outside.

    Raises:
        EncoderError: some published weights of this architecture need it, others do not, and the
            file is none of them.
    """
    if model.endswith("-quickgelu"):
        return True
    tags = open_clip.list_pretrained_tags_by_model(model)
    published = [open_clip.get_pretrained_cfg(model, tag) for tag in tags]
    if not any(wants_quick_gelu(entry) for entry in published):
        return False
    digest = sha256_of(path)
    for entry in published:
        # A published file's name may end in the first digits of its sha256.
        known = entry.get("url", "").rpartition("-")[2].removesuffix(".pt")
        if len(known) >= 8 and digest.startswith(known):
            return wants_quick_gelu(entry)
    raise EncoderError(
        f"{path} does not say its activation, and weights of {model} exist with both; "
        "give --quick-gelu (OpenAI, MetaCLIP, DFN) or --no-quick-gelu"
    )

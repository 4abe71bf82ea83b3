"""The weights of CLIP models: their names, whether they are here, and building a network from them."""

from __future__ import annotations

import hashlib
import logging
import os
import textwrap
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import open_clip
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from torch import nn

from cliad.cache.encoders.base import EncoderError
from cliad.errors import closest

TINY = Path(__file__).parent / "tiny"
DEFAULT = ("ViT-B-32", "openai")


def full_name(model: str, pretrained: str | None = None) -> tuple[str, str]:
    """The architecture and the tag (or file) that a user means; "" for a model that brings its own weights.

    Raises:
        EncoderError: an unknown model or tag; the message suggests the nearest.
    """
    if ":" in model or model == "tiny":
        return model, ""
    name, tag = _dashed(model), pretrained
    if name not in open_clip.list_models() and "/" in model:
        head, _, last = model.rpartition("/")
        name, tag = _dashed(head), pretrained or last
    if name not in open_clip.list_models():
        raise EncoderError(
            f"there is no model '{model}'{_nearest(name, open_clip.list_models())}; `cliad models` lists all"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    tag = tag or default_tag(tags)
    if tag is None:
        raise EncoderError(
            f"{name} has {len(tags)} sets of weights; choose one with --pretrained: {', '.join(tags) or 'a file'}"
        )
    if not os.path.isfile(tag) and not open_clip.get_pretrained_cfg(name, tag):
        raise EncoderError(
            f"{name} has no weights '{tag}', and there is no such file{_nearest(tag, tags)}; known: {', '.join(tags) or 'none, give a file'}"
        )
    return name, tag


def default_tag(tags: Sequence[str]) -> str | None:
    """The weights meant when none are named: OpenAI's, or the only ones there are."""
    return "openai" if "openai" in tags else tags[0] if len(tags) == 1 else None


def published() -> dict[str, list[str]]:
    """The tags of every architecture that has published weights."""
    tags: dict[str, list[str]] = {}
    for name, tag in open_clip.list_pretrained():
        tags.setdefault(name, []).append(tag)
    return tags


def _dashed(model: str) -> str:
    """OpenAI's way of writing a name in open_clip's: `ViT-L/14@336px` is `ViT-L-14-336`."""
    return model.replace("/", "-").replace("@", "-").removesuffix("px")


def _nearest(name: str, known: Sequence[str]) -> str:
    near = closest(name, known)
    return f"; did you mean '{near}'?" if near else ""


def _build(model: str, pretrained: str, quick_gelu: bool | None) -> tuple[nn.Module, dict, str]:
    """The network, what the ids say of its origin, and the name that is shown."""
    if model == "tiny":
        return (
            _create("tiny", str(TINY / "weights.safetensors")),
            {"model": "tiny", "pretrained": ""},
            "tiny",
        )
    if ":" in model:
        return _create(model, None), {"model": model, "pretrained": ""}, model
    if os.path.isfile(pretrained):
        network = _from_file(model, Path(pretrained), quick_gelu)
        return network, {"model": model, "pretrained": "file"}, f"{model}/{Path(pretrained).stem}"
    wants = bool(open_clip.get_pretrained_cfg(model, pretrained).get("quick_gelu"))
    return (
        _create(model, pretrained, force_quick_gelu=wants),
        {"model": model, "pretrained": pretrained},
        f"{model}/{pretrained}",
    )


def _create(model: str, pretrained: str | None, **options) -> nn.Module:
    if model == "tiny" and "tiny" not in open_clip.list_models():
        open_clip.add_model_config(TINY / "tiny.json")
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            return open_clip.create_model(
                model, pretrained=pretrained, require_pretrained=True, **options
            )
    except UserWarning as warning:
        raise EncoderError(f"{warning} Give a model name that fits the weights") from None
    except Exception as error:  # a file that is no checkpoint may raise anything
        raise _no_weights(model, pretrained, error) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip also logs what it raises; one line is enough."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _no_weights(model: str, pretrained: str | None, error: Exception) -> EncoderError:
    reason = textwrap.shorten(str(error).rpartition("Last error: ")[2], 160, placeholder=" ...")
    if pretrained and os.path.isfile(pretrained):
        return EncoderError(
            f"{pretrained} does not hold the weights of {model} ({reason}); give the --model that it was made with"
        )
    if model == "tiny":
        return EncoderError(f"the bundled encoder is not whole ({reason}); install cliad again")
    where = (missing.where if (missing := to_fetch(model, pretrained or "")) else model) or model
    return EncoderError(
        f"no weights for {shown_name(model, pretrained)}: tried {where} ({reason}); give a local file with --pretrained FILE"
    )


def shown_name(model: str, pretrained: str | None) -> str:
    return f"{model}/{pretrained}" if pretrained else model


@dataclass(frozen=True)
class Missing:
    """Weights that are not on this machine: where they come from, and about how large they are (0: not known)."""

    where: str
    megabytes: float


def to_fetch(model: str, pretrained: str) -> Missing | None:
    """What must be fetched before `load` can work; None where all is here. Arguments as `full_name` gives them."""
    if model.startswith("hf-hub:"):
        repository = model.removeprefix("hf-hub:")
        return (
            None
            if _in_hub_cache(repository, "open_clip_config.json")
            else Missing(f"{repository} on the Hugging Face hub", 0)
        )
    if not pretrained or os.path.isfile(pretrained):
        return None
    published = open_clip.get_pretrained_cfg(model, pretrained)
    if published.get("file"):
        return None
    repository, _, file = published.get("hf_hub", "").rpartition("/")
    if repository:
        names = [file] if file else [HF_WEIGHTS_NAME, HF_SAFE_WEIGHTS_NAME]
        names += [f"{Path(name).stem}.safetensors" for name in names]
        return (
            None
            if any(_in_hub_cache(repository, name) for name in names)
            else Missing(f"{repository} on the Hugging Face hub", _size(model))
        )
    here = Path.home() / ".cache" / "clip" / published["url"].rpartition("/")[2]
    return None if here.is_file() else Missing(published["url"], _size(model))


def _in_hub_cache(repository: str, file: str) -> bool:
    return isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str)


def _size(model: str) -> float:
    """Megabytes of the weights in single precision, counted on a model without memory; 0 where it cannot be built so."""
    try:
        with torch.device("meta"), _quiet():
            network = open_clip.create_model(model, pretrained_text=False, device="meta")
        return sum(x.numel() for x in network.parameters()) * 4 / 1e6
    except Exception:  # some towers need files to be built: then the size is not told
        return 0


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
    """OpenAI's weights; these always want QuickGELU, and open_clip builds it for them."""
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # torch says that such archives are a thing of the past
        try:
            network = open_clip.load_openai_model(str(path), precision="fp32", device="cpu")
        except Exception as error:  # an archive of something else may raise anything
            raise _no_weights(model, str(path), error) from None
        asked = open_clip.create_model(model, pretrained=None, device="meta")
    if {name: x.shape for name, x in network.state_dict().items()} != {
        name: x.shape for name, x in asked.state_dict().items()
    }:
        raise EncoderError(
            f"{path} is an OpenAI archive of another model than {model}; give the --model that it was made with"
        )
    return network


def _known_activation(model: str, path: Path) -> bool:
    """Whether a weights file of `model` wants QuickGELU, where that can be known without being told.

    Raises:
        EncoderError: some published weights of this architecture want it, others do not, and the file is unknown.
    """
    published = [
        open_clip.get_pretrained_cfg(model, tag)
        for tag in open_clip.list_pretrained_tags_by_model(model)
    ]
    if model.endswith("-quickgelu") or not any(cfg.get("quick_gelu") for cfg in published):
        return model.endswith("-quickgelu")
    with open(path, "rb") as file:
        digest = (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(file.read()).hexdigest()
        )
    for cfg in published:
        known = cfg.get("url", "").rpartition("-")[2].removesuffix(".pt")
        if len(known) >= 8 and digest.startswith(known):
            return bool(cfg.get("quick_gelu"))
    raise EncoderError(
        f"{path} does not say its activation, and weights of {model} exist with both; give --quick-gelu (OpenAI, MetaCLIP, DFN) or --no-quick-gelu"
    )

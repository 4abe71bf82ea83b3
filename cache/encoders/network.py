"""CLIP networks built from their weights, with the activation that these were trained with.

OpenAI trained with QuickGELU, x * sigmoid(1.702 x), others with GELU. A network runs with either,
and is silently worse with the wrong one. So a file that does not say which one is refused.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from open_clip.model import build_model_from_openai_state_dict
from open_clip.pretrained import download_pretrained_from_hf
from torch import nn

from cliad.cache.encoders.base import EncoderError
from cliad.cache.encoders.model_folder import CONFIG, read_config, weights_in
from cliad.cache.encoders.preprocessing import unlike_published
from cliad.cache.encoders.torchscript import state_of
from cliad.cache.encoders.weights import (
    EXTRA,
    check_reachable,
    parameters_of,
    quiet,
    shown_name,
    to_fetch,
    wants_quick_gelu,
)
from cliad.cache.encoders.weights_file import (
    Stored,
    check_finite,
    check_types,
    check_weights_file,
    resized,
    stored_tensors,
    why_not_loaded,
    why_too_small,
)
from cliad.cache.files import sha256_of
from cliad.errors import printable

TINY = Path(__file__).parent / "tiny"


@dataclass(frozen=True)
class Network:
    """A model of open_clip with its weights, what the ids say of its origin, and its name."""

    model: nn.Module
    recipe: dict[str, str]
    name: str
    notes: tuple[str, ...] = ()  # what was made of the weights that the user should know


def build_network(model: str, pretrained: str, quick_gelu: bool | None) -> Network:
    """The network of a model and its weights, named as `weights.full_name` gives them.

    Args:
        model: the architecture, or a model that brings its own weights.
        pretrained: a tag, a weights file, or "".
        quick_gelu: the activation of a weights file, where it is known.

    Raises:
        EncoderError: no weights, those of another model, or an unknown activation.
    """
    if not pretrained:
        network, notes = _own_weights(model, quick_gelu)
        return Network(network, {"model": model, "pretrained": ""}, model, notes)
    published = open_clip.get_pretrained_cfg(model, pretrained)
    # A tag wins over a file of its name, as in open_clip; ./NAME means the file.
    if not published:
        file = Path(pretrained)
        check_weights_file(file)
        stored = stored_tensors(file)
        network = _from_file(model, file, quick_gelu, stored)
        # The recipe leaves out the file's name: the same weights elsewhere are the same encoder.
        check_types(file, stored, network)
        recipe = {"model": model, "pretrained": "file"}
        notes = (*resized(stored, network), *unlike_published(model))
        return Network(network, recipe, f"{model}/{file.stem}", notes)
    name = shown_name(model, pretrained)
    _check_activation(name, quick_gelu, wants_quick_gelu(published) or _has_quick_gelu(model))
    network = _create(model, pretrained, force_quick_gelu=wants_quick_gelu(published))
    return Network(network, {"model": model, "pretrained": pretrained}, name)


def _check_size(model: str, file: Path, stored: dict[str, Stored]) -> None:
    """Refuse a file that is far too small for a model, before that is built in memory."""
    n_parameter = parameters_of(model)
    expected = None
    if n_parameter is None:
        expected = _without_weights(model)
        n_parameter = sum(x.numel() for x in expected.parameters()) if expected else 0
    reason = why_too_small(stored, n_parameter)
    if reason:
        error = ValueError(reason)
        why = why_not_loaded(error, stored, expected or _without_weights(model))
        raise _of_another_model(str(file), model, why)


def _own_weights(model: str, quick_gelu: bool | None) -> tuple[nn.Module, tuple[str, ...]]:
    """A model that brings its own weights and its own activation, and what to say of it."""
    if model == "tiny":
        _check_activation(model, quick_gelu, False)
        return _create(model, str(TINY / "weights.safetensors")), ()
    if quick_gelu is not None:
        raise EncoderError(
            f"{printable(model)} brings its own activation; leave out --quick-gelu and"
            " --no-quick-gelu"
        )
    if model.startswith("local-dir:"):
        return _from_folder(model)
    return _create(model, None), ()


def _from_folder(model: str) -> tuple[nn.Module, tuple[str, ...]]:
    """A model in a folder; its configuration was checked when it was named."""
    file, names = weights_in(Path(model.removeprefix("local-dir:")))
    check_weights_file(file)
    stored = stored_tensors(file)
    _check_size(model, file, stored)
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            network = open_clip.create_model(model, load_weights=False, pretrained_text=False)
            open_clip.load_checkpoint(network, str(file))
    except Exception as error:  # a file that is not a checkpoint may raise anything
        why = why_not_loaded(error, stored, _without_weights(model))
        raise _of_another_model(str(file), f"the model in {CONFIG}", why) from None
    check_types(file, stored, network)
    check_finite(network, str(file))
    notes = resized(stored, network)
    if len(names) > 1:
        others = ", ".join(names[1:4]) + (", ..." if len(names) > 4 else "")
        notes.append(f"{printable(file.name)} is used of {file.parent}, not {printable(others)}")
    return network, tuple(notes)


def _has_quick_gelu(model: str) -> bool:
    """Whether an architecture is one with QuickGELU, whatever its weights."""
    return bool((open_clip.get_model_config(model) or {}).get("quick_gelu"))


def _check_activation(name: str, quick_gelu: bool | None, known: bool) -> None:
    """Refuse a choice that is against what is known: it would be no choice."""
    if quick_gelu is not None and quick_gelu != known:
        option = "--quick-gelu" if quick_gelu else "--no-quick-gelu"
        activation = "QuickGELU" if known else "GELU"
        raise EncoderError(f"{name} has the activation {activation}; leave out {option}")


def _create(model: str, pretrained: str | None, *, force_quick_gelu: bool = False) -> nn.Module:
    """open_clip's model with its weights, or an EncoderError of one line."""
    if model == "tiny":
        register_tiny()
    missing = to_fetch(model, pretrained or "")
    try:
        if missing:
            check_reachable(missing)
        if model.startswith("hf-hub:"):
            place = model.removeprefix("hf-hub:")
            read_config(Path(download_pretrained_from_hf(place, filename=CONFIG)))
            check_weights_file(Path(download_pretrained_from_hf(place)))
        with warnings.catch_warnings(), quiet():
            # Torch warns of types that it casts; these are refused below.
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            network = open_clip.create_model(
                model,
                pretrained=pretrained,
                require_pretrained=True,
                force_quick_gelu=force_quick_gelu,
            )
    except EncoderError:
        raise
    except UserWarning as warning:
        raise EncoderError(f"{warning} Give a model name that fits the weights") from None
    except Exception as error:  # a file that is not a checkpoint may raise anything
        raise _no_weights(model, pretrained, error) from None
    check_finite(network, printable(shown_name(model, pretrained)))
    return network


def register_tiny() -> None:
    """Make the bundled architecture known to open_clip."""
    if "tiny" not in open_clip.list_models():
        open_clip.add_model_config(TINY / "tiny.json")


def _no_weights(model: str, pretrained: str | None, error: Exception) -> EncoderError:
    """What a user can do where weights cannot be loaded."""
    tiny = str(TINY / "weights.safetensors")
    if pretrained and pretrained != tiny and not open_clip.get_pretrained_cfg(model, pretrained):
        reason = why_not_loaded(error, stored_tensors(Path(pretrained)), _without_weights(model))
        return _of_another_model(pretrained, model, reason)
    reason = why_not_loaded(error, {}, None)
    if model == "tiny":
        return EncoderError(f"the bundled encoder is incomplete ({reason}); install cliad again")
    missing = to_fetch(model, pretrained or "")
    where = missing.where if missing else printable(model)
    if "transformers" in reason:
        return EncoderError(f"the text side of {printable(model)} needs transformers; {EXTRA}")
    return EncoderError(
        f"no weights for {shown_name(model, pretrained)}: tried {where} ({reason}); "
        "give a local file with --model NAME --pretrained FILE"
    )


def _of_another_model(file: str, model: str, reason: str) -> EncoderError:
    return EncoderError(
        f"{file} does not hold the weights of {printable(model)} ({reason}); "
        "give the --model that it was made with"
    )


def _without_weights(model: str) -> nn.Module | None:
    """The model as a table of names and shapes; None where it cannot be built so."""
    try:
        with quiet(), warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            return open_clip.create_model(
                model, load_weights=False, pretrained_text=False, device="meta"
            )
    except Exception:  # some towers need files to be built
        return None


def _from_file(
    model: str, path: Path, quick_gelu: bool | None, stored: dict[str, Stored]
) -> nn.Module:
    if _is_torchscript(path):
        _check_activation(f"{path}, an OpenAI archive,", quick_gelu, True)
        return _from_openai_archive(model, path)
    if _has_quick_gelu(model):
        _check_activation(model, quick_gelu, True)
        quick_gelu = True
    if quick_gelu:
        _require_choice_of_activation(model)
    if quick_gelu is None:
        quick_gelu = _known_activation(model, path)
    _check_size(model, path, stored)
    return _create(model, str(path), force_quick_gelu=quick_gelu)


def _require_choice_of_activation(model: str) -> None:
    """Refuse QuickGELU for towers that are not open_clip's own: they would keep their own."""
    config = open_clip.get_model_config(model) or {}
    for tower, key in (("image", "timm_model_name"), ("text", "hf_model_name")):
        part = "vision_cfg" if tower == "image" else "text_cfg"
        if config.get(part, {}).get(key):
            raise EncoderError(
                f"the {tower} tower of {model} has an activation of its own; leave out --quick-gelu"
            )


def _is_torchscript(path: Path) -> bool:
    """OpenAI's own files are TorchScript archives: zip files with code in them."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _from_openai_archive(model: str, path: Path) -> nn.Module:
    """OpenAI's weights; these always need QuickGELU, and open_clip builds it for them."""
    expected = _without_weights(model)

    def check(stored: Mapping[str, Stored]) -> None:
        _check_archive(model, path, dict(stored), expected)

    state = state_of(path, check)
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            network = build_model_from_openai_state_dict(state, cast_dtype=None).float()
    except Exception as error:  # an archive of something else may raise anything
        raise _no_weights(model, str(path), error) from None
    check_finite(network, str(path))
    return network


def _check_archive(
    model: str, path: Path, stored: dict[str, Stored], expected: nn.Module | None
) -> None:
    """Refuse the tensors of another model before their values are read and a model is built."""
    # Open_clip takes the sizes of what it builds from the archive.
    wanted = _shapes(expected) if expected else {}
    found = {name: x.shape for name, x in stored.items()}
    if not set(wanted) & set(found):
        why = why_not_loaded(ValueError("no tensors"), stored, expected)
        raise _of_another_model(str(path), model, why)
    if expected is None or found != wanted:
        raise EncoderError(
            f"{path} is an OpenAI archive of another model than {model}; "
            "give the --model that it was made with"
        )
    check_types(path, stored, expected)


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in network.state_dict().items()}


def _known_activation(model: str, path: Path) -> bool:
    """Whether a weights file of `model` needs QuickGELU, where that can be known from outside.

    Raises:
        EncoderError: some published weights of this architecture need it, others do not, and the
            file is none of them.
    """
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

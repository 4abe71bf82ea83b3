"""The weights of CLIP models: their names, and what must be fetched before they can be loaded."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

from cliad.cache.encoders.base import EncoderError
from cliad.cache.encoders.model_folder import CONFIG, check_tokenizer_files, read_config
from cliad.errors import closest, printable

DEFAULT = ("ViT-B-32", "openai")
HUB = "on the Hugging Face hub"
PARAMETERS = Path(__file__).with_name("parameters.json")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?(@[\w.-]+)?", re.ASCII)
ANSWER_WITHIN = 5  # seconds for a site to answer at all, before a download
LONGEST = 80  # characters of a name in a message
EXTRA = "run: pip install 'cliad[transformers]'"


def full_name(model: str, pretrained: str | None = None) -> tuple[str, str]:
    """The architecture and the tag (or file) that a user means.

    The tag is "" for a model that brings its own weights.

    Raises:
        EncoderError: an unknown model or tag, where the message suggests the nearest; weights for
            a model that brings its own; or a package that the model needs is missing.
    """
    if ":" in model:
        return _with_scheme(model, pretrained), ""
    if model == "tiny":
        if pretrained and not _is_there(pretrained):
            raise EncoderError(
                f"there is no weights file {printable(pretrained)[:LONGEST]!r}; the encoder tiny"
                " brings its own weights, leave out --pretrained"
            )
        return model, pretrained or ""
    name, tag = _architecture(model, pretrained)
    tags = open_clip.list_pretrained_tags_by_model(name)
    tag = tag or default_tag(tags)
    if tag is None:
        raise EncoderError(
            f"{name} has {len(tags)} sets of weights; "
            f"choose one with --pretrained: {', '.join(tags) or 'a file'}"
        )
    if not open_clip.get_pretrained_cfg(name, tag) and not _is_there(tag):
        shown = printable(tag)[:LONGEST]
        raise EncoderError(
            f"{name} has no weights '{shown}', and there is no such file{_nearest(tag, tags)}; "
            f"known: {', '.join(tags) or 'none, give a file'}"
        )
    _require_transformers(name, open_clip.get_model_config(name) or {})
    return name, tag


def has_own_activation(model: str, pretrained: str) -> bool:
    """Whether model and weights, named as `full_name` does, say their activation themselves."""
    is_published = bool(open_clip.get_pretrained_cfg(model, pretrained))
    is_quick = bool((open_clip.get_model_config(model) or {}).get("quick_gelu"))
    return not pretrained or is_published or is_quick


def _is_there(path: str) -> bool:
    """Whether there is something of this name, be it a file or not: what reads it says which."""
    try:
        return os.path.lexists(path)
    except ValueError:  # letters that no file name can have
        return False


def _with_scheme(model: str, pretrained: str | None) -> str:
    """A name that says where the model lies, if it can say that."""
    shown = printable(model)[:LONGEST]
    scheme, _, place = model.partition(":")
    if scheme == "hf-hub":
        if not HUB_NAME.fullmatch(place) or ".." in place:
            raise EncoderError(f"'{shown}' names no model of the hub; give hf-hub:OWNER/NAME")
    elif scheme == "local-dir":
        # Open_clip would wait for a pipe for ever, and run code that it is told of.
        config = read_config(Path(place) / CONFIG)
        if config["text_cfg"].get("hf_tokenizer_name"):
            check_tokenizer_files(Path(place))
        _require_transformers(shown, config)
    else:
        raise EncoderError(f"there is no model '{shown}'; `cliad models` lists all")
    if pretrained:
        raise EncoderError(f"{shown} brings its own weights; leave out --pretrained")
    return model


def _require_transformers(model: str, config: Mapping) -> None:
    """Refuse a model whose words or texts need a package that is not here, before any download."""
    if _needs_transformers(config) and importlib.util.find_spec("transformers") is None:
        raise EncoderError(f"the text side of {model} needs transformers; {EXTRA}")


def _needs_transformers(config: Mapping) -> bool:
    text = config.get("text_cfg", {})
    return bool(text.get("hf_tokenizer_name") or text.get("hf_model_name"))


def tokenizer_words(model: str) -> dict[str, bool]:
    """What a model's tokenizer is told beside its configuration: that it shall run no code.

    Without this word transformers would ask on the terminal.
    """
    text = _config_of(model).get("text_cfg", {})
    return {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}


def _config_of(model: str) -> Mapping:
    """The configuration of a model; that of a hub's is on this machine once the model is."""
    if model.startswith("local-dir:"):
        return read_config(Path(model.removeprefix("local-dir:")) / CONFIG)
    if model.startswith("hf-hub:"):
        file = huggingface_hub.try_to_load_from_cache(model.removeprefix("hf-hub:"), CONFIG)
        return read_config(Path(file)) if isinstance(file, str) else {}
    return open_clip.get_model_config(model) or {}


@contextmanager
def hub_as_it_is(model: str) -> Iterator[None]:
    """Without a network, use what is on this machine at once while the block runs.

    The clients of the hub would first try for a minute.
    """
    constants = huggingface_hub.constants
    before = constants.HF_HUB_OFFLINE
    config = _config_of(model)
    is_fetched = model.startswith("hf-hub:") and bool(config)
    if not before and (is_fetched or _needs_transformers(config)):
        try:
            check_reachable(Missing(HUB, 0))
        except ConnectionError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def no_code_asked_for() -> Iterator[None]:
    """While the block runs, transformers does not ask on the terminal whether to run code.

    A configuration names the model of its texts, whose own configuration may name code. Open_clip
    gives no answer to the question, and so a user who types "y" would run what a stranger wrote.
    """
    if importlib.util.find_spec("transformers") is None:
        yield
        return
    asking: Any = importlib.import_module("transformers.dynamic_module_utils")
    before = asking.TIME_OUT_REMOTE_CODE
    asking.TIME_OUT_REMOTE_CODE = 0  # seconds to wait for an answer; none is asked for
    try:
        yield
    finally:
        asking.TIME_OUT_REMOTE_CODE = before


def _architecture(model: str, pretrained: str | None) -> tuple[str, str | None]:
    """open_clip's name of an architecture, and the tag, which may stand in `model` as well."""
    known = open_clip.list_models()
    name = _dashed(model)
    tag = pretrained
    if name not in known and "/" in model:  # `ViT-B-32/openai`
        front, _, last = model.rpartition("/")
        name = _dashed(front)
        tag = pretrained or last
    if name not in known:
        shown = printable(model)[:LONGEST]
        raise EncoderError(
            f"there is no model '{shown}'{_nearest(name[:LONGEST], known)}; "
            "`cliad models` lists all"
        )
    return name, tag


def default_tag(tags: Sequence[str]) -> str | None:
    """The weights meant when none are named: OpenAI's, or the only ones there are."""
    if "openai" in tags:
        return "openai"
    return tags[0] if len(tags) == 1 else None


def published() -> dict[str, list[str]]:
    """The tags of every architecture that has published weights."""
    tags: dict[str, list[str]] = {}
    for name, tag in open_clip.list_pretrained():
        tags.setdefault(name, []).append(tag)
    return tags


@dataclass(frozen=True)
class Facts:
    """What is known of an architecture without building it.

    image_size: side of the square, or [height, width], in pixels. dim: length of a feature.
    activations: of each set of weights. parameters: of both towers together; None where nobody has
    counted them.
    """

    image_size: int | list[int] | None
    dim: int | None
    activations: list[str]
    parameters: int | None


def facts_of(model: str, tags: Sequence[str]) -> Facts:
    """The facts of one of open_clip's architectures with these tags, from its configuration."""
    config = open_clip.get_model_config(model) or {}
    activations = []
    for tag in tags:
        published = open_clip.get_pretrained_cfg(model, tag)
        is_quick = bool(config.get("quick_gelu")) or wants_quick_gelu(published)
        activations.append("QuickGELU" if is_quick else "GELU")
    return Facts(
        image_size=config.get("vision_cfg", {}).get("image_size"),
        dim=config.get("embed_dim"),
        activations=activations,
        parameters=_parameters().get(model),
    )


def tiny_facts() -> Facts:
    """The facts of the bundled encoder."""
    from cliad.cache.encoders.network import TINY

    config = json.loads((TINY / "tiny.json").read_text(encoding="utf-8"))
    return Facts(
        image_size=config["vision_cfg"]["image_size"],
        dim=config["embed_dim"],
        activations=["QuickGELU" if config.get("quick_gelu") else "GELU"],
        parameters=_parameters().get("tiny"),
    )


def parameters_of(model: str) -> int | None:
    """How many parameters an architecture has; None where nobody has counted them."""
    return _parameters().get(model)


@cache
def _parameters() -> dict[str, int]:
    """How many parameters architectures have, counted once: to build them all takes a minute."""
    return json.loads(PARAMETERS.read_text(encoding="utf-8"))


def _dashed(model: str) -> str:
    """OpenAI's way of writing a name in open_clip's: `ViT-L/14@336px` is `ViT-L-14-336`."""
    return model.replace("/", "-").replace("@", "-").removesuffix("px")


def _nearest(name: str, known: Sequence[str]) -> str:
    near = closest(name, known)
    return f"; did you mean '{near}'?" if near else ""


def shown_name(model: str, pretrained: str | None) -> str:
    """A model and its weights as they are shown to people."""
    return f"{model}/{pretrained}" if pretrained else model


@dataclass(frozen=True)
class Missing:
    """Weights that are not on this machine: where they come from, and about how large they are."""

    where: str
    megabytes: float  # 0: not known


def to_fetch(model: str, pretrained: str) -> Missing | None:
    """What must be fetched before `load` can work; None where all is on this machine.

    The arguments are as `full_name` gives them. A hub model counts as present once its
    configuration is: the name of its weights file is not known beforehand.
    """
    if model.startswith("hf-hub:"):
        repository = model.removeprefix("hf-hub:")
        if _in_hub_cache(repository, "open_clip_config.json"):
            return None
        return Missing(f"{repository} {HUB}", 0)
    published = open_clip.get_pretrained_cfg(model, pretrained)
    if not published or published.get("file"):
        return None  # a file, or nothing at all
    if "/" in published.get("hf_hub", ""):
        return _to_fetch_from_hub(model, published["hf_hub"])
    return _to_fetch_from_url(model, published["url"])


def _to_fetch_from_hub(model: str, place: str) -> Missing | None:
    """The same for weights at `place`, which is OWNER/NAME/ or OWNER/NAME/FILE."""
    repository, _, file = place.rpartition("/")
    names = [file] if file else [HF_WEIGHTS_NAME, HF_SAFE_WEIGHTS_NAME]
    # open_clip prefers the safetensors file of the same name.
    names += [f"{Path(name).stem}.safetensors" for name in names]
    if any(_in_hub_cache(repository, name) for name in names):
        return None
    return Missing(f"{repository} {HUB}", _megabytes(model))


def _to_fetch_from_url(model: str, url: str) -> Missing | None:
    downloaded = Path.home() / ".cache" / "clip" / url.rpartition("/")[2]
    return None if downloaded.is_file() else Missing(url, _megabytes(model))


def check_reachable(missing: Missing) -> None:
    """Refuse a download where there is no network; the hub's own client would try for a minute.

    Raises:
        ConnectionError: the site does not answer within ANSWER_WITHIN seconds.
    """
    is_url = missing.where.startswith("http")
    if not is_url and huggingface_hub.constants.HF_HUB_OFFLINE:
        return  # the client says so at once
    site = missing.where if is_url else huggingface_hub.constants.ENDPOINT
    try:
        request = urllib.request.Request(site, method="HEAD")
        with urllib.request.urlopen(request, timeout=ANSWER_WITHIN):
            return
    except urllib.error.HTTPError:
        return  # an answer, if not the one that was hoped for
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        # Who signs the site's certificate is for the client to judge: it has a list of its own.
        if not isinstance(reason, ssl.SSLError):
            raise ConnectionError(f"no network: {reason}") from None


def _in_hub_cache(repository: str, file: str) -> bool:
    return isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str)


def _megabytes(model: str) -> float:
    """The size of the weights in single precision; 0 where nobody has counted them."""
    return (parameters_of(model) or 0) * 4 / 1e6


@contextmanager
def quiet() -> Iterator[None]:
    """No log while the block runs: open_clip also logs what it raises."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def wants_quick_gelu(published: Mapping) -> bool:
    """Whether weights, described by open_clip's entry of them, were trained with QuickGELU."""
    return bool(published.get("quick_gelu"))

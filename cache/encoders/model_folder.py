"""Models that bring their own configuration, in a folder or from the hub, looked at first.

A configuration decides what is built, which tokenizer is made, and what that one is told. Nothing
in it may name code to run or a file elsewhere, or ask for more memory than any model needs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from cliad.cache.documents import open_regular, read_json
from cliad.cache.encoders.base import EncoderError
from cliad.errors import printable

CONFIG = "open_clip_config.json"
HINT = "give the folder of a model in open_clip's format as local-dir:DIR"
# Open_clip's own order, in which it takes weights from a folder.
PREFERRED = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
TOWERS = ("vision_cfg", "text_cfg")
# What open_clip knows of each tower, with the types of these settings.
SETTINGS = {
    "vision_cfg": {entry.name: entry.type for entry in fields(CLIPVisionCfg)},
    "text_cfg": {entry.name: entry.type for entry in fields(CLIPTextCfg)},
}
# Whole numbers that cannot be zero, which some parts divide by.
COUNTS = (
    *("embed_dim", "width", "heads", "head_width", "patch_size", "context_length", "vocab_size"),
    *("attn_pooler_queries", "attn_pooler_heads"),
)
# What tokenizers may be told. All else goes to transformers, which may be told to run code.
TOKENIZER_WORDS = ("clean", "strip_sep_token", "language", "reduction_mask", "use_fast")
# Names that lead to a model on the hub or in timm, and never to a folder.
NAMES = {
    "timm_model_name": re.compile(r"[\w.-]+", re.ASCII),
    "hf_model_name": re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII),
    "hf_tokenizer_name": re.compile(r"([A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)?", re.ASCII),
}
LARGEST_NUMBER = 2**21  # tables of words have a million rows, and nothing is larger
# Of what grows with the square or with each unit: masks, feature maps, layers.
LARGEST = {"layers": 512, "context_length": 2**13, "image_size": 1024}
LARGEST_SIDE = 4096  # pixels
LARGEST_WORDS = 2**26  # bytes of a tokenizer's file; Gemma's, of a quarter million words, has 34 MB
TOKENIZER_CONFIG = "tokenizer_config.json"


def read_config(file: Path) -> dict:
    """The configuration of a model, checked.

    Raises:
        EncoderError: it is missing, or says what no model needs; the entry is named.
    """
    content = read_json(file, EncoderError, HINT)
    config = content.get("model_cfg") if isinstance(content, dict) else None
    if not isinstance(config, dict):
        raise EncoderError(f"{file} has no model_cfg; {HINT}")
    for tower in TOWERS:
        if not isinstance(config.get(tower), dict):
            raise EncoderError(f"{file} has no {tower} in its model_cfg; {HINT}")
        _check_words(file, config[tower], SETTINGS[tower])
    for key, number in _numbers(config):
        most = LARGEST.get(key, LARGEST_NUMBER)
        if not abs(number) <= most:
            raise EncoderError(
                f"{file}: {printable(key)[:40]} is {number:g}, expected at most {most:,}"
            )
    for tower in TOWERS:
        _check_types(file, config[tower], SETTINGS[tower])
    _check_types(file, config, {"quick_gelu": bool, "custom_text": bool, "embed_dim": int})
    _check_preprocessing(file, content.get("preprocess_cfg") or {})
    return config


def _check_words(file: Path, tower: Mapping, known: Mapping) -> None:
    for key in tower:
        if key not in known:
            raise EncoderError(
                f"{file}: open_clip knows no setting {printable(str(key))[:40]!r} of a tower"
            )
    for key, pattern in NAMES.items():
        name = tower.get(key)
        if name is not None and not (isinstance(name, str) and pattern.fullmatch(name)):
            raise EncoderError(
                f"{file}: {key} is {printable(str(name))[:60]!r}, which names no published model"
            )
    told = tower.get("tokenizer_kwargs") or {}
    for word in told if isinstance(told, Mapping) else ["tokenizer_kwargs"]:
        if word not in TOKENIZER_WORDS:
            raise EncoderError(
                f"{file} tells the tokenizer {printable(word)[:40]!r}; it may be told"
                f" {', '.join(TOKENIZER_WORDS)}, since other words may run code"
            )


def _check_types(file: Path, config: Mapping, types: Mapping[str, object]) -> None:
    """Refuse words where yes or no is asked for: open_clip would take "no" for yes."""
    for key, wanted in types.items():
        value = config.get(key)
        if wanted not in (bool, int) or value is None:
            continue
        if type(value) is not wanted or (key in COUNTS and value < 1):
            meant = "true or false" if wanted is bool else "a whole number"
            raise EncoderError(f"{file}: {key} is {printable(str(value))[:60]!r}, expected {meant}")


def _numbers(config: Mapping) -> Iterator[tuple[str, float]]:
    """All numbers of a configuration by their keys, whatever lies in whatever."""
    waiting: list[tuple[str, object]] = list(config.items())
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, entry) for entry in value]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value


def _check_preprocessing(file: Path, config: object) -> None:
    if not isinstance(config, Mapping):
        raise EncoderError(f"{file}: preprocess_cfg is no table of settings")
    checks = {
        "size": _is_size,
        "mode": ("RGB",).__contains__,
        "mean": _is_colour,
        "std": _is_deviation,
        "interpolation": ("bicubic", "bilinear", "random").__contains__,
        "resize_mode": ("shortest", "longest", "squash").__contains__,
        "fill_color": _is_byte,
    }
    for key, is_right in checks.items():
        value = config.get(key)
        # Open_clip takes its own value where there is none.
        if value is not None and not is_right(value):
            raise EncoderError(
                f"{file}: {key} of preprocess_cfg is {printable(str(value))[:60]},"
                " which no image can be prepared with"
            )


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, list) else [value, value]
    return len(sides) == 2 and all(type(x) is int and 0 < x <= LARGEST_SIDE for x in sides)


def _is_colour(value: Any) -> bool:
    channels = value if isinstance(value, list) else [value] * 3
    return len(channels) == 3 and all(type(x) in (int, float) and abs(x) < 1e3 for x in channels)


def _is_deviation(value: Any) -> bool:
    channels = value if isinstance(value, list) else [value]
    return _is_colour(value) and all(x > 1e-6 for x in channels)


def _is_byte(value: Any) -> bool:
    return type(value) is int and 0 <= value < 256


def check_tokenizer_files(folder: Path) -> None:
    """Refuse what transformers would wait for, or read elsewhere, when it makes a tokenizer.

    Raises:
        EncoderError: a pipe, a device or a file that is too large; a setting that names a place.
    """
    for file in sorted(folder.iterdir()):
        is_weights = file.suffix in (".safetensors", ".bin", ".pth")
        if file.is_dir() or is_weights:
            continue
        with open_regular(file, EncoderError, HINT) as stream:
            size = os.fstat(stream.fileno()).st_size
        if size > LARGEST_WORDS:
            raise EncoderError(f"{file} has {size:,} bytes, more than any tokenizer; {HINT}")
    file = folder / TOKENIZER_CONFIG
    settings = read_json(file, EncoderError, HINT) if file.is_file() else {}
    for key, value in settings.items() if isinstance(settings, dict) else ():
        is_place = isinstance(value, str) and Path(value).name != value
        if key.endswith("_file") and value is not None and is_place:
            raise EncoderError(
                f"{file}: {printable(key)[:40]} is {printable(value)[:60]!r}, not a file beside it"
            )


def weights_in(folder: Path) -> tuple[Path, list[str]]:
    """The file of a folder that has its weights, and the names of all that it is chosen from.

    Raises:
        EncoderError: there is none.
    """
    names: list[str] = []
    for ending in (".safetensors", ".bin", ".pth"):
        names += sorted(file.name for file in folder.glob(f"*{ending}"))
    if not names:
        raise EncoderError(f"{folder} has no weights (.safetensors, .bin, .pth); {HINT}")
    # Sorting keeps the order of equals: safetensors come before others.
    names.sort(key=_place)
    return folder / names[0], names


def _place(name: str) -> int:
    return PREFERRED.index(name) if name in PREFERRED else len(PREFERRED)

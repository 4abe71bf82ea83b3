"""Models that bring their own configuration, in a folder or from the hub, looked at first.

A configuration decides what is built, which tokenizer is made, and what that one is told. Nothing
in it may name code to run or a file elsewhere, or ask for more memory than any model needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cliad.cache.documents import read_json
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
# What tokenizers may be told. All else goes to transformers, which may be told to run code.
TOKENIZER_WORDS = ("clean", "strip_sep_token", "language", "reduction_mask", "use_fast")
# Names that lead to a model on the hub or in timm, and never to a folder.
NAMES = {
    "timm_model_name": re.compile(r"[\w.-]+", re.ASCII),
    "hf_model_name": re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII),
    "hf_tokenizer_name": re.compile(r"([A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)?", re.ASCII),
}
LARGEST_NUMBER = 2**21  # tables of words have a million rows, and nothing is larger
MOST_LAYERS = 512
LARGEST_SIDE = 4096  # pixels


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
        _check_words(file, config[tower])
    for key, number in _numbers(config):
        most = MOST_LAYERS if key == "layers" else LARGEST_NUMBER
        if not abs(number) <= most:
            raise EncoderError(
                f"{file}: {printable(key)[:40]} is {number:g}, expected at most {most:,}"
            )
    _check_preprocessing(file, content.get("preprocess_cfg") or {})
    return config


def _check_words(file: Path, tower: Mapping) -> None:
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

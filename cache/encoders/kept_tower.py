"""A text tower in a file beside the caches: learned prompts then need no open_clip and no weights.

It is a safetensors file with the tensors of a `CausalTower`. No tokenizer is kept, but lines with
their tokens: class names, prompts and first words. The file's metadata has them as JSON. Of the
token table there are the rows that these lines use.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cliad.cache.encoders.base import EncoderError
from cliad.cache.encoders.text_tower import CausalTower, Tokenise, TowerForm
from cliad.cache.files import replacing

SCHEMA = "1"
KIND = "text tower of cliad"
SHOWN = 4  # known first words that a message lists
AGAIN = "keep it again with `cliad extract --text-tower`"
# What reading a damaged file may raise: wrong JSON, missing words, tensors that do not fit.
DAMAGE = (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError, RuntimeError)


def keep_tower(path: Path, tower: CausalTower, encoder_id: str, lines: Iterable[str]) -> None:
    """Write a tower with the tokens of lines; those that an earlier file there has stay known.

    tower: one that knows every line.

    Raises:
        EncoderError: the file cannot be written.
    """
    every = list(dict.fromkeys([*_lines_in(path, encoder_id), *lines]))
    tokens = tower.tokenise(every)
    used = {tower.form.start, tower.form.end}
    for row in tokens:
        used.update(row)
    numbers = sorted(used)
    place = {number: index for index, number in enumerate(numbers)}
    tensors = dict(tower.tensors)
    tensors["table"] = tower.tensors["table"][torch.tensor(numbers)]
    form = asdict(tower.form)
    form["start"] = place[tower.form.start]
    form["end"] = place[tower.form.end]
    renumbered = {}
    for line, row in zip(every, tokens, strict=True):
        renumbered[line] = [place[number] for number in row]
    about = {"kind": KIND, "schema": SCHEMA, "encoder_id": encoder_id}
    about["form"] = json.dumps(form)
    about["lines"] = json.dumps(renumbered)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new:
            save_file({name: _narrow(value) for name, value in tensors.items()}, new, about)
    except OSError as error:
        raise EncoderError(f"cannot write {path}: {error.strerror or error}") from None


def open_tower(path: Path, encoder_id: str) -> CausalTower:
    """The tower of a file, on the CPU in float32.

    Raises:
        EncoderError: the file is damaged, of a newer version, or of another encoder.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = _checked(path, file.metadata() or {}, encoder_id)
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        form = TowerForm(**json.loads(about["form"]))
        tokenise = _known(path, json.loads(about["lines"]))
        return CausalTower(tensors, form, tokenise)
    except EncoderError:
        raise
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:100]
        raise EncoderError(f"{path} is damaged ({reason}); {AGAIN}") from None


def _lines_in(path: Path, encoder_id: str) -> Sequence[str]:
    """The lines of an earlier file; none where there is no file that can be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return list(json.loads(_checked(path, file.metadata() or {}, encoder_id)["lines"]))
    except (EncoderError, *DAMAGE):
        return []


def _checked(path: Path, about: Mapping[str, str], encoder_id: str) -> Mapping[str, str]:
    if about.get("kind") != KIND:
        raise ValueError("it holds no text tower")
    if about.get("schema") != SCHEMA:
        raise EncoderError(f"{path} is of a newer version of cliad; update cliad")
    if about["encoder_id"] != encoder_id:
        raise EncoderError(
            f"{path} is the text tower of encoder {about['encoder_id'][:40]}, not of {encoder_id};"
            f" {AGAIN}"
        )
    return about


def _known(path: Path, lines: Mapping[str, list[int]]) -> Tokenise:
    """The tokens of the lines in a file."""

    def tokenise(asked: Sequence[str]) -> list[list[int]]:
        for line in asked:
            if line not in lines:
                listed = ", ".join(f"'{known}'" for known in list(lines)[:SHOWN])
                raise EncoderError(
                    f"the text tower kept in {path.name} has no tokens of '{line[:60]}', it has"
                    f" those of {listed}, ...; {AGAIN} of this data set and these prompts, or move"
                    " the file away where open_clip is installed"
                )
        return [list(lines[line]) for line in asked]

    return tokenise


def _narrow(value: Tensor) -> Tensor:
    """In half precision where that loses nothing, as with weights that were published so."""
    half = value.half()
    exact = bool((half.float() == value).all())
    return (half if exact else value).contiguous()

"""The run folder: a trained head that travels.

It holds safetensors, JSON and Markdown, nothing that runs when it is loaded.

head.safetensors   parameters "p.NAME" and constants "c.NAME" of the head, each (1, ...)
run.json           schema, head and its hyper-parameters, logit_scale, class names, templates,
                   encoder recipe (weights as a hash, preprocessing), fingerprint, spec,
                   temperature, the hash of head.safetensors, and the command that made it
result.json        the result row
README.md          a card for people
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save_file
from torch import Tensor

from cliad.adapters.core.classifier import Classifier
from cliad.adapters.core.metrics import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE
from cliad.adapters.core.rows import COLUMNS
from cliad.cache.documents import read_bytes, read_json
from cliad.cache.file.read import FeatureCache
from cliad.cache.files import check_place, replacing, sha256_of
from cliad.cache.folder import slug
from cliad.errors import CliadError
from cliad.pipelines.experiments.score import Result
from cliad.pipelines.experiments.spec import make_head
from cliad.pipelines.runs.card import card
from cliad.pipelines.runs.sets import is_thresholds, thresholds_of

SCHEMA = 1
# Bytes of run.json and of result.json: 100,000 class names take a quarter. What JSON becomes in
# memory may be thirty times as large.
LARGEST_JSON = 2**24
LARGEST_HEAD = 2**32  # bytes; 4,096 classes with keys of 16 shots of 4,096 features take a quarter
WIDEST = 2**20  # a larger width in run.json is damage: no encoder gives such features

# What each word of run.json must be. Beside them stand `schema` and `temperature` (a number or
# null), which have checks of their own, and `prompts` and `sets`, which may be missing.
KINDS: dict[str, type] = {
    "head": str,
    "hyper": dict,
    "logit_scale": float,
    "classnames": list,
    "templates": list,
    "fingerprint": str,
    "dim": int,
    "width": int,
    "parts": list,
    "dtype": str,
    "unit_rows": bool,
    "encoder": str,
    "encoder_id": str,
    "image_recipe": dict,
    "text_recipe": dict,
    "spec": dict,
    "head_sha256": str,
    "command": str,
}

# What reading a damaged folder may raise: wrong JSON, missing words, tensors that do not fit.
DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    RuntimeError,
    OverflowError,
    SafetensorError,
)


class RunFolderError(CliadError):
    """A run folder that cannot be written or read; the message says why."""


# ------------------------------------------------------------------------------------- writing


def folder_of(parent: Path, result: Result) -> Path:
    """Where a run is saved: the same spec has the same name, other specs have others."""
    spec = result.spec
    what = f"{slug(spec.dataset)}-{slug(spec.encoder)}-{slug(spec.head_name)}"
    return parent / f"{what}-{spec.shots}shot-seed{spec.seed}-{spec.key}"


def save(result: Result, cache: FeatureCache, out: Path, command: str = "") -> Path:
    """Write the run folder `out`, whole or not at all.

    An earlier run there is replaced, another kind of folder is not.

    Raises:
        RunFolderError: the place cannot be written, or holds something else; or the run cannot
            be saved.
    """
    if not can_save(result.classifier):
        raise RunFolderError(
            f"a run of {result.spec.head_name} is not saved: it asks the text tower for each image"
        )
    out = Path(out)
    check_out(out)
    try:
        with replacing(out) as new:
            new.mkdir()
            _write(result, cache, new, out.name, command)
    except OSError as error:
        raise _cannot_write(out, error) from None
    return out


def can_save(classifier: Classifier) -> bool:
    """Whether a classifier is made of tensors alone; one that asks the text tower is not."""
    return all(isinstance(value, Tensor) for value in classifier.c.values())


def check_out(out: Path) -> None:
    """Check, before anything is trained, that a run folder can be written to `out`.

    Raises:
        RunFolderError: the place cannot be written, or holds something else.
    """
    try:
        check_place(out)
        may_replace = _may_replace(out)
    except OSError as error:
        raise _cannot_write(out, error) from None
    # What is there may be a user's own folder: it is never replaced.
    if not may_replace:
        raise RunFolderError(f"{out} exists and is not a run folder; give another --out DIR")


def _cannot_write(out: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"cannot write {out}: {error.strerror or error}; give another folder with --out DIR"
    )


def _may_replace(out: Path) -> bool:
    """Whether nothing is lost: `out` is free, an earlier run, or an empty folder."""
    if not out.exists() or (out / "run.json").is_file():
        return True
    return out.is_dir() and not any(out.iterdir())


def _write(result: Result, cache: FeatureCache, folder: Path, name: str, command: str) -> None:
    head_file = folder / "head.safetensors"
    save_file(tensors_of(result.classifier), head_file)
    about = _about(result, cache)
    about["head_sha256"] = sha256_of(head_file)
    about["command"] = command
    row = result.row(name)
    # Nobody sees this order: the folder gets its name when all is written.
    _put_json(folder / "run.json", about)
    _put_json(folder / "result.json", row)
    (folder / "README.md").write_text(card(about, row), encoding="utf-8")


def tensors_of(classifier: Classifier) -> dict[str, Tensor]:
    """The tensors of head.safetensors: parameters as p.NAME, constants as c.NAME."""
    tensors = {}
    for name, value in classifier.p.items():
        tensors[f"p.{name}"] = value.cpu().contiguous()
    for name, value in classifier.c.items():
        tensors[f"c.{name}"] = value.cpu().contiguous()
    return tensors


def _about(result: Result, cache: FeatureCache) -> dict:
    """What run.json says, but for the hash of head.safetensors and the command."""
    parts = ["features", *result.classifier.head.columns()]
    return {
        "schema": SCHEMA,
        "head": result.spec.head_name,
        "hyper": result.hyper,
        "logit_scale": result.classifier.logit_scale,
        "classnames": cache.classnames,
        "templates": cache.templates,
        "prompts": cache.prompts,
        "fingerprint": cache.fingerprint,
        "dim": cache.dim,
        "parts": parts,
        "width": _width(cache, parts),
        "dtype": cache.dtype,
        "unit_rows": cache.unit_rows,
        "encoder": cache.encoder,
        "encoder_id": cache.attrs["encoder_id"],
        "image_recipe": cache.recipe,
        "text_recipe": cache.text_recipe,
        "temperature": result.test.temperature,
        "sets": _set_thresholds(result),
        "spec": result.spec.json(),
    }


def _set_thresholds(result: Result) -> list[float] | None:
    """See `thresholds_of`; None for a run that has not judged its images out of fold."""
    calibration = result.classifier.calibration
    if calibration is None:
        return None
    scores = calibration.scores.double().clamp(0, math.inf).tolist()
    return thresholds_of([min(score, 1.0) for score in scores if math.isfinite(score)])


def _width(cache: FeatureCache, parts: Sequence[str]) -> int:
    """The length of what the head takes: that of all parts of the encoder's output together."""
    width = 0
    for part in parts:
        column = cache.column("test", part)
        if column is None:
            raise ValueError(f"expected a cache with {part} in its test split, found none")
        width += math.prod(column.shape[1:])
    return width


def _put_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------- reading


def find_run(run: str | Path, parent: Path = Path("runs")) -> Path:
    """The run folder that a user means: a path, or `latest`, the newest one in `parent`.

    Raises:
        RunFolderError: there is none.
    """
    if str(run) != "latest" or Path(run).is_dir():
        return Path(run)
    newest_first = runs(parent)
    if not newest_first:
        raise RunFolderError(
            f"there is no run folder in {parent}{os.sep}; `cliad train` makes one, or give its path"
        )
    return newest_first[0]


def runs(parent: Path) -> list[Path]:
    """The run folders in `parent`, the newest first."""
    files = parent.glob("*/run.json")
    # A hidden folder is one that is being written, see `replacing`.
    folders = [file.parent for file in files if not file.parent.name.startswith(".")]
    return sorted(folders, key=_newest_first)


def _newest_first(folder: Path) -> tuple[int, str]:
    return -(folder / "run.json").stat().st_mtime_ns, folder.name


def load(folder: Path) -> tuple[Classifier, dict]:
    """The classifier of a run folder, and what run.json says. Nothing in the folder is run.

    Raises:
        RunFolderError: not a run folder, of another schema, or damaged.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise RunFolderError(
            f"{folder} is not a run folder: it has no run.json; `cliad train` makes run folders"
        )
    try:
        return _read(folder)
    except RunFolderError as error:
        raise RunFolderError(f"{folder}: {error}") from None
    except DAMAGE as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise RunFolderError(
            f"{folder} is damaged ({reason}); copy it again, or train it again"
        ) from None


def _read(folder: Path) -> tuple[Classifier, dict]:
    about = read_json(folder / "run.json", RunFolderError, largest=LARGEST_JSON)
    _check(about)
    # The bytes that are hashed are the bytes that are used: the file is read once.
    raw = read_bytes(folder / "head.safetensors", RunFolderError, largest=LARGEST_HEAD)
    if hashlib.sha256(raw).hexdigest() != about["head_sha256"]:
        raise ValueError("head.safetensors is not the file that run.json describes")
    tensors = read_tensors(raw)
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise ValueError(f"{name} in head.safetensors: expected numbers with a fraction")
        if not bool(torch.isfinite(value).all()):
            raise RunFolderError(
                f"{name} in head.safetensors: expected finite numbers; its training diverged, or"
                " the file is damaged: train it again, with a lower --lr where it diverged"
            )
    return _classifier(about, tensors), about


def _classifier(about: Mapping, tensors: Mapping[str, Tensor]) -> Classifier:
    """The classifier, tried on one row of zeros: its tensors fit each other and the classes."""
    # The same check of names and ranges as for what a user types.
    head = make_head(about["head"], about["hyper"])
    parameters = _named_after(tensors, "p.")
    constants = _named_after(tensors, "c.")
    classifier = Classifier(head, parameters, constants, float(about["logit_scale"]))
    shape = tuple(classifier.logits(torch.zeros(1, about["width"])).shape)
    if shape != (1, len(about["classnames"])):
        raise ValueError(
            f"the head gives {shape} logits for an image,"
            f" run.json names {len(about['classnames'])} classes"
        )
    return classifier


def _named_after(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    found = {}
    for key, value in tensors.items():
        if key.startswith(prefix):
            found[key.removeprefix(prefix)] = value
    return found


def _check(about: object) -> None:
    """Raise where run.json does not hold what it must.

    Raises:
        RunFolderError: run.json has another schema.
        ValueError, TypeError, KeyError: it is damaged.
    """
    if not isinstance(about, dict):
        raise ValueError("run.json has no schema number")
    schema = about.get("schema")
    # True is a number to Python.
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise ValueError("run.json has no schema number")
    # Before all else: a newer version may have other words.
    if schema > SCHEMA:
        raise RunFolderError(
            f"it is of a newer version of cliad (it has schema {str(schema)[:20]}, this cliad reads"
            f" {SCHEMA}); update cliad"
        )
    # A missing word is a KeyError, which `load` reports with the word.
    for name, kind in KINDS.items():
        if not _is_of_kind(about[name], kind):
            got = type(about[name]).__name__
            raise TypeError(f"{name} in run.json: expected {kind.__name__}, got {got}")
    for name in ("classnames", "templates"):
        if not all(isinstance(value, str) for value in about[name]):
            raise TypeError(f"{name} in run.json holds other things than text")
    _check_numbers(about)


def _check_numbers(about: Mapping) -> None:
    temperature = about["temperature"]
    # Beyond what is ever fitted, probabilities would be equal for all classes, or not numbers.
    if temperature is not None and not (
        _is_positive(temperature)
        and LOWEST_TEMPERATURE / 10 <= temperature <= 10 * HIGHEST_TEMPERATURE
    ):
        raise ValueError(
            f"temperature in run.json: expected a number from {LOWEST_TEMPERATURE / 10:g} to"
            f" {10 * HIGHEST_TEMPERATURE:g}, or null; got {str(temperature)[:20]}"
        )
    if not is_thresholds(about.get("sets")):
        raise ValueError("sets in run.json: expected 50 ascending numbers from 0 to 1, or null")
    # They are put side by side in this order: features first.
    parts = about["parts"]
    if parts != ["features", *(name for name in COLUMNS if name in parts)]:
        raise ValueError(
            f"parts in run.json: expected features, and of {', '.join(COLUMNS)} those that the head"
            f" needs, got {str(parts)[:40]}"
        )
    if about["dtype"] not in ("float16", "float32"):
        raise ValueError(f"invalid dtype in run.json: {about['dtype'][:40]}")
    # Without a limit, the try on one row of zeros could fill the memory.
    if not 0 < about["dim"] <= about["width"] <= WIDEST:
        raise ValueError(f"invalid width in run.json: {about['width']} with dim {about['dim']}")
    if not _is_positive(about["logit_scale"]):
        raise ValueError(f"invalid logit_scale in run.json: {about['logit_scale']}")
    if not about["classnames"]:
        raise ValueError("invalid classnames in run.json: there are none")


def _is_of_kind(value: object, kind: type) -> bool:
    """Whether a value of JSON is of a type; true and false are numbers to Python, but not here."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _is_positive(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0

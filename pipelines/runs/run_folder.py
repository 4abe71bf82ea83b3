"""The run folder: a trained head that travels. Safetensors, JSON and Markdown, nothing that runs when it is loaded.

head.safetensors   parameters "p.NAME" and constants "c.NAME" of the head, each (1, ...)
run.json           schema, head and its hyper-parameters, logit_scale, class names, templates, encoder recipe (weights as a hash,
                       preprocessing), fingerprint, spec, temperature, the hash of head.safetensors, and the command that made it
result.json        the result row
README.md          a card for people
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save_file

from cliad.adapters.core.classifier import Classifier
from cliad.cache.file.read import FeatureCache
from cliad.cache.files import replacing
from cliad.cache.folder import slug
from cliad.errors import CliadError
from cliad.pipelines.experiments.score import Result
from cliad.pipelines.experiments.spec import make_head
from cliad.pipelines.runs.card import card

SCHEMA = 1


class RunFolderError(CliadError):
    """A run folder that cannot be written or read; the message says why."""


def folder_of(parent: Path, result: Result) -> Path:
    """Where a run is saved: the same spec has the same name, other specs have others."""
    spec = result.spec
    return (
        parent
        / f"{slug(spec.dataset)}-{slug(spec.encoder)}-{slug(spec.head_name)}-{spec.shots}shot-seed{spec.seed}-{spec.key}"
    )


def save(result: Result, cache: FeatureCache, out: Path, command: str = "") -> Path:
    """Write the run folder `out`, whole or not at all; an earlier run there is replaced, another kind of folder is not.

    Raises:
        RunFolderError: the place cannot be written, or holds something else.
    """
    out = Path(out)
    if (
        out.exists()
        and not (out / "run.json").is_file()
        and (not out.is_dir() or any(out.iterdir()))
    ):
        raise RunFolderError(f"{out} exists and is no run folder; give another --out DIR")
    try:
        with replacing(out) as new:
            new.mkdir()
            _write(result, cache, new, out.name, command)
    except OSError as error:
        raise RunFolderError(
            f"cannot write {out}: {error.strerror or error}; give another folder with --out DIR"
        ) from None
    return out


def _write(result: Result, cache: FeatureCache, folder: Path, name: str, command: str) -> None:
    classifier = result.classifier
    tensors = {f"p.{key}": value for key, value in classifier.p.items()} | {
        f"c.{key}": value for key, value in classifier.c.items()
    }
    save_file(
        {key: value.cpu().contiguous() for key, value in tensors.items()},
        folder / "head.safetensors",
    )
    about = _about(result, cache) | {
        "head_sha256": _sha256(folder / "head.safetensors"),
        "command": command,
    }
    _put_json(folder / "run.json", about)
    _put_json(folder / "result.json", result.row(name))
    (folder / "README.md").write_text(card(about, result.row(name)), encoding="utf-8")


def _about(result: Result, cache: FeatureCache) -> dict:
    about = {
        "schema": SCHEMA,
        "head": result.spec.head_name,
        "hyper": result.hyper,
        "logit_scale": result.classifier.logit_scale,
    }
    about |= {
        "classnames": cache.classnames,
        "templates": cache.templates,
        "prompts": cache.prompts,
        "fingerprint": cache.fingerprint,
    }
    parts = [
        "features",
        *(["pre_projection"] if "pre_projection" in result.classifier.head.needs else []),
    ]
    about |= {
        "dim": cache.dim,
        "parts": parts,
        "width": sum(cache.column("test", part).shape[-1] for part in parts),
        "dtype": cache.dtype,
        "unit_rows": cache.unit_rows,
    }
    about |= {"encoder": cache.encoder, "encoder_id": cache.attrs["encoder_id"]}
    about |= {"image_recipe": cache.recipe, "text_recipe": cache.text_recipe}
    return about | {"temperature": result.test.temperature, "spec": result.spec.json()}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _put_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------- reading


def find_run(run: str | Path, parent: Path = Path("runs")) -> Path:
    """The run folder that a user means: a path, or `latest`, the newest one in `parent`.

    Raises:
        RunFolderError: there is none.
    """
    if str(run) != "latest" or Path(run).is_dir():
        return Path(run)
    if not (found := runs(parent)):
        raise RunFolderError(
            f"there is no run folder in {parent}{os.sep}; `cliad train` makes one, or give its path"
        )
    return found[0]


def runs(parent: Path) -> list[Path]:
    """The run folders in `parent`, the newest first."""
    found = [
        file.parent for file in parent.glob("*/run.json") if not file.parent.name.startswith(".")
    ]
    return sorted(
        found, key=lambda folder: (-(folder / "run.json").stat().st_mtime_ns, folder.name)
    )


def load(folder: Path) -> tuple[Classifier, dict]:
    """The classifier of a run folder, and what run.json says. Nothing in the folder is run.

    Raises:
        RunFolderError: not a run folder, of another schema, or damaged.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise RunFolderError(
            f"{folder} is no run folder: it has no run.json; `cliad train` makes run folders"
        )
    try:
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        _check(about)
        raw = (folder / "head.safetensors").read_bytes()
        if hashlib.sha256(raw).hexdigest() != about["head_sha256"]:
            raise ValueError("head.safetensors is not the file that run.json describes")
        return _classifier(about, read_tensors(raw)), about
    except RunFolderError as error:
        raise RunFolderError(f"{folder}: {error}") from None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RuntimeError,
        OverflowError,
        SafetensorError,
    ) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise RunFolderError(
            f"{folder} is damaged ({reason}); copy it again, or train it again"
        ) from None


def _classifier(about: Mapping, tensors: Mapping) -> Classifier:
    part = lambda start: {
        key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)
    }
    head = make_head(about["head"], about["hyper"])
    classifier = Classifier(head, part("p."), part("c."), float(about["logit_scale"]))
    shape = tuple(classifier.logits(torch.zeros(1, about["width"])).shape)
    if shape != (1, len(about["classnames"])):
        raise ValueError(
            f"the head gives {shape} logits for an image, run.json names {len(about['classnames'])} classes"
        )
    return classifier


KINDS = {
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


def _check(about) -> None:
    """Raise where run.json does not hold what it must; a RunFolderError where it is another schema's."""
    if not isinstance(about, dict) or not isinstance(about.get("schema"), int):
        raise ValueError("run.json says no schema")
    if about["schema"] != SCHEMA:
        raise RunFolderError(
            f"it has schema {about['schema']}, this cliad reads {SCHEMA}; update cliad, or train it again"
        )
    for name, kind in KINDS.items():
        if not isinstance(about[name], kind):
            raise TypeError(f"{name} in run.json is no {kind.__name__}")
    for name in ("classnames", "templates"):
        if not all(isinstance(value, str) for value in about[name]):
            raise TypeError(f"{name} in run.json holds other things than text")
    t = about["temperature"]
    if t is not None and not (isinstance(t, float) and math.isfinite(t) and t > 0):
        raise ValueError(f"temperature in run.json is no positive number: {str(t)[:20]}")
    if about["parts"] not in (["features"], ["features", "pre_projection"]):
        raise ValueError(
            f"run.json wants parts of an encoder that there are not: {str(about['parts'])[:60]}"
        )
    if (
        about["dtype"] not in ("float16", "float32")
        or not 0 < about["dim"] <= about["width"] <= 2**20
        or not about["classnames"]
    ):
        raise ValueError("dtype, width or classnames in run.json cannot be")

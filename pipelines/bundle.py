"""The run folder: a trained head that travels. Safetensors and JSON, nothing that runs when it is loaded.

head.safetensors   parameters "p.NAME" and constants "c.NAME" of the head, each (1, ...)
run.json           schema, head and its hyper-parameters, logit_scale, class names, templates, encoder recipe, fingerprint, spec,
                       and the command that made it
result.json        the result row
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cliad.adapters.optimise import Classifier
from cliad.cache.folder import slug
from cliad.cache.store import FeatureCache
from cliad.pipelines.train import Result, make_head

SCHEMA = 1


class BundleError(ValueError):
    """A run folder that cannot be written or read; the message says why."""


def run_folder(parent: Path, result: Result) -> Path:
    """Where a run is saved: the same spec has the same name, other specs have others."""
    spec = result.spec
    return parent / f"{slug(spec.dataset)}-{slug(spec.encoder)}-{slug(spec.head)}-{spec.shots}shot-seed{spec.seed}-{spec.key}"


def save(result: Result, cache: FeatureCache, out: Path, command: str = "") -> Path:
    """Write the run folder `out`, whole or not at all; an earlier run there is replaced, another kind of folder is not.

    Raises:
        BundleError: the place cannot be written, or holds something else.
    """
    out = Path(out)
    if out.exists() and not (out / "run.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out} exists and is no run folder; give another --out DIR")
    new = out.with_name(f"{out.name}.new{os.getpid()}")
    try:
        new.mkdir(parents=True)
        _write(result, cache, new, out.name, command)
        shutil.rmtree(out, ignore_errors=True)
        new.rename(out)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise BundleError(f"cannot write {out}: {error.strerror or error}; give another folder with --out DIR") from None
    return out


def _write(result: Result, cache: FeatureCache, folder: Path, name: str, command: str) -> None:
    classifier = result.classifier
    tensors = {f"p.{key}": value for key, value in classifier.p.items()} | {f"c.{key}": value for key, value in classifier.c.items()}
    save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, folder / "head.safetensors")
    about = {"schema": SCHEMA, "head": result.spec.head, "hyper": result.values["found"], "logit_scale": classifier.logit_scale}
    about |= {"classnames": cache.classnames, "templates": cache.templates, "dtype": cache.dtype, "fingerprint": cache.fingerprint}
    about |= {
        "encoder": cache.encoder,
        "encoder_id": cache.attrs["encoder_id"],
        "image_recipe": cache.recipe,
        "text_recipe": cache.text_recipe,
    }
    _put_json(folder / "run.json", about | {"temperature": result.values["temperature"], "spec": result.spec.json(), "command": command})
    _put_json(folder / "result.json", result.row(name))


def _put_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[Classifier, dict]:
    """The classifier of a run folder, and what run.json says.

    Raises:
        BundleError: not a run folder, of a newer schema, or damaged.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise BundleError(f"{folder} is no run folder: it has no run.json; `cliad train` makes run folders")
    try:
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if about["schema"] != SCHEMA:
            raise BundleError(f"{folder} has schema {about['schema']}, this cliad reads {SCHEMA}; update cliad")
        tensors = load_file(folder / "head.safetensors")
        part = lambda start: {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        return Classifier(make_head(about["head"], about["hyper"]), part("p."), part("c."), about["logit_scale"]), about
    except BundleError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BundleError(f"{folder} is damaged ({type(error).__name__}: {str(error)[:80]}); train it again") from None

"""`cliad export` of a run: the trained head for other programs.

safetensors  one file: the tensors of the run folder, what run.json says as JSON in its metadata
onnx         features (n, dim) -> logits, probabilities (n, n_class); with the encoder: pixels (n, 3, height, width) uint8,
             resized and cropped as the metadata's preprocessing says -> the same
npz          for heads that are linear: weights (n_class, dim) and bias (n_class,), to use in place of zero-shot text weights
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cliad.adapters.core.classifier import hypers
from cliad.errors import CliadError
from cliad.pipelines.runs.predict import SavedRun, load

LARGEST = 1.8e9  # bytes of weights that fit into one ONNX file; more go to a second file beside it


class ExportError(CliadError):
    """A run that cannot be written in the form asked; the message says why and what can be done."""


def is_run(source: Path) -> bool:
    """Whether `cliad export SOURCE` means a run: a folder, or the word latest."""
    return source.is_dir() or (str(source) == "latest" and not source.exists())


def export_run(
    run: str | Path,
    *,
    format: str,
    out: Path,
    with_encoder: bool = False,
    model: str | None = None,
    pretrained: str | None = None,
    force: bool = False,
) -> list[Path]:
    """Write a saved run as `format` (one of FORMATS) to the file `out`; return what was written.

    Args:
        run: a run folder, or `latest`.
        with_encoder: onnx only: the image encoder too, so that the file takes pixels.
        model, pretrained: that encoder, where it is not the one that run.json names; it is checked all the same.
        force: replace a file that is there.
    Raises:
        ExportError: unknown format, a head that has no such form, `out` is there already; nothing is written.
        RunFolderError, PredictError, EncoderError: the run, or its encoder.
    """
    loaded, out = load(run), Path(out)
    if format not in FORMATS:
        raise ExportError(f"unknown format '{format}' for a run; known are {', '.join(FORMATS)}")
    if with_encoder and format != "onnx":
        raise ExportError(f"--with-encoder is for --format onnx; {format} holds the head alone")
    if out.is_dir() or (out.exists() and not force):
        raise ExportError(
            f"{out} exists; give another --out PATH{'' if out.is_dir() else ', or --force to replace it'}"
        )
    if with_encoder and loaded.about["parts"] != ["features"]:
        raise ExportError(
            f"{loaded.about['head']} takes features before the projection too; export it without --with-encoder"
        )
    tower = (
        loaded.encoder(model=model, pretrained=pretrained, device="cpu") if with_encoder else None
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            _onnx(loaded, new / out.name, tower) if format == "onnx" else FORMATS[format](
                loaded, new / out.name
            )
            written = sorted(new.iterdir(), reverse=True)
            for file in written:
                os.replace(file, out.with_name(file.name))
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise ExportError(
            f"cannot write {out}: {error.strerror or error}; give another --out PATH"
        ) from None
    return sorted(out.with_name(file.name) for file in written)


def _facts(run: SavedRun) -> dict[str, str]:
    """What a file says of itself, as text."""
    about = run.about
    facts = {
        name: about[name]
        for name in (
            "classnames",
            "head",
            "hyper",
            "encoder",
            "encoder_id",
            "fingerprint",
            "logit_scale",
        )
    }
    recipe = about["image_recipe"].get("encoder")
    facts |= {
        "temperature": about["temperature"],
        "preprocess": recipe.get("preprocess") if isinstance(recipe, dict) else None,
    }
    return {
        f"cliad.{name}": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in facts.items()
    }


def _safetensors(run: SavedRun, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {f"p.{key}": value for key, value in run.classifier.p.items()} | {
        f"c.{key}": value for key, value in run.classifier.c.items()
    }
    save_file(
        {key: value.contiguous() for key, value in tensors.items()},
        path,
        metadata=_facts(run) | {"run.json": json.dumps(run.about)},
    )


def _npz(run: SavedRun, path: Path) -> None:
    weights, bias = linear_form(run)
    scale = float(run.about["logit_scale"])
    arrays = {
        "text": weights / scale,
        "bias": bias,
        "logit_scale": np.array(scale),
        "classnames": np.array(run.classnames, dtype=str),
    }
    arrays |= {
        "temperature": np.array(run.about["temperature"] or 1.0),
        "fingerprint": np.array(run.about["fingerprint"]),
    }
    arrays["input"] = np.array(
        "raw" if "raw" in run.classifier.head.needs and not run.about["unit_rows"] else "unit"
    )
    with open(path, "wb") as stream:
        np.savez(stream, **arrays)


def linear_form(run: SavedRun) -> tuple[np.ndarray, np.ndarray]:
    """weights (n_class, dim) and bias (n_class,), with logits = weights x + bias for unit x (raw x for a head that needs raw ones).

    Found by asking the head: its logits on the axes, then compared on other rows.
    Raises:
        ExportError: the head is not linear.
    """
    dim, ask = run.about["width"], lambda x: run.classifier.logits(x).double()
    above, below = ask(torch.eye(dim)), ask(-torch.eye(dim))
    weights, bias = (above - below).T / 2, ((above + below) / 2).mean(dim=0)
    x = F.normalize(torch.randn(64, dim, generator=torch.Generator().manual_seed(0)), dim=-1)
    given, linear = ask(x), x.double() @ weights.T + bias
    if not torch.isfinite(given).all() or (
        given - linear
    ).abs().max() > 1e-4 * given.abs().max().clamp(min=1):
        raise ExportError(
            f"{run.about['head']} is not linear in the image feature, so it has no class weights; use --format onnx or safetensors"
        )
    return weights.float().numpy(), bias.float().numpy()


# ------------------------------------------------------------------------------------------------------------- onnx


class _Whole(nn.Module):
    """A head, and before it the encoder if there is one: what `SavedRun.logits` computes, as one graph."""

    def __init__(self, run: SavedRun, tower: nn.Module | None):
        super().__init__()
        self.tower, self.run = tower, run
        classifier = run.classifier
        h = hypers([classifier.head], torch.zeros(1))
        self.parts = {"p": classifier.p, "c": classifier.c, "h": h}
        for kind, tensors in self.parts.items():
            for name, value in tensors.items():
                self.register_buffer(f"{kind}_{name}", value.contiguous())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x if self.tower is None else self.tower(x)
        x = x.to(getattr(torch, self.run.about["dtype"])).float()
        head = self.run.classifier.head
        x = x if "raw" in head.needs and not self.run.about["unit_rows"] else F.normalize(x, dim=-1)
        p, c, h = (
            {name: getattr(self, f"{kind}_{name}") for name in tensors}
            for kind, tensors in self.parts.items()
        )
        logits = head.logits(p, c, h, x[None])[0]
        return logits, (logits / (self.run.about["temperature"] or 1)).softmax(dim=-1)


def _onnx(run: SavedRun, path: Path, encoder=None) -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(
            f"writing ONNX needs {error.name}, which is not installed; run: pip install 'cliad[onnx]'"
        ) from None
    module = _Whole(run, None if encoder is None else encoder.image_tower()).eval()
    generator = torch.Generator().manual_seed(0)
    if encoder is None:
        draw: Callable[[int], Tensor] = lambda n: torch.randn(
            n, run.about["width"], generator=generator
        )
    else:
        size = tuple(encoder.preprocess_size)
        draw = lambda n: torch.randint(
            0, 256, (n, 3, *size), generator=generator, dtype=torch.uint8
        )
    name = "features" if encoder is None else "pixels"
    with warnings.catch_warnings(), torch.no_grad(), _no_log():
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        shapes = ({0: torch.export.Dim("n")},)
        options = {
            "input_names": [name],
            "output_names": ["logits", "probabilities"],
            "dynamic_shapes": shapes,
            "verbose": False,
        }
        try:
            program = torch.onnx.export(module, (draw(2),), dynamo=True, **options)
        except Exception as error:  # the exporter raises its own kinds, of many modules
            reason = " ".join(str(error).split())[:160]
            raise ExportError(
                f"{run.about['head']} cannot be written as ONNX by this torch ({reason}); use --format safetensors"
            ) from None
    program.model.metadata_props.update(_facts(run))
    program.save(
        str(path), external_data=sum(x.nbytes for x in module.state_dict().values()) > LARGEST
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for n in (1, 3):
        x = draw(n)
        with torch.no_grad():
            there, here = session.run(None, {name: x.numpy()})[1], module(x)[1].numpy()
        if not np.allclose(there, here, atol=2e-3):
            raise ExportError(
                f"ONNX Runtime and PyTorch disagree by {abs(there - here).max():.3g} in a probability; nothing was written"
            )


@contextmanager
def _no_log() -> Iterator[None]:
    """The exporter logs what it is about; only what fails is news."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


FORMATS = {"safetensors": _safetensors, "onnx": _onnx, "npz": _npz}

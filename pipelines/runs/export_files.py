"""A run as one safetensors file, and a linear head as plain class weights in an npz file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch.nn import functional as F

from cliad.adapters.core.classifier import linear_map
from cliad.errors import CliadError
from cliad.pipelines.runs.predict import SavedRun
from cliad.pipelines.runs.run_encoder import preprocess_of
from cliad.pipelines.runs.run_folder import tensors_of

# Words of run.json that an exported file repeats in its metadata.
FACTS = (
    "classnames",
    "head",
    "hyper",
    "encoder",
    "encoder_id",
    "fingerprint",
    "logit_scale",
    "temperature",
)
ROWS_TRIED = 64  # random features on which a linear form is compared with its head
LINEAR_TOLERANCE = 1e-4  # of the largest logit: float32 sums over a thousand terms differ less


class ExportError(CliadError):
    """A run that cannot be written in the form asked for."""


def metadata_of(saved: SavedRun) -> dict[str, str]:
    """What a file says of itself: text as it is, all else as JSON."""
    facts = {name: saved.about[name] for name in FACTS}
    facts["preprocess"] = preprocess_of(saved.about["image_recipe"].get("encoder"))
    metadata = {}
    for name, value in facts.items():
        is_text = isinstance(value, str)
        metadata[f"cliad.{name}"] = value if is_text else json.dumps(value, ensure_ascii=False)
    return metadata


def write_safetensors(saved: SavedRun, path: Path) -> None:
    """The tensors of the run folder, with run.json in the metadata."""
    metadata = metadata_of(saved)
    metadata["run.json"] = json.dumps(saved.about)
    # Not by save_file, which writes beside the path, and leaves that file there when killed.
    path.write_bytes(save(tensors_of(saved.classifier), metadata=metadata))


def write_npz(saved: SavedRun, path: Path) -> None:
    """`text` and `bias`, with logits = logit_scale * x @ text.T + bias.

    Raises:
        ExportError: the head is not linear.
    """
    linear = linear_form(saved)
    scale = float(saved.about["logit_scale"])
    with open(path, "wb") as stream:  # np.savez would add .npz to a path
        np.savez(
            stream,
            text=linear.weights / scale,
            bias=linear.bias,
            logit_scale=np.array(scale),
            classnames=np.array(saved.classnames, dtype=str),
            temperature=np.array(saved.about["temperature"] or 1.0),
            fingerprint=np.array(saved.about["fingerprint"]),
            input=np.array("raw" if takes_raw_rows(saved) else "unit"),
        )


def takes_raw_rows(saved: SavedRun) -> bool:
    """Whether the head sees features as the encoder gives them, not made unit rows first."""
    return "raw" in saved.classifier.head.needs and not saved.about["unit_rows"]


class LinearForm(NamedTuple):
    """weights (n_class, dim) and bias (n_class,), with logits = weights x + bias."""

    weights: np.ndarray
    bias: np.ndarray


def linear_form(saved: SavedRun) -> LinearForm:
    """The class weights of a linear head, for unit x (raw x for a head that needs raw ones).

    Raises:
        ExportError: the head is not linear.
    """
    width = saved.about["width"]
    maps, biases = linear_map([saved.classifier], torch.eye(width))
    weights = maps[0].double()  # (n_class, dim)
    bias = biases[0].double()  # (n_class,)
    # Every head has such W and b; only a linear one follows them elsewhere.
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(ROWS_TRIED, width, generator=generator), dim=-1)
    expected = saved.classifier.logits(x).double()  # (n, n_class)
    difference = (expected - x.double() @ weights.T - bias).abs().max()
    tolerance = LINEAR_TOLERANCE * expected.abs().max().clamp(min=1)
    if not torch.isfinite(expected).all() or difference > tolerance:
        raise ExportError(
            f"{saved.about['head']} is not linear in the image feature,"
            " so it has no class weights; use --format onnx or safetensors"
        )
    return LinearForm(weights.float().numpy(), bias.float().numpy())

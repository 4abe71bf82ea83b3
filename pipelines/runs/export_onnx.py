"""A run as an ONNX graph, alone or with its image encoder; tried in ONNX Runtime first."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cliad.adapters.core.episode import Tensors
from cliad.adapters.core.head import Hypers, hypers
from cliad.cache.files import beside, replacing
from cliad.pipelines.runs.export_files import ExportError, metadata_of, takes_raw_rows
from cliad.pipelines.runs.predict import SavedRun

if TYPE_CHECKING:
    from cliad.cache.encoders.clip import Clip

LARGEST = 1.8e9  # bytes of weights that fit into one ONNX file; more go to a second file beside it
BATCHES_TRIED = (1, 3)  # rows: the graph must work for another number than the one it was made with
TOLERANCE = 2e-3  # of a probability, between ONNX Runtime and PyTorch


class _Graph(nn.Module):
    """What `SavedRun.logits` and `probabilities` compute, after the encoder if there is one.

    The head's tensors are buffers named p_NAME and c_NAME, as an exporter needs them.
    """

    def __init__(self, saved: SavedRun, tower: nn.Module | None):
        super().__init__()
        self.tower = tower
        self.head = saved.classifier.head
        self.dtype = getattr(torch, saved.about["dtype"])
        self.raw = takes_raw_rows(saved)
        self.temperature = saved.about["temperature"] or 1
        self.h_host = hypers([self.head], torch.zeros(1)).host  # one value per run: here one run
        self.names = {
            "p": self._register("p", saved.classifier.p),
            "c": self._register("c", saved.classifier.c),
        }

    def _register(self, kind: str, tensors: Tensors) -> list[str]:
        for name, value in tensors.items():
            self.register_buffer(f"{kind}_{name}", value.contiguous())
        return list(tensors)

    def _tensors(self, kind: str) -> Tensors:
        return {name: getattr(self, f"{kind}_{name}") for name in self.names[kind]}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities, each (n, n_class), of features (n, dim) or of pixels."""
        if self.tower is not None:
            x = self.tower(x)
        x = x.to(self.dtype).float()  # as the cache rounded its own features
        if not self.raw:
            x = F.normalize(x, dim=-1)
        p = self._tensors("p")
        c = self._tensors("c")
        h = Hypers(self.h_host, x)
        logits = self.head.logits(p, c, h, x[None])[0]  # the first axis is the run's
        return logits, (logits / self.temperature).softmax(dim=-1)


class _Examples:
    """Random inputs of the graph, the next ones at each call: features, or pixels."""

    def __init__(self, width: int, size: tuple[int, int] | None):
        self.width = width
        self.size = size
        self.generator = torch.Generator().manual_seed(0)

    def take(self, n: int) -> Tensor:
        if self.size is None:
            return torch.randn(n, self.width, generator=self.generator)
        shape = (n, 3, *self.size)
        return torch.randint(0, 256, shape, generator=self.generator, dtype=torch.uint8)


def write_onnx(saved: SavedRun, out: Path, encoder: Clip | None) -> list[Path]:
    """Write the head, with an encoder the whole way from pixels, as ONNX; the files written.

    Raises:
        ExportError: a package is missing, this torch cannot export the head, or ONNX Runtime gives
            other probabilities; nothing is written.
        OSError: the place cannot be written.
    """
    _require_packages()
    tower = None if encoder is None else encoder.image_tower()
    size = None if encoder is None else encoder.preprocess_size
    graph = _Graph(saved, tower).eval()
    examples = _Examples(saved.about["width"], size)
    name = "features" if encoder is None else "pixels"
    program = _exported(graph, examples, name, saved.about["head"])
    program.model.metadata_props.update(metadata_of(saved))
    n_bytes = sum(tensor.nbytes for tensor in graph.state_dict().values())
    if n_bytes > LARGEST:
        return _write_two(program, graph, examples, name, out)
    with replacing(out) as new:
        program.save(str(new), external_data=False)
        _compare(new, graph, examples, name)
    return [out]


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(
            f"writing ONNX needs {error.name}, which is not installed;"
            " run: pip install 'cliad[onnx]'"
        ) from None


def _exported(graph: _Graph, examples: _Examples, name: str, head: str) -> torch.onnx.ONNXProgram:
    """The graph in ONNX, for any number of rows."""
    with warnings.catch_warnings(), torch.no_grad(), _no_log():
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        try:
            program = torch.onnx.export(
                graph,
                # Two rows: a batch of one would be taken for a constant.
                (examples.take(2),),
                dynamo=True,
                input_names=[name],
                output_names=["logits", "probabilities"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                verbose=False,
            )
        except Exception as error:  # the exporter raises its own kinds, of many modules
            reason = " ".join(str(error).split())[:160]
            raise ExportError(
                f"{head} cannot be written as ONNX by this torch ({reason});"
                " use --format safetensors"
            ) from None
    if program is None:
        raise ExportError(f"this torch gives no ONNX of {head}; use --format safetensors")
    return program


def _write_two(
    program: torch.onnx.ONNXProgram, graph: _Graph, examples: _Examples, name: str, out: Path
) -> list[Path]:
    """Write the graph and, beside it, its weights, which are too large for one file.

    The graph names the file of its weights, so both are written under their own names in a folder
    and moved when they are good; the weights first, since the graph is of no use without them.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with beside(out) as folder:
        folder.mkdir()
        program.save(str(folder / out.name), external_data=True)
        _compare(folder / out.name, graph, examples, name)
        written = []
        for file in sorted(folder.iterdir(), reverse=True):  # NAME.data stands before NAME
            os.replace(file, out.with_name(file.name))
            written.append(out.with_name(file.name))
        return sorted(written)


def _compare(path: Path, graph: _Graph, examples: _Examples, name: str) -> None:
    """ExportError where ONNX Runtime gives other probabilities than PyTorch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for n in BATCHES_TRIED:
        x = examples.take(n)
        # Probabilities have one scale whatever the logit scale, so one tolerance fits all heads.
        _, there = session.run(None, {name: x.numpy()})
        with torch.no_grad():
            _, here = graph(x)
        difference = np.abs(there - here.numpy()).max()
        if not np.allclose(there, here.numpy(), atol=TOLERANCE):
            raise ExportError(
                f"ONNX Runtime and PyTorch disagree by {difference:.3g} in a probability;"
                " nothing was written"
            )


@contextmanager
def _no_log() -> Iterator[None]:
    """The exporter logs what it does; only what fails is news."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)

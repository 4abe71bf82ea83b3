"""`cliad export` of a run: the trained head for other programs.

safetensors  one file: the tensors of the run folder, what run.json says as JSON in its metadata
onnx         features (n, width) -> logits, probabilities (n, n_class); with the encoder: pixels
             (n, 3, height, width) uint8, resized and cropped as the metadata's preprocessing says
npz          for heads that are linear: `text` (n_class, width), to use in place of zero-shot's
             class weights, and `bias` (n_class,)
"""

from __future__ import annotations

from pathlib import Path

from cliad.cache.files import replacing
from cliad.pipelines.runs.export_files import ExportError, write_npz, write_safetensors
from cliad.pipelines.runs.export_onnx import write_onnx
from cliad.pipelines.runs.predict import SavedRun, load

FORMATS = ("safetensors", "onnx", "npz")


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
    """Write a saved run as `format` (one of FORMATS) to the file `out`.

    Args:
        run: a run folder, or `latest`.
        with_encoder: onnx only: the image encoder too, so that the file takes pixels.
        model, pretrained: that encoder, where it is not the one that run.json names; it is checked
            all the same.
        force: replace a file that is there.

    Returns:
        The files that were written.

    Raises:
        ExportError: unknown format, a head that has no such form, or `out` exists; nothing is
            written.
        RunFolderError, PredictError, EncoderError: the run, or its encoder.
    """
    saved = load(run)
    out = Path(out)
    # All refusals come before the encoder is loaded, which may take a minute.
    _check_request(saved, format, with_encoder)
    _check_place(out, force)
    encoder = None
    if with_encoder:
        encoder = saved.encoder(model=model, pretrained=pretrained, device="cpu")
    try:
        if format == "onnx":
            return write_onnx(saved, out, encoder)
        write = write_npz if format == "npz" else write_safetensors
        with replacing(out) as new:
            write(saved, new)
    except OSError as error:
        raise ExportError(
            f"cannot write {out}: {error.strerror or error}; give another --out PATH"
        ) from None
    return [out]


def _check_request(saved: SavedRun, format: str, with_encoder: bool) -> None:
    if format not in FORMATS:
        raise ExportError(f"unknown format '{format}' for a run; known are {', '.join(FORMATS)}")
    if with_encoder and format != "onnx":
        raise ExportError(f"--with-encoder is for --format onnx; {format} holds the head alone")
    if with_encoder and saved.about["parts"] != ["features"]:
        raise ExportError(
            f"{saved.about['head']} takes {' and '.join(saved.about['parts'][1:])} beside features,"
            " which the exported encoder does not give; export it without --with-encoder"
        )
    if format == "npz" and saved.about["parts"] != ["features"]:
        raise ExportError(
            f"{saved.about['head']} takes {' and '.join(saved.about['parts'][1:])} beside features,"
            " so it has no class weights; use --format onnx or safetensors"
        )


def _check_place(out: Path, force: bool) -> None:
    if out.is_dir():
        raise ExportError(f"{out} is a folder; give another --out PATH")
    if out.exists() and not force:
        raise ExportError(f"{out} exists; give another --out PATH, or --force to replace it")

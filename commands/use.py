"""A trained head in use: predict, serve."""

from __future__ import annotations

import os
import sys

import typer

from cliad.commands import show
from cliad.commands.options import (
    BatchAdaptOption,
    CacheOption,
    CsvOption,
    DeviceOption,
    FirstRunArgument,
    HostOption,
    ImagesArgument,
    JsonOption,
    PortOption,
    PredictBatchOption,
    RunArgument,
    RunModelOption,
    RunPretrainedOption,
    ServeDataOption,
    SetsOption,
    TopOption,
    WorkersOption,
)
from cliad.imports import quick_imports


def predict(
    run: RunArgument,
    images: ImagesArgument,
    top: TopOption = 5,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    model: RunModelOption = None,
    pretrained: RunPretrainedOption = None,
    batch: PredictBatchOption = 32,
    workers: WorkersOption = None,
    batch_adapt: BatchAdaptOption = False,
    sets: SetsOption = None,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Classify images with a trained head; an image that cannot be read is named and stops nothing.

    Exit code 0 where at least one image was classified, 1 where none was.

    Example: cliad predict latest photos/ --top 3
    """
    with quick_imports():
        # It would come with the run's encoder, and brings open_clip, which takes longest.
        from cliad.cache.encoders import clip as clip
        from cliad.pipelines.runs.predict import predict as run_predict

    # Checked before the encoder is loaded, which takes seconds.
    if as_json and as_csv:
        raise typer.BadParameter("--json or --csv, not both")
    predictions = run_predict(
        run,
        images,
        top=top,
        model=model,
        pretrained=pretrained,
        batch=batch,
        workers=workers,
        device=device,
        batch_adapt=batch_adapt,
        caches=cache,
        sets=sets,
        log=_no_log if as_json or as_csv else show.log,
    )
    if as_json:
        classified = show.print_predictions_as_json(predictions)
    elif as_csv:
        classified = show.print_predictions_as_csv(predictions)
    else:
        classified = show.print_predictions(predictions)
    # One broken image among many is no reason for a script to stop; none classified is.
    raise typer.Exit(0 if classified else 1)


def _no_log(message: str) -> None:
    """For output that a program reads: the only other lines are errors."""


def serve(
    run: FirstRunArgument = "latest",
    port: PortOption = 8000,
    host: HostOption = "127.0.0.1",
    model: RunModelOption = None,
    pretrained: RunPretrainedOption = None,
    data: ServeDataOption = None,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Open a local page: drop images on it, see what a trained head and zero-shot CLIP say of them.

    Example: cliad serve latest --port 8000
    """
    from cliad.pipelines.runs.serve.app import serve as run_server

    run_server(
        run,
        host=host,
        port=port,
        model=model,
        pretrained=pretrained,
        data=data,
        caches=cache,
        device=device,
        log=show.log,
    )
    # Python would wait for the thread that has an image in the encoder, or fetches weights. There
    # is nothing to lose: the server writes no file.
    sys.stderr.flush()
    os._exit(0)

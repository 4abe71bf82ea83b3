"""Extractions in processes of their own, to be killed. They start quickly: a server that has imported everything forks them."""

import multiprocessing
import sys
import time
from pathlib import Path

import open_clip
import torch

from cliad.cache.encoders.clip import Clip
from cliad.cache.extract.choices import EncoderChoice, Extras
from cliad.cache.file import write
from cliad.pipelines.extract import extract

FORKS = multiprocessing.get_context(
    "forkserver"
    if hasattr(multiprocessing, "get_all_start_methods") and sys.platform != "win32"
    else "spawn"
)
if FORKS.get_start_method() == "forkserver":
    FORKS.set_forkserver_preload(["cliad.pipelines.extract"])


def start(task, cache, seconds_per_image=0.0):
    """Begin an extraction; `process.log` takes its lines, the last one is the path or the error."""
    log = Path(task[2]) / f"log-{time.monotonic_ns()}.txt"
    process = FORKS.Process(
        target=_run, args=(*map(Path, task), Path(cache), log, seconds_per_image)
    )
    process.start()
    process.log = log
    return process


def finish(process):
    """Wait for it; its exit code and its lines."""
    process.join(120)
    return process.exitcode, process.log.read_text().splitlines()


def _run(weights, config, data, cache, log, seconds_per_image):
    torch.set_num_threads(1)
    write.SYNC_SECONDS = 0.05
    open_clip.add_model_config(config)
    plain = Clip.preprocess

    def slow(self, image, **options):
        time.sleep(seconds_per_image)
        return plain(self, image, **options)

    Clip.preprocess = slow
    with open(log, "a", buffering=1) as lines:
        log = lambda line: print(line, file=lines)
        options = {
            "extras": Extras(views=2, flip=True, pre_projection=True),
            "batch": 4,
            "workers": 2,
            "log": log,
        }
        try:
            log(
                extract(
                    "folder:pets",
                    encoder=EncoderChoice(config.stem, str(weights)),
                    cache_folder=cache,
                    data=data,
                    **options,
                )
            )
        except ValueError as error:
            log(error)
            sys.exit(1)

"""How many images an encoder takes at once."""

from __future__ import annotations

import torch

from cliad.cache.encoders.base import is_out_of_memory
from cliad.cache.extract.job import Extraction

CPU_BATCH, GPU_BATCH, VIEWS_BATCH = 32, 1024, 256  # with views a batch is many more images


def default_batch(job: Extraction) -> int:
    """Images per encoder call: a fixed number on a CPU; elsewhere the most, by halving, that the device's memory holds."""
    longest = max(map(len, job.listing.splits.values()))
    size = (
        CPU_BATCH
        if job.encoder.device.type == "cpu"
        else VIEWS_BATCH
        if job.view_sets
        else GPU_BATCH
    )
    while size > 1 and size >= 2 * longest:
        size //= 2
    while job.encoder.device.type != "cpu" and size > 1 and not _fits(job, size):
        size //= 2
    return size


def _fits(job: Extraction, size: int) -> bool:
    shape = job.encoder.preprocess(_blank()).shape
    try:
        job.encoder.encode_parts(
            torch.zeros((2 * size, *shape), dtype=torch.uint8), job.parts
        )  # twice, to leave room
        return True
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        if job.encoder.device.type == "cuda":
            torch.cuda.empty_cache()


def _blank():
    from PIL import Image

    return Image.new("RGB", (64, 64))

"""How many images an encoder takes at once."""

from __future__ import annotations

import torch

from cliad.cache.encoders.base import is_out_of_memory
from cliad.cache.extract.extraction import Extraction

CPU_BATCH = 32
GPU_BATCH = 1024
# On a GPU with views: these make many times as many images of the same batch.
VIEWS_BATCH = 256


def default_batch(extraction: Extraction) -> int:
    """Images per encoder call.

    On a CPU that is a fixed number; elsewhere the most, by halving, that the device's memory
    holds. A batch is less than twice the longest split, since it is filled up with padding.
    """
    on_cpu = extraction.encoder.device.type == "cpu"
    size = _largest_batch(extraction, on_cpu)
    longest = max(len(rows) for rows in extraction.listing.splits.values())
    while size > 1 and size >= 2 * longest:
        size //= 2
    while not on_cpu and size > 1 and not _fits(extraction, size):
        size //= 2
    return size


def _largest_batch(extraction: Extraction, on_cpu: bool) -> int:
    if on_cpu:
        return CPU_BATCH
    return VIEWS_BATCH if extraction.view_sets else GPU_BATCH


def _fits(extraction: Extraction, size: int) -> bool:
    """Whether the device's memory holds a batch, tried with twice the images to leave room."""
    images = torch.zeros((2 * size, 3, *extraction.encoder.preprocess_size), dtype=torch.uint8)
    try:
        extraction.encoder.encode_parts(images, extraction.parts)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        if extraction.encoder.device.type == "cuda":
            torch.cuda.empty_cache()
    return True

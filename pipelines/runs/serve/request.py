"""What a request holds, read with care: the number of classes, the body, the image in it.

Nothing here trusts what was sent. Each limit is checked before the work that it bounds.
"""

from __future__ import annotations

import asyncio
import io
import warnings
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from PIL import Image

from cliad.cache.datasets.pictures import FORMATS, allowed_formats, open_image
from cliad.errors import CliadError

if TYPE_CHECKING:
    from starlette.requests import Request

LARGEST_UPLOAD = 32 * 2**20  # bytes
LARGEST_TOGETHER = 8 * LARGEST_UPLOAD  # bytes of all uploads that are in memory at once
UPLOAD_SECONDS = 60
LARGEST_PIXELS = 50_000_000
MOST_CLASSES = 100

# Content types of an image file that is sent as it is; the last is what curl --data-binary says.
BINARY_TYPES = ("application/octet-stream", "application/x-www-form-urlencoded")


class ServiceError(CliadError):
    """A request that cannot be answered; `status` is the HTTP status that says so."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def read_top(text: str) -> int:
    """`top` of a request: how many classes are to be shown.

    Raises:
        ServiceError: not a number from 1 to MOST_CLASSES.
    """
    # Only ASCII: int() takes the digits of all scripts. Only nine: it is slow on very long text.
    is_number = text.isascii() and text.isdigit()
    if not is_number or not 1 <= int(text[:9]) <= MOST_CLASSES:
        raise ServiceError(f"top is a number from 1 to {MOST_CLASSES}; got '{text:.20}'", 400)
    return int(text)


class Uploads:
    """The bodies of requests, which together never take more than LARGEST_TOGETHER.

    Each has its room before it is read; what has none yet stays with its sender.
    """

    def __init__(self) -> None:
        self._free = LARGEST_TOGETHER
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def body_of(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, an image file as it is; its room is free again after the block.

        Raises:
            ServiceError: another content type, or a body that is empty, too large or too slow.
        """
        _check_type(request.headers.get("content-type", BINARY_TYPES[0]))
        size = _announced_size(request)
        await _in_time(self._take(size))
        try:
            body = await _in_time(_collect(request))
            if not body:
                raise ServiceError("the request is empty; send an image file as its body", 400)
            yield body
        finally:
            self._free += size
            self._freed.set()

    async def _take(self, size: int) -> None:
        """Wait for so much room, and take it."""
        while self._free < size:
            self._freed.clear()
            await self._freed.wait()
        self._free -= size


def _announced_size(request: Request) -> int:
    """The length of the body as the request says it; the largest where it says none."""
    length = request.headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()):
        return LARGEST_UPLOAD
    size = int(length[:18])
    if size > LARGEST_UPLOAD:
        raise _too_large_upload()
    return size


async def _in_time(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await asyncio.wait_for(work, UPLOAD_SECONDS)
    except asyncio.TimeoutError:
        raise ServiceError(f"the upload took longer than {UPLOAD_SECONDS} seconds", 408) from None


async def _collect(request: Request) -> bytes:
    """All chunks of the body. Its length may be unsaid or a lie, so what comes is counted."""
    body = bytearray()
    async for chunk in request.stream():
        body.extend(chunk)
        if len(body) > LARGEST_UPLOAD:
            raise _too_large_upload()
    return bytes(body)


def _check_type(content_type: str) -> None:
    kind = content_type.partition(";")[0].strip().lower()
    if not kind.startswith("image/") and kind not in BINARY_TYPES:
        raise ServiceError(f"send the image file itself as the body, not {kind:.40}", 415)


def _too_large_upload() -> ServiceError:
    megabytes = LARGEST_UPLOAD // 2**20
    return ServiceError(f"the file is too large; at most {megabytes} MB are taken", 413)


def read_image(raw: bytes) -> Image.Image:
    """An uploaded file as upright RGB.

    Raises:
        ServiceError: not an image of a known format, damaged, or of too many pixels.
    """
    width, height = _size_of(raw)
    # The header says the size, so that nothing is decoded that would fill the memory.
    if width * height > LARGEST_PIXELS:
        raise _too_many_pixels()
    try:
        return open_image(io.BytesIO(raw))
    except Exception:  # a decoder may raise anything on a bad file
        raise ServiceError("the image is damaged or cut short", 422) from None


def _size_of(raw: bytes) -> tuple[int, int]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(raw), formats=allowed_formats()) as image:
                return image.size
    except Image.DecompressionBombError:
        raise _too_many_pixels() from None
    except Exception:  # a decoder may raise anything on a bad file
        raise ServiceError(
            f"this is not a readable image; send one of {', '.join(FORMATS)}", 415
        ) from None


def _too_many_pixels() -> ServiceError:
    return ServiceError(f"the image has too many pixels; at most {LARGEST_PIXELS:,} are taken", 413)

"""`cliad serve`: a local page that classifies images dropped on it, and the JSON endpoint behind it (docs/serve.md).

It answers this machine's own pages only: requests with another Host, or from a page of another origin, are refused, so that
a web site open in the same browser can neither read nor use it. It reads no path that a request names and writes no file.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import socket
from collections.abc import Callable
from pathlib import Path

from cliad.errors import CliadError
from cliad.pipelines.runs import run_folder
from cliad.pipelines.runs.serve.guard import Guard
from cliad.pipelines.runs.serve.service import InferenceService, ServiceError

PAGE = Path(__file__).with_name("page.html")
LARGEST_UPLOAD = 32 * 2**20  # bytes
UPLOAD_SECONDS = 60
MOST_CLASSES = 100


class ServeError(CliadError):
    """The page cannot be served; the message says why."""


def serve(
    run: str | Path = "latest",
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    caches: Path | None = None,
    data: Path | None = None,
    model: str | None = None,
    pretrained: str | None = None,
    device: str = "auto",
    log: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve the page until interrupted; the verb `cliad serve`.

    Args:
        run: the run folder that is shown first, or `latest`; those beside it can be chosen on the page.
        host, port: the address to listen on; port 0 takes a free one.
        caches, data: the cache folder and the folder with the data sets, for zero-shot and the nearest training shots.
        model, pretrained, device: the encoder, where it is not the one that run.json names, and where it runs.
    Raises:
        ServeError: no server library, or the address is taken.
        RunFolderError, PredictError, EncoderError: the run, or its encoder.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ServeError(
            f"the page needs {error.name}, which is not installed; run: pip install 'cliad[serve]'"
        ) from None
    service = InferenceService(
        run_folder.find_run(run),
        caches=caches,
        data=data,
        model=model,
        pretrained=pretrained,
        device=device,
        log=log,
    )
    ready = service.ready()
    listener = _listen(host, port)
    port = listener.getsockname()[1]
    log(
        f"{ready.run.folder.name}: {ready.run.about['head']} with {ready.encoder.name} on {ready.encoder.device}"
    )
    log(f"open http://{f'[{host}]' if ':' in host else host}:{port}/ in a browser; Ctrl-C ends it")
    config = uvicorn.Config(
        make_app(service, host),
        log_level="warning",
        limit_concurrency=64,
        timeout_keep_alive=5,
        lifespan="off",
        ws="none",
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        log("ended")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServeError(
            f"cannot listen on {host}:{port} ({reason}); give another --port, 0 for any"
        ) from None


def make_app(service: InferenceService, host: str = "127.0.0.1"):
    """The ASGI application: the page, the list of runs, and the endpoint that classifies."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    text = PAGE.read_text(encoding="utf-8")
    policy = content_policy(text)

    async def page(request: Request) -> Response:
        return Response(text, media_type="text/html", headers={"content-security-policy": policy})

    async def runs(request: Request) -> Response:
        return JSONResponse({"runs": await run_in_threadpool(service.runs)})

    async def classify(request: Request) -> Response:
        top = number(request.query_params.get("top", "5"))
        raw = await upload(request)
        return JSONResponse(
            await run_in_threadpool(service.classify, raw, request.query_params.get("run"), top)
        )

    async def failed(request: Request, error: Exception) -> Response:
        status, said = answer(error)
        return JSONResponse({"error": said}, status)

    routes = [
        Route("/", page),
        Route("/api/runs", runs),
        Route("/api/classify", classify, methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: failed, ValueError: failed})
    return Guard(app, host)


def answer(error: Exception) -> tuple[int, str]:
    """The status and the sentence for what went wrong: ours as they are, the library's in our words, nothing of others."""
    if (status := getattr(error, "status_code", None)) is not None:
        known = {
            404: "there is nothing at this address; the page is at /",
            405: "this address takes another method",
        }
        return status, known.get(status, str(getattr(error, "detail", "")))
    if isinstance(error, CliadError):
        return getattr(error, "status", 409), " ".join(str(error).split())
    return 500, "the server failed at this request"


def content_policy(page: str) -> str:
    """A policy under which only the page's own script and style run, and nothing is fetched from elsewhere."""
    inline = lambda tag: " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    )
    rules = [
        f"script-src {inline('script')}",
        f"style-src {inline('style')}",
        "img-src data: blob:",
        "connect-src 'self'",
    ]
    return "; ".join(
        [
            "default-src 'none'",
            *rules,
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def number(text: str) -> int:
    """`top` of a request."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MOST_CLASSES):
        raise ServiceError(f"top is a number from 1 to {MOST_CLASSES}; got '{text:.20}'", 400)
    return int(text)


async def upload(request) -> bytes:
    """The body of a request, an image file as it is."""
    kind = (
        request.headers.get("content-type", "application/octet-stream")
        .partition(";")[0]
        .strip()
        .lower()
    )
    if not kind.startswith("image/") and kind not in (
        "application/octet-stream",
        "application/x-www-form-urlencoded",
    ):
        raise ServiceError(f"send the image file itself as the body, not {kind:.40}", 415)
    too_large = ServiceError(
        f"the file is too large; at most {LARGEST_UPLOAD // 2**20} MB are taken", 413
    )
    if (said := request.headers.get("content-length", "0")).isdigit() and int(
        said[:18]
    ) > LARGEST_UPLOAD:
        raise too_large
    body = bytearray()

    async def read() -> None:
        async for chunk in request.stream():
            body.extend(chunk)
            if len(body) > LARGEST_UPLOAD:
                raise too_large

    try:
        await asyncio.wait_for(read(), UPLOAD_SECONDS)
    except asyncio.TimeoutError:
        raise ServiceError(f"the upload took longer than {UPLOAD_SECONDS} seconds", 408) from None
    if not body:
        raise ServiceError("the request is empty; send an image file as its body", 400)
    return bytes(body)

"""`cliad serve`: a local page that classifies images, and the JSON endpoint behind it.

It answers this machine's own pages only: requests with another Host, or from a page of another
origin, are refused, so that a web site open in the same browser can neither read nor use it. It
reads no path that a request names and writes no file. docs/serve.md describes the endpoint.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cliad.errors import CliadError
from cliad.pipelines.runs import run_folder
from cliad.pipelines.runs.serve.guard import Guard
from cliad.pipelines.runs.serve.request import Uploads, read_top
from cliad.pipelines.runs.serve.service import InferenceService

PAGE = Path(__file__).with_name("page.html")

# Our words for what the server library refuses.
STATUS_TEXTS = {
    404: "there is nothing at this address; the page is at /",
    405: "this address takes another method",
}


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
        run: the run folder that is shown first, or `latest`; those beside it can be chosen on the
            page.
        host, port: the address to listen on; port 0 takes a free one.
        caches, data: the cache folder and the folder with the data sets, for zero-shot and the
            nearest training shots.
        model, pretrained, device: the encoder, where it is not the one that run.json names, and
            where it runs.
        log: is given the address and other lines.

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
    from cliad.pipelines.runs.serve.connection import MOST_ANSWERED, Connection

    with _terminated_as_interrupted():
        service = InferenceService(
            run_folder.find_run(run),
            caches=caches,
            data=data,
            model=model,
            pretrained=pretrained,
            device=device,
            log=log,
        )
        ready = service.ready()  # what is wrong with the run is said now, not at the first request
        listener = _listen(host, port)
        head = ready.run.about["head"]
        log(f"{ready.run.folder.name}: {head} with {ready.encoder.name} on {ready.encoder.device}")
        log(f"open {_url(host, listener.getsockname()[1])} in a browser; Ctrl-C ends it")
        config = uvicorn.Config(
            make_app(service, host, log),
            http=Connection,
            log_level="critical",  # what fails is said by `failed`, in one line
            limit_concurrency=MOST_ANSWERED,
            timeout_keep_alive=5,  # seconds
            timeout_graceful_shutdown=1,  # seconds for answers that are on their way at Ctrl-C
            lifespan="off",
            ws="none",
        )
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            log("ended")


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """While the block runs, SIGTERM, with which services are stopped, does what Ctrl-C does."""
    # Only the main thread may say what signals do.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens; it is made before the server starts, so that port 0 is known."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServeError(
            f"cannot listen on {host}:{port} ({reason}); give another --port, 0 for any"
        ) from None


def _url(host: str, port: int) -> str:
    name = f"[{host}]" if ":" in host else host  # IPv6
    return f"http://{name}:{port}/"


def make_app(
    service: InferenceService,
    host: str = "127.0.0.1",
    log: Callable[[str], None] = lambda line: None,
) -> Guard:
    """The ASGI application: the page, the list of runs, and the endpoint that classifies."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route

    uploads = Uploads()
    # One image at a time goes through the encoder. Those that wait need no thread of their own,
    # and at Ctrl-C they are given up.
    worker = ThreadPoolExecutor(max_workers=1)
    text = PAGE.read_text(encoding="utf-8")
    policy = content_policy(text)

    async def page(request: Request) -> Response:
        return Response(text, media_type="text/html", headers={"content-security-policy": policy})

    async def runs(request: Request) -> Response:
        return answer({"runs": await run_in_threadpool(service.runs)})

    async def classify(request: Request) -> Response:
        top = read_top(request.query_params.get("top", "5"))
        run = request.query_params.get("run")
        async with uploads.body_of(request) as raw:
            # The encoder works in a thread, so that the server can answer others meanwhile.
            work = asyncio.get_running_loop().run_in_executor(
                worker, service.classify, raw, run, top
            )
            return answer(await work)

    async def failed(request: Request, error: Exception) -> Response:
        failure = describe(error)
        if failure.status == 500:
            log(f"a request failed: {type(error).__name__}: {error}")
        return answer({"error": failure.text}, failure.status)

    def answer(document: object, status: int = 200) -> Response:
        # In ASCII: names of files may hold bytes that are no letters, which JSON can only escape.
        return Response(json.dumps(document), status, media_type="application/json")

    async def left(request: Request, error: Exception) -> Response:
        return Response(status_code=400)  # to nobody: the client is gone

    routes = [
        Route("/", page),
        Route("/api/runs", runs),
        Route("/api/classify", classify, methods=["POST"]),
    ]
    handlers = {
        HTTPException: failed,
        ValueError: failed,
        ClientDisconnect: left,
        Exception: failed,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    return Guard(app, host)


class Failure(NamedTuple):
    """The HTTP status and the sentence for what went wrong."""

    status: int
    text: str


def describe(error: Exception) -> Failure:
    """What is said of an error: ours as they are, the library's in our words, of others nothing."""
    # What other errors say may hold paths or data of this machine: it is not sent.
    status = getattr(error, "status_code", None)  # of starlette's HTTPException
    if status is not None:
        return Failure(status, STATUS_TEXTS.get(status, str(getattr(error, "detail", ""))))
    if isinstance(error, CliadError):
        return Failure(getattr(error, "status", 409), " ".join(str(error).split()))
    return Failure(500, "the server failed at this request")


def content_policy(page: str) -> str:
    """A policy under which only the page's own script and style run.

    Nothing is fetched from elsewhere, and no other page can show this one in a frame.
    """
    rules = [
        "default-src 'none'",
        f"script-src {_sources(page, 'script')}",
        f"style-src {_sources(page, 'style')}",
        "img-src data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return "; ".join(rules)


def _sources(page: str, tag: str) -> str:
    """The hashes of all elements `tag` of a page, as a content policy names them."""
    sources = []
    for text in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL):
        digest = hashlib.sha256(text.encode()).digest()
        sources.append(f"'sha256-{base64.b64encode(digest).decode()}'")
    return " ".join(sources)

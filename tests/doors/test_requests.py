"""Requests to `cliad serve` that no browser sends: each gets an answer or is hung up on, none harms."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
from doors.doors import run_folder
from doors.mutations import TEXTS, mutate_bytes

HEADERS = [
    "Origin: http://[::1",
    "Origin: null",
    "Host: evil.example",
    "Host:",
    "Host: [::1",
    "Content-Length: -1",
    "Content-Length: 99999999999999999999",
    "Content-Length: 1e3",
    "Content-Type: multipart/form-data; boundary=" + "x" * 5000,
    "Content-Type: text/html",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Expect: 100-continue",
    "Upgrade: websocket",
    "Connection: keep-alive",
    "Range: bytes=0-",
    "Sec-Fetch-Site: cross-site",
    "X: " + "y" * 100_000,
    "\x00: \xff",
    "no colon",
]
PATHS = ["/", "/api/runs", "/api/classify", "/api/classify?top=%ff", "/../../etc/passwd", "*"]
PATHS += ["http://evil.example/", "/api/classify?run=%00", "//", "/" + "a" * 70_000]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A running server of a toy run: its process, its port, an image, and where its lines go."""
    home = tmp_path_factory.mktemp("requests")
    run_folder(home)
    lines = home / "lines"
    environment = os.environ | {"CLIAD_CACHE": str(home / "caches"), "OMP_NUM_THREADS": "1"}
    with open(lines, "w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "cliad", "serve", str(home / "run"), "--port", "0"],
            stderr=stream,
            stdout=stream,
            cwd=home,
            env=environment,
        )
    port = None
    while port is None:
        time.sleep(0.05)
        assert process.poll() is None, lines.read_text()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", lines.read_text())
        port = int(found[1]) if found else None
    image = next((home / "own").rglob("*.png")).read_bytes()
    yield process, port, image, lines
    process.kill()
    process.wait()


def request_of(port, image, path="/api/classify", more=()):
    head = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(image)}"]
    head += ["Content-Type: image/png", "Connection: close", *more]
    return "\r\n".join(head).encode("latin1") + b"\r\n\r\n" + image


def mutated(port, image, rng):
    """A request with another header, path, method, body or length, or with other bytes."""
    kind = rng.choice(
        ["header", "header", "path", "method", "bytes", "bytes", "body", "cut", "top"]
    )
    if kind == "header":
        return request_of(port, image, more=[rng.choice(HEADERS)])
    if kind == "path":
        return request_of(port, image, path=rng.choice(PATHS))
    if kind == "top":
        value = rng.choice(TEXTS).encode("utf-8", "surrogatepass").hex()
        escaped = "%" + "%".join(value[i : i + 2] for i in range(0, len(value), 2))
        return request_of(port, image, path=f"/api/classify?{rng.choice(['top', 'run'])}={escaped}")
    whole = request_of(port, image)
    if kind == "method":
        word = rng.choice([b"GET", b"PUT", b"TRACE", b"CONNECT", b"\x16\x03\x01", b"", b"A" * 9000])
        return whole.replace(b"POST", word, 1)
    if kind == "body":
        head, _, body = whole.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n" + mutate_bytes(body, rng)
    if kind == "cut":
        return whole[: rng.randrange(len(whole))]
    return mutate_bytes(whole, rng)


def answer_to(port, raw, patience=0.5):
    """The status of the answer; None where the server hangs up or waits for more."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
        try:
            connection.sendall(raw)
            start = connection.recv(64)
        except (TimeoutError, ConnectionError):
            return None
    found = re.match(rb"HTTP/1\.[01] (\d+)", start)
    return int(found[1]) if found else None


def test_no_request_makes_the_server_fail(server, request):
    process, port, image, lines = server
    assert answer_to(port, request_of(port, image), patience=20) == 200
    for seed in range(10 * request.config.getoption("--count")):
        rng = random.Random(seed)
        raw = mutated(port, image, rng)
        status = answer_to(port, raw)
        assert status is None or 100 <= status < 500, (seed, raw[:300])
    assert answer_to(port, request_of(port, image), patience=20) == 200
    assert process.poll() is None
    said = lines.read_text()
    assert "Traceback" not in said, said
    assert "failed" not in said, said


def test_ctrl_c_ends_it_though_uploads_are_half_sent(server):
    process, port, image, lines = server
    with ExitStack() as stack:
        for _ in range(60):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(request_of(port, image)[:-20])
        time.sleep(0.3)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(10)
        assert time.monotonic() - started < 3.5
    said = lines.read_text()
    assert "Traceback" not in said, said
    assert said.splitlines()[-1] == "ended"
    assert process.returncode == 0

"""`cliad serve` over real HTTP: its endpoint, what it refuses, and the page in a real browser."""

import asyncio
import http.client
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import quote

import pytest
import torch
import uvicorn
from browser import drop, set_size, wait_for
from PIL import Image

from cliad.cache.extract.choices import PromptChoice
from cliad.cache.file.read import open_cache
from cliad.cli import main
from cliad.pipelines.extract import extract
from cliad.pipelines.runs.predict import load
from cliad.pipelines.runs.serve import connection, request
from cliad.pipelines.runs.serve.app import ServeError, make_app, serve
from cliad.pipelines.runs.serve.guard import Guard
from cliad.pipelines.runs.serve.request import LARGEST_UPLOAD
from cliad.pipelines.runs.serve.service import InferenceService


@pytest.fixture(scope="module")
def port(used, tmp_path_factory):
    """The port of a running server with three runs: clip-adapter, linear-probe, and one that is broken."""
    runs = tmp_path_factory.mktemp("runs")
    for name, folder in (("adapter", used.run), ("probe", used.probe), ("broken", used.run)):
        shutil.copytree(folder, runs / name)
    (runs / "broken" / "head.safetensors").write_bytes(b"x")
    service = InferenceService(runs / "probe", caches=used.caches, pretrained=str(used.weights))
    with listening(service) as number:
        yield number


@contextmanager
def listening(service):
    """The port of a server in a thread, with the connections that `serve` has."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        make_app(service), http=connection.Connection, log_level="critical", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(20)
    listener.close()


def send(port, path="/api/classify", body=None, method=None, **headers):
    """(status, JSON or text, headers) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return (
        answer.status,
        json.loads(text) if "json" in answer.headers["content-type"] else text,
        answer.headers,
    )


def refused(port, status, *args, **headers):
    """The sentence with which a request is refused."""
    got, said, _ = send(port, *args, **headers)
    assert (
        got == status
        and set(said) == {"error"}
        and "\n" not in said["error"]
        and "Traceback" not in said["error"]
    ), said
    return said["error"]


@pytest.fixture(scope="module")
def digit(used):
    """(PNG bytes of a test image that the probe gets right, its class)."""
    from cliad.pipelines.runs.predict import load, predict

    names, files = load(used.probe).classnames, sorted(used.images.iterdir())[:30]
    for file, found in zip(
        files, predict(used.probe, files, pretrained=str(used.weights)), strict=True
    ):
        if found.top[0][0] == names[used.labels[file.name]]:
            return file.read_bytes(), found.top[0][0]


def test_it_answers_as_predict_does(port, digit):
    raw, name = digit
    status, found, _ = send(port, "/api/classify?top=3", raw)
    assert status == 200 and set(found) == {
        "run",
        "head",
        "width",
        "height",
        "top",
        "zero_shot",
        "nearest",
    }
    assert (
        found["run"] == "probe"
        and found["top"][0]["class"] == name
        and len(found["top"]) == len(found["zero_shot"]) == 3
    )
    assert [set(shot) for shot in found["nearest"]] == [
        {"path", "class", "similarity", "thumbnail"}
    ] * 4
    assert (
        found["nearest"][0]["thumbnail"].startswith("data:image/png;base64,")
        and found["nearest"][0]["similarity"] > 0.5
    )
    assert (
        send(port, "/api/classify?run=adapter", raw, content_type="image/png")[1]["run"]
        == "adapter"
    )


def test_it_lists_the_runs_and_says_what_is_wrong_with_one(port, digit):
    runs = send(port, "/api/runs")[1]["runs"]
    assert runs[0]["run"] == "probe" and {run["run"] for run in runs} == {
        "probe",
        "adapter",
        "broken",
    }
    assert runs[0]["n_class"] == 10 and 0 <= runs[0]["zero_shot_top1"] <= runs[0]["top1"] <= 1
    assert "broken is damaged" in refused(port, 409, "/api/classify?run=broken", digit[0])


@pytest.mark.parametrize(
    "name",
    ["none", "../probe", "/etc", "..", "", "probe/../adapter", "a" * 5000, "\x00", "probe%00"],
)
def test_a_run_is_one_of_the_list_or_none(port, digit, name):
    assert "no run" in refused(port, 404, f"/api/classify?run={quote(name)}", digit[0])


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/../../etc/passwd",
        "/page.html",
        "/static/x",
        "/runs/probe/run.json",
        "/%2e%2e/x",
        "/api",
    ],
)
def test_it_serves_no_other_file(port, path):
    refused(port, 404, path)


def test_methods_and_numbers(port, digit):
    refused(port, 405, "/api/classify")
    refused(port, 405, "/", b"x")
    for top in ("0", "-1", "x", "1e9", "9" * 5000, "", "٣"):
        assert "top is a number" in refused(port, 400, f"/api/classify?top={quote(top)}", digit[0])


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "evil.example:80"},
        {"host": "192.168.0.7"},
        {"host": "127.0.0.1@evil.example"},
        {"host": ""},
        {"host": "[::1"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
def test_foreign_hosts_and_origins_are_refused(port, digit, headers):
    refused(port, 403, "/api/classify", digit[0], **headers)
    refused(port, 403, "/", **headers)
    refused(port, 403, "/api/runs", **headers)


def test_its_own_page_is_let_through(port, digit):
    for name in ("127.0.0.1", "localhost", "[::1]"):
        own = {
            "host": f"{name}:{port}",
            "origin": f"http://{name}:{port}",
            "sec_fetch_site": "same-origin",
        }
        assert send(port, "/api/classify", digit[0], **own)[0] == 200


@pytest.mark.parametrize("origin", ["http://[::1", "http://a:b:c", "null", "", "\xff"])
def test_an_origin_that_is_no_address_is_refused(port, digit, origin):
    refused(port, 403, body=digit[0], Origin=origin.encode("latin1"))


def test_runs_that_are_trained_again_do_not_fill_the_memory(used, digit, tmp_path):
    shutil.copytree(used.probe, tmp_path / "runs" / "probe")
    run = tmp_path / "runs" / "probe"
    service = InferenceService(run, caches=used.caches, pretrained=str(used.weights))
    for moment in range(1, 6):
        os.utime(run / "run.json", (moment, moment))
        service.classify(digit[0])
    assert len(service._ready) == len(service._encoders) == 1


def test_an_open_address_answers_to_numbers_but_not_to_foreign_names():
    guard = Guard(None, "0.0.0.0")
    assert (
        guard.is_own("192.168.0.7:8000")
        and guard.is_own("localhost:8000")
        and not guard.is_own("evil.example:8000")
    )


def test_the_page_runs_nothing_but_its_own_script(port):
    status, text, headers = send(port, "/")
    assert (
        status == 200
        and text.startswith("<!doctype html>")
        and "http://" not in text
        and "https://" not in text
    )
    policy = headers["content-security-policy"]
    assert (
        "default-src 'none'" in policy
        and "unsafe" not in policy
        and headers["x-content-type-options"] == "nosniff"
    )


CAREFUL = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}


@pytest.mark.parametrize(
    "path, sent",
    [
        ("/", {}),
        ("/api/runs", {}),
        ("/nothing", {}),
        ("/api/classify", {}),
        ("/", {"host": "evil.example"}),
        ("/api/runs", {"origin": "http://evil.example"}),
        ("/api/classify", {"sec_fetch_site": "cross-site"}),
    ],
)
def test_every_answer_bears_the_headers_that_keep_a_browser_careful(port, path, sent):
    status, _, headers = send(port, path, **sent)
    assert (status == 403) == bool(sent)
    plain = {"content-length", "content-type", "date", "server", "content-security-policy", "allow"}
    found = {name.lower(): value for name, value in headers.items() if name.lower() not in plain}
    assert found == CAREFUL
    assert headers.get_all("x-frame-options") == ["DENY"]


def test_the_policy_of_the_page_is_this_list(port):
    policy = send(port, "/")[2]["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for name in ("script-src", "style-src"):
        sources = rules.pop(name).split(" ")
        assert len(sources) == 1 and sources[0].startswith("'sha256-"), sources
    assert rules == {
        "default-src": "'none'",
        "img-src": "data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


@pytest.mark.parametrize("kind", ["websocket", "lifespan", "other"])
def test_no_other_kind_of_connection_reaches_the_application(kind):
    reached = []

    async def app(scope, receive, send):
        reached.append(scope["type"])

    guard = Guard(app, "127.0.0.1")
    own = [(b"host", b"127.0.0.1:8000")]
    asyncio.run(guard({"type": kind, "headers": own}, None, None))
    assert reached == []
    asyncio.run(guard({"type": "http", "headers": own}, None, None))
    assert reached == ["http"]


def test_the_support_and_zero_shot_of_the_runs_own_cache_are_shown(used, digit):
    found = InferenceService(used.probe, caches=used.caches, pretrained=str(used.weights)).classify(
        digit[0]
    )
    assert len(found["nearest"]) == 4
    expected = zero_shot_by_hand(used, used.cache.text, digit[0])
    assert [shown["class"] for shown in found["zero_shot"]] == [name for name, _ in expected]
    for shown, (_, probability) in zip(found["zero_shot"], expected, strict=True):
        assert shown["probability"] == pytest.approx(probability, abs=1e-3)


def zero_shot_by_hand(used, text, raw):
    """The likeliest five (class, probability) of an image, text (n_template, n_class, dim)."""
    encoder = load(used.probe).encoder(pretrained=str(used.weights))
    with torch.inference_mode():
        image = Image.open(io.BytesIO(raw)).convert("RGB")
        x = encoder.encode_images(encoder.preprocess(image)[None]).float().cpu()
    unit = torch.nn.functional.normalize
    x = unit(x, dim=-1)
    weights = unit(unit(torch.as_tensor(text), dim=-1).mean(dim=0), dim=-1)
    chances = (used.cache.logit_scale * x @ weights.T).softmax(dim=-1)[0].tolist()
    return sorted(zip(used.cache.classnames, chances, strict=True), key=lambda one: -one[1])[:5]


def test_a_cache_made_anew_under_the_same_name_does_not_serve_an_earlier_run(used, digit, tmp_path):
    choice = PromptChoice(templates=("a blurry scan of {}, upside down.",))
    asked = {"model": used.model, "pretrained": str(used.weights), "cache_folder": tmp_path}
    path = extract("digits", prompt_set=choice, **asked)
    there = open_cache(path)
    # the file has the same name, since its images are the same; its prompts are others
    assert path.relative_to(tmp_path) == used.cache.path.relative_to(used.caches)
    assert there.fingerprint != used.cache.fingerprint
    found = InferenceService(used.probe, caches=tmp_path, pretrained=str(used.weights)).classify(
        digit[0]
    )
    assert found["nearest"] == []
    # zero-shot is by the prompts of the run, encoded anew, and not by those of that cache
    expected = zero_shot_by_hand(used, used.cache.text, digit[0])
    strange = zero_shot_by_hand(used, there.text, digit[0])
    chance = found["zero_shot"][0]["probability"]
    assert chance == pytest.approx(expected[0][1], abs=1e-3)
    assert abs(chance - strange[0][1]) > 0.01


def test_without_a_cache_there_are_no_shots_to_show(used, digit, tmp_path):
    service = InferenceService(used.probe, caches=tmp_path, pretrained=str(used.weights))
    found = service.classify(digit[0], top=2)
    assert found["nearest"] == [] and len(found["top"]) == len(found["zero_shot"]) == 2


def png(width, height, data=b""):
    """A PNG file that says it has so many pixels."""
    chunk = lambda kind, body: (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    )
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_what_is_too_large_is_refused(port):
    bomb = png(60_000, 60_000, zlib.compress(bytes(50_000_000), 9))
    assert len(bomb) < 100_000 and "too many pixels" in refused(port, 413, "/api/classify", bomb)
    assert "at most 50,000,000" in refused(port, 413, "/api/classify", png(8000, 7000))
    assert "at most 32 MB" in refused(
        port, 413, "/api/classify", b"x", content_length=str(LARGEST_UPLOAD + 1)
    )

    def endless():
        for _ in range(34):
            yield bytes(2**20)

    with suppress(BrokenPipeError, ConnectionResetError):  # it may hang up before all is sent
        assert "at most 32 MB" in refused(port, 413, "/api/classify", endless())


@pytest.mark.parametrize(
    "body, kind, status",
    [
        (b"", "image/png", 400),
        (b"no image", "image/png", 415),
        (b"{}", "application/json", 415),
        (b"--x\r\n", "multipart/form-data; boundary=x", 415),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image/x-eps", 415),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", 415),
        (png(8, 8, zlib.compress(b"short")), "image/png", 422),
        (png(8, 8, b"not zlib"), "image/png", 422),
        (png(0, 0), "image/png", 415),
    ],
)
def test_what_is_not_an_image_is_refused_with_a_sentence(port, body, kind, status):
    refused(port, status, "/api/classify", body, content_type=kind)


def test_200_spoiled_uploads_are_answers(port, tmp_path, monkeypatch):
    kinds = {}
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        out = io.BytesIO()
        Image.radial_gradient("L").convert("RGB").resize((48, 40)).save(out, kind)
        kinds[kind] = out.getvalue()
    monkeypatch.chdir(tmp_path)
    for seed in range(200):
        r = random.Random(seed)
        raw = bytearray(kinds[r.choice(sorted(kinds))])
        if r.random() < 0.5:
            raw = raw[: r.randrange(1, len(raw))]
        for _ in range(r.choice((1, 10, 100))):
            raw[r.randrange(len(raw))] = r.randrange(256)
        status, said, _ = send(port, "/api/classify", bytes(raw), x_name="../../evil.png")
        assert status in (200, 413, 415, 422) and (status == 200 or "\n" not in said["error"])
    assert not list(tmp_path.iterdir())


def head_of(port, length):
    """The head of a request with a body of this length."""
    lines = ["POST /api/classify HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {length}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def connected(stack, port):
    return stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))


def test_who_sends_no_request_or_half_of_one_is_cut(used, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 0.4)
    service = InferenceService(used.probe, caches=used.caches, pretrained=str(used.weights))
    with listening(service) as port, ExitStack() as stack:
        silent = connected(stack, port)
        slow = connected(stack, port)
        half = connected(stack, port)
        slow.sendall(b"GET / HT")
        half.sendall(head_of(port, 100) + b"x")
        for client in (silent, slow, half):
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""


def test_more_connections_than_a_process_may_have_are_cut_and_the_others_go_on(
    used, monkeypatch, digit
):
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 3)
    service = InferenceService(used.probe, caches=used.caches, pretrained=str(used.weights))
    with listening(service) as port, ExitStack() as stack:
        early = [connected(stack, port) for _ in range(3)]
        late = connected(stack, port)
        with suppress(ConnectionResetError):
            assert late.recv(1) == b""
        early[0].sendall(head_of(port, len(digit[0])) + digit[0])
        assert early[0].recv(15) == b"HTTP/1.1 200 OK"


def test_uploads_wait_for_room_and_give_it_back(monkeypatch):
    monkeypatch.setattr(request, "LARGEST_TOGETHER", 10)
    order = []

    async def body(name, wait):
        # What the server library gives: headers, and the body in pieces.
        class Sent:
            headers = {"content-length": "6"}

            async def stream(self):
                order.append(f"{name} is read")
                await asyncio.sleep(wait)
                yield b"123456"

        async with uploads.body_of(Sent()):
            order.append(f"{name} is used")

    async def both():
        nonlocal uploads
        uploads = request.Uploads()
        await asyncio.gather(body("first", 0.05), body("second", 0))

    uploads = None
    asyncio.run(both())
    # Together they are larger than there is room for.
    assert order == ["first is read", "first is used", "second is read", "second is used"]


def test_names_of_runs_that_are_no_text_and_odd_results_are_listed(used, tmp_path):
    name = b"caf\xe9\x1b[31m"
    folder = tmp_path / os.fsdecode(name)
    shutil.copytree(used.probe, folder)
    row = json.loads((folder / "result.json").read_text())
    row["top1"] = float("nan")
    (folder / "result.json").write_text(json.dumps(row))
    shutil.copytree(used.probe, tmp_path / "strange")
    change = json.loads((folder / "run.json").read_text()) | {"spec": {"shots": [], "dataset": 1}}
    (tmp_path / "strange" / "run.json").write_text(json.dumps(change))
    service = InferenceService(folder, caches=used.caches, pretrained=str(used.weights))
    with listening(service) as port:
        (run,) = send(port, "/api/runs")[1]["runs"]
    assert run["run"] == "caf\\xe9\\x1b[31m"
    assert run["top1"] is None
    assert 0 < run["zero_shot_top1"] < 1


# Only this process knows the model of these tests, so a server makes it known to itself.
SERVER = """
import sys
import open_clip
from cliad.__main__ import main
open_clip.add_model_config(sys.argv.pop(1))
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_within_three_seconds_though_uploads_are_half_sent(used, tmp_path, number):
    lines = tmp_path / "lines"
    model = used.folder / f"{used.model}.json"
    words = ["serve", used.probe, "--port", "0", "--cache", used.caches]
    words += ["--pretrained", used.weights]
    with open(lines, "w") as stream:
        process = subprocess.Popen([sys.executable, "-c", SERVER, model, *words], stderr=stream)
    found = None
    while found is None:
        time.sleep(0.05)
        assert process.poll() is None, lines.read_text()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", lines.read_text())
    port = int(found[1])
    with ExitStack() as stack:
        for _ in range(200):
            connected(stack, port).sendall(head_of(port, 10_000) + b"half")
        process.send_signal(number)
        started = time.monotonic()
        code = process.wait(20)
        assert time.monotonic() - started < 3
    assert code == 0
    said = lines.read_text().splitlines()
    assert len(said) == 3, said
    assert said[-1] == "ended"


def test_a_taken_port_is_one_line(used, port):
    with pytest.raises(ServeError, match=r"cannot listen on 127.0.0.1:\d+ .*--port"):
        serve(used.run, port=port, caches=used.caches, pretrained=str(used.weights))


def test_the_command_ends_at_once_where_there_is_no_run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cliad", "serve"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1 and "there is no run folder in runs" in capsys.readouterr().err


@pytest.fixture
def page(browser, port):
    browser.get(f"http://127.0.0.1:{port}/")
    wait_for(browser, "return document.querySelectorAll('#run option').length == 3")
    return browser


DONE = "return document.querySelectorAll('article').length == arguments[0] && !document.querySelector('.busy')"


def test_dropped_images_are_classified_on_the_page(page, port, digit, tmp_path):
    raw, name = digit
    drop(page, ("three <b>.png", raw), ("broken.png", raw[:50]), ("huge.png", png(60_000, 60_000)))
    wait_for(page, DONE, 3)
    cards = page.execute_script(
        "return [...document.querySelectorAll('article')].map(a => [a.querySelector('.seen p').textContent, a.innerText])"
    )
    said = dict(cards)
    assert (
        f"{name}\n" in said["three <b>.png"]
        and "zero-shot" in said["three <b>.png"]
        and "nearest" in said["three <b>.png"]
    )
    assert "damaged" in said["broken.png"] and "too many pixels" in said["huge.png"]
    first = page.execute_script(
        "return document.querySelector('article .adapter li .words span').textContent"
    )
    assert first == name
    for width in (1280, 390):
        set_size(page, width, 900)
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        page.save_screenshot(str(tmp_path / f"{width}.png"))


def test_another_run_is_chosen_and_a_second_tab_has_its_own(page, port, digit):
    drop(page, ("a.png", digit[0]))
    wait_for(page, DONE, 1)
    page.execute_script(
        "const s = document.getElementById('run'); s.value = 'adapter'; s.dispatchEvent(new Event('change'))"
    )
    wait_for(page, "return document.getElementById('about').textContent.startsWith('clip-adapter')")
    wait_for(page, DONE, 1)
    first = page.current_window_handle
    page.switch_to.new_window("tab")
    page.get(f"http://127.0.0.1:{port}/")
    wait_for(page, "return document.getElementById('about').textContent.startsWith('linear-probe')")
    drop(page, ("b.png", digit[0]), ("c.png", digit[0]))
    wait_for(page, DONE, 2)
    page.switch_to.window(first)
    assert page.execute_script(
        "return document.getElementById('run').value"
    ) == "adapter" and page.execute_script(DONE, 1)
    page.execute_script(
        "const s = document.getElementById('run'); s.value = 'broken'; s.dispatchEvent(new Event('change'))"
    )
    wait_for(
        page, "return document.querySelector('.error')?.textContent.includes('broken is damaged')"
    )

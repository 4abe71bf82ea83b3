"""Headless Chromium for tests, by the plain WebDriver protocol over HTTP: no package, no download."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import pytest

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync", "--hide-scrollbars"]


class Browser:
    """One browser session."""

    def __init__(self, root, session):
        self.root = f"{root}/session/{session}"

    def call(self, method, path, **body):
        data = None if method == "GET" else json.dumps(body).encode()
        request = urllib.request.Request(self.root + path, data, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, url):
        self.call("POST", "/url", url=url)

    def run(self, script, *args):
        return self.call("POST", "/execute/sync", script=script, args=list(args))

    def wait(self, script, *args, seconds=30):
        """The value of `script` as soon as it is true."""
        until = time.monotonic() + seconds
        while not (value := self.run(script, *args)):
            assert time.monotonic() < until, f"waited {seconds} s for {script}; the page says {self.run('return document.body.innerText')}"
            time.sleep(0.1)
        return value

    def drop(self, *files):
        """Drop files, as (name, bytes), on the page."""
        packed = [[name, base64.b64encode(raw).decode()] for name, raw in files]
        self.run(
            """const data = new DataTransfer();
            for (const [name, text] of arguments[0])
                data.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name));
            document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}));""",
            packed,
        )

    def tool(self, command, **params):
        """A command of the developer tools."""
        return self.call("POST", "/goog/cdp/execute", cmd=command, params=params)

    def size(self, width, height):
        """The size of the page's own area; smaller than a window may be."""
        self.tool("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)

    def media(self, scheme, kind=""):
        """Prefer a light or dark scheme; show the page as on `kind`, such as print."""
        self.tool("Emulation.setEmulatedMedia", media=kind, features=[{"name": "prefers-color-scheme", "value": scheme}])

    def complaints(self):
        """What the page's console has said since the last call."""
        return [entry["message"] for entry in self.call("POST", "/se/log", type="browser")]

    def printed(self):
        """The page on paper, as PDF."""
        return base64.b64decode(self.call("POST", "/print"))

    def picture(self, path):
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))


@contextmanager
def chromium(folder):
    """A browser with its profile in `folder`; the test is skipped where there is none."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs Chromium and chromedriver")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = os.environ | {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    driver = subprocess.Popen([DRIVER, f"--port={port}"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        root = f"http://127.0.0.1:{port}"
        session = _start(root, [*ARGUMENTS, f"--user-data-dir={folder / 'profile'}"])
        browser = Browser(root, session)
        try:
            yield browser
        finally:
            browser.call("DELETE", "")
    finally:
        driver.terminate()
        driver.wait(20)


def _start(root, arguments):
    wanted = {
        "browserName": "chrome",
        "goog:chromeOptions": {"args": arguments, "binary": CHROMIUM},
        "goog:loggingPrefs": {"browser": "ALL"},
    }
    body = json.dumps({"capabilities": {"alwaysMatch": wanted}}).encode()
    for attempt in range(100):
        try:
            request = urllib.request.Request(f"{root}/session", body, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]["sessionId"]
        except OSError as error:
            if attempt == 99 or isinstance(error, urllib.error.HTTPError):
                raise
            time.sleep(0.1)

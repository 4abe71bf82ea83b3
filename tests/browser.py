"""Headless Chromium for tests, driven by selenium. Binary and driver are named: it fetches none."""

import base64
import os
import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A selenium WebDriver with a profile of its own, for the tests of one file."""
    with started(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


@contextmanager
def started(folder):
    """A browser that keeps all it writes in `folder`; the test is skipped where there is none."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs Chromium and chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in [*ARGUMENTS, f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(argument)
    homes = dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), str(folder))
    service = webdriver.ChromeService(executable_path=DRIVER, env=os.environ | homes)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


def wait_for(driver, script, *values, seconds=30):
    """The value of a script in the page as soon as it is true."""
    from selenium.webdriver.support.wait import WebDriverWait

    waiting = WebDriverWait(driver, seconds, poll_frequency=0.1)
    return waiting.until(lambda page: page.execute_script(script, *values), f"waited for {script}")


def set_size(driver, width, height):
    """The size of the page's own area; smaller than a window may be."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def set_media(driver, scheme, kind=""):
    """Prefer a light or dark scheme; show the page as on `kind`, such as print."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": kind, "features": features})


def complaints(driver):
    """What the page's console has said since the last call."""
    return [entry["message"] for entry in driver.get_log("browser")]


def drop(driver, *files):
    """Drop files, as (name, bytes), on the page."""
    packed = [[name, base64.b64encode(raw).decode()] for name, raw in files]
    driver.execute_script(
        """const data = new DataTransfer();
        for (const [name, text] of arguments[0]) {
            const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
            data.items.add(new File([bytes], name));
        }
        const options = {dataTransfer: data, bubbles: true, cancelable: true};
        document.body.dispatchEvent(new DragEvent('drop', options));""",
        packed,
    )

"""A headless Chromium for tests, which are skipped if it is missing."""

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import axe_core_python
import pytest
from selenium.common.exceptions import (
    NoSuchElementException,
    StaleElementReferenceException,
    TimeoutException,
    WebDriverException,
)
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from urllib3.exceptions import HTTPError

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
)

_ANSWER_LIMIT_S = 50
_DRAWING_LIMIT_S = 10


@contextmanager
def chromium(width: int = 1400, height: int = 1000) -> Iterator[Chrome]:
    """Yield a browser; skip the test if there is none."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs Chromium and its driver: apt install chromium chromium-driver")
    options = ChromeOptions()
    for flag in (*_FLAGS, f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driven = _started(options, driver)
    try:
        yield driven
    finally:
        driven.quit()


def _started(options: ChromeOptions, driver: str) -> Chrome:
    """Start the browser, twice if needed: under load it may hang."""
    usual = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_ANSWER_LIMIT_S)
    try:
        return Chrome(options=options, service=ChromeService(driver))
    except (HTTPError, WebDriverException):
        return Chrome(options=options, service=ChromeService(driver))
    finally:
        socket.setdefaulttimeout(usual)


def opened(browser: Chrome, file: Path, fragment: str = "") -> None:
    """Open a page afresh."""
    browser.get("about:blank")
    browser.get(file.as_uri() + fragment)


def shows(browser: Chrome, selector: str, text: str) -> str:
    """Wait until an element shows some text, and return all of its text.

    A page redraws itself some time after a click, so the element is looked up each time.
    """
    seen = ""

    def is_there(_: Chrome) -> bool:
        nonlocal seen
        seen = browser.find_element(By.CSS_SELECTOR, selector).text
        return text in seen

    gone = (NoSuchElementException, StaleElementReferenceException)
    with suppress(TimeoutException):
        WebDriverWait(browser, _DRAWING_LIMIT_S, 0.02, ignored_exceptions=gone).until(is_there)
    assert text in seen, f"{selector} shows {seen!r}, not {text!r}"
    return seen


def complaints(browser: Chrome) -> list[str]:
    """Return the console's messages, and what the page tried to load besides itself."""
    console, requests = (_log(browser, kind) for kind in ("browser", "performance"))
    loaded = [
        text
        for text in requests
        if '"Network.requestWillBeSent"' in text and '"type":"Document"' not in text
    ]
    return console + [text for text in loaded if '"url":"data:' not in text]


def violations(browser: Chrome) -> list[str]:
    """Return the accessibility violations that axe finds in the page."""
    script = Path(axe_core_python.__file__).parent / "axe.min.js"
    browser.execute_script(script.read_text(encoding="utf-8"))
    found = browser.execute_async_script(
        "axe.run().then(arguments[0], (error) => arguments[0]({violations: [{id: `${error}`}]}))"
    )
    return [
        f"{each['id']}: {each.get('help')}: {[node['html'] for node in each.get('nodes', ())]}"
        for each in found["violations"]
    ]


def phone(browser: Chrome, size: int = 390) -> None:
    """Emulate a phone of this width; 0: a desktop again."""
    if not size:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        return
    metrics = {"width": size, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def _log(browser: Chrome, kind: str) -> list[str]:
    entries = browser.get_log(kind)  # type: ignore[no-untyped-call]
    return [str(entry["message"]) for entry in entries]

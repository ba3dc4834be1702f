"""A headless Chromium for tests, steered through chromedriver by plain HTTP (W3C WebDriver)."""

import base64
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running import PATIENCE, eventually, free_port

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-proxy-server", "--window-size=1100,1400",
)  # fmt: skip
MISSING = [program for program in ("chromium", "chromedriver") if shutil.which(program) is None]

needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"not on PATH: {' and '.join(MISSING)}")


class Browser:
    """One window; elements are named by XPath."""

    def __init__(self, session: httpx.Client) -> None:
        self.session = session

    def open(self, url: str) -> None:
        self._post("url", url=url)

    def find(self, xpath: str) -> str:
        """The first such element, waited for."""
        found = eventually(lambda: self._post("elements", using="xpath", value=xpath))
        return str(next(iter(found[0].values())))

    def click(self, xpath: str) -> None:
        self._post(f"element/{self.find(xpath)}/click")

    def type(self, xpath: str, text: str) -> None:
        """Put ``text`` in the place of what the field holds."""
        element = self.find(xpath)
        self._post(f"element/{element}/clear")
        self._post(f"element/{element}/value", text=text)

    def text(self, xpath: str) -> str:
        """What a reader sees of the element."""
        return str(self._value(self.session.get(f"element/{self.find(xpath)}/text")))

    def run(self, script: str) -> Any:
        """What a script in the page returns."""
        return self._post("execute/sync", script=script, args=[])

    def accept(self) -> None:
        """Say yes to the question that the page asks."""
        self._post("alert/accept")

    def look(self, width: int, height: int, dark: bool) -> None:
        """Show the page on a screen of this size, with a dark or a light system."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._tool("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._tool("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, file: Path) -> None:
        """Write a PNG of the whole page."""
        file.write_bytes(base64.b64decode(self._tool("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def complaints(self) -> list[str]:
        """What the console has said since the last call, errors and warnings alike."""
        return [entry["message"] for entry in self._post("se/log", type="browser")]

    def _tool(self, command: str, **parameters: Any) -> Any:
        """Chrome's DevTools protocol."""
        return self._post("goog/cdp/execute", cmd=command, params=parameters)

    def _post(self, command: str, **arguments: Any) -> Any:
        return self._value(self.session.post(command, json=arguments))

    @staticmethod
    def _value(response: httpx.Response) -> Any:
        value = response.json()["value"]
        assert response.status_code == 200, value
        return value


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own in ``folder``, closed in the end."""
    port = free_port()
    command = ["chromedriver", f"--port={port}", f"--log-path={folder / 'chromedriver.log'}"]
    driver = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
            eventually(lambda: _is_up(client))
            options = {"args": [*FLAGS, f"--user-data-dir={folder / 'profile'}"], "binary": shutil.which("chromium")}
            always = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "WARNING"}}
            wanted = {"capabilities": {"alwaysMatch": always}}
            session = client.post("/session", json=wanted).json()["value"]["sessionId"]
            client.base_url = httpx.URL(f"http://127.0.0.1:{port}/session/{session}/")
            try:
                yield Browser(client)
            finally:
                client.delete(f"http://127.0.0.1:{port}/session/{session}")
    finally:
        os.killpg(driver.pid, signal.SIGKILL)  # and what is left of the browser
        driver.wait(PATIENCE)


def _is_up(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/status").json()["value"]["ready"]
    return False


FAINT = """
const luminance = ([r, g, b]) => [r, g, b].map(part => part / 255)
  .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
  .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
const parts = colour => colour.match(/[\\d.]+/g).map(Number);
const ground = element => {
  for (let at = element; at; at = at.parentElement) {
    const colour = parts(getComputedStyle(at).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return parts(getComputedStyle(document.body).backgroundColor);
};
return [...document.body.querySelectorAll("*")].filter(element => element.checkVisibility({visibilityProperty: true})
  && (element.value || [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
  && !element.matches("noscript, :disabled")).map(element => {
  const [light, dark] = [parts(getComputedStyle(element).color), ground(element)].map(luminance).sort((a, b) => b - a);
  return [(light + 0.05) / (dark + 0.05), element.outerHTML.slice(0, 120)];
}).filter(([contrast]) => contrast < 4.5).map(([contrast, html]) => `${contrast.toFixed(2)}: ${html}`);
"""
"""The elements whose text has less contrast with its ground than WCAG 2.2 asks for (1.4.3)."""

UNNAMED = """
return [...document.querySelectorAll("button, input, textarea, a[href], section")].filter(element => element.checkVisibility())
  .filter(element => !(element.ariaLabel || element.labels?.length || element.textContent.trim()
    || document.getElementById(element.getAttribute("aria-labelledby")))).map(element => element.outerHTML.slice(0, 120));
"""
"""The elements of which a screen reader can tell no name."""

CUT_OFF = """
const width = document.documentElement.clientWidth;
return [...document.body.querySelectorAll("*")]
  .filter(element => element.checkVisibility() && !element.closest(".unseen, thead"))
  .filter(element => element.getBoundingClientRect().right > width + 0.5 || (element.scrollWidth > element.clientWidth + 1
    && getComputedStyle(element).overflowX === "hidden" && element.clientWidth > 1))
  .map(element => element.outerHTML.slice(0, 120));
"""
"""The elements that do not fit in the window."""

SCREENS = [(width, dark) for width in (390, 1280) for dark in (False, True)]


def check_on_every_screen(browser: Browser, pictures: Path) -> None:
    """Fails where something is cut off, too faint or without a name: on a phone and a desktop, light and dark.

    It fails too if the console has complained. The pictures are for people to look at.
    """
    for width, dark in SCREENS:
        browser.look(width, 844, dark)
        screen = f"{width}-{'dark' if dark else 'light'}"
        browser.picture(pictures / f"{screen}.png")
        found = {
            what: browser.run(script) for what, script in (("faint", FAINT), ("unnamed", UNNAMED), ("cut off", CUT_OFF))
        }
        assert not any(found.values()), f"{screen}: {found}"
    complaints = browser.complaints()
    assert not complaints, complaints

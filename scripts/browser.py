"""A headless Chromium, driven through its own chromedriver by the W3C WebDriver protocol: for tests of pages, and for pictures of them.
Debian: apt-get install chromium chromium-driver."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # how WebDriver marks an element
# Nothing is fetched that nobody asked for.
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-quic",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


class Browser:
    """One window. Elements are named by CSS selectors, and the first that fits is meant."""

    def __init__(self, address: str, folder: Path, size: tuple[int, int], dark: bool) -> None:
        words = [*QUIET, f"--user-data-dir={folder}", f"--window-size={size[0]},{size[1]}"]
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": CHROMIUM, "args": words},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        self.session = address
        self.session = f"{address}/session/{self.call('POST', '/session', capabilities={'alwaysMatch': wanted})['sessionId']}"
        self.open("about:blank")  # what stood there asked for a lot
        self.complaints(), self.requests()
        if dark:
            scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
            self.call("POST", "/goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params=scheme)

    def call(self, method: str, path: str, **body: Any) -> Any:
        """One command of the protocol; returns its value."""
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self.session + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None

    def open(self, url: str) -> None:
        """Go to a page."""
        self.call("POST", "/url", url=url)

    def run(self, script: str, *values: Any) -> Any:
        """The value that JavaScript returns; ``arguments`` are the values."""
        return self.call("POST", "/execute/sync", script=script, args=list(values))

    def find(self, css: str) -> str:
        """The element's name in the protocol, once it is there."""
        found = self.until(lambda: self.call("POST", "/elements", using="css selector", value=css), f"there is no {css}")
        return found[0][ELEMENT]

    def click(self, css: str) -> None:
        """As a person does: refused where something covers the element."""
        self.call("POST", f"/element/{self.find(css)}/click")

    def type(self, css: str, text: str) -> None:
        """Replace a field's text; of a field for files, choose them (paths, one a line)."""
        element = self.find(css)
        if self.run("return arguments[0].type !== 'file'", {ELEMENT: element}):
            self.call("POST", f"/element/{element}/clear")
        self.call("POST", f"/element/{element}/value", text=text)

    def press(self, css: str, key: str) -> None:
        """A key of the protocol's list while an element has the focus, as ``\\ue014`` for the right arrow."""
        self.call("POST", f"/element/{self.find(css)}/value", text=key)

    def text(self, css: str) -> str:
        """What is to be read in an element."""
        return self.call("GET", f"/element/{self.find(css)}/text")

    def draw(self, css: str, strokes: Sequence[Sequence[tuple[float, float]]]) -> None:
        """Press, move and release over an element; points are fractions 0..1 of its width and height."""
        canvas = {ELEMENT: self.find(css)}
        self.run("arguments[0].scrollIntoView({block: 'center'})", canvas)
        width, height = self.run("const frame = arguments[0].getBoundingClientRect(); return [frame.width, frame.height]", canvas)
        moves: list[dict[str, Any]] = []
        for stroke in strokes:
            points = [{"x": round((x - 0.5) * width), "y": round((y - 0.5) * height), "origin": canvas} for x, y in stroke]
            there = [{"type": "pointerMove", "duration": 5, **point} for point in points]
            moves += [there[0], {"type": "pointerDown", "button": 0}, *there[1:], {"type": "pointerUp", "button": 0}]
        self.call("POST", "/actions", actions=[{"type": "pointer", "id": "pen", "parameters": {"pointerType": "mouse"}, "actions": moves}])

    def until(self, ready: Callable[[], Any], complaint: str, seconds: float = 60) -> Any:
        """The value of ``ready`` once it is true."""
        deadline = time.monotonic() + seconds
        while not (value := ready()):
            if time.monotonic() > deadline:
                raise TimeoutError(complaint)
            time.sleep(0.05)
        return value

    def resize(self, width: int, height: int) -> None:
        """Make the window so many pixels large."""
        self.call("POST", "/window/rect", width=width, height=height)

    def shoot(self, path: Path) -> None:
        """A PNG of the window."""
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))

    def complaints(self) -> list[str]:
        """The errors in the console since it was last asked: of scripts, refused resources, answers of 400 and above."""
        return [entry["message"] for entry in self.call("POST", "/se/log", type="browser") if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """Every address that the page has asked for since this was last called."""
        events = [json.loads(entry["message"])["message"] for entry in self.call("POST", "/se/log", type="performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@contextmanager
def browser(size: tuple[int, int] = (1280, 1000), dark: bool = False) -> Iterator[Browser]:
    """A browser with an empty profile, which ends with the block.

    Args:
        size: of the window, pixels.
        dark: whether its user prefers a dark scheme.
    """
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        subprocess.Popen([DRIVER or "chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver,
    ):
        try:
            assert driver.stdout is not None
            started = next((found for line in driver.stdout if (found := re.search(r"started successfully on port (\d+)", line))), None)
            if started is None:
                raise RuntimeError("chromedriver did not start")
            window = Browser(f"http://127.0.0.1:{started[1]}", Path(folder), size, dark)
            try:
                yield window
            finally:
                window.call("DELETE", "")
        finally:
            driver.terminate()

"""A real browser, spoken to in its own protocol over a pipe: no driver, no port, no package."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOUND = next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a browser. What goes wrong on it, and what it asks the network for, is kept."""

    def __init__(self, to: int, back: int) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._to, self._back = os.fdopen(to, "wb", 0), os.fdopen(back, "rb", 0)
        self._id, self._rest, self._session = 0, b"", ""
        self._loaded = self._down = False
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        """Give an order, and return the answer."""
        self._id += 1
        order = {"id": self._id, "method": method, "params": params}
        if self._session:
            order["sessionId"] = self._session
        self._to.write(json.dumps(order).encode() + b"\0")
        while (message := self._next()).get("id") != self._id:
            self._take(message)
        assert "error" not in message, message
        return message["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = self._back.read(1 << 16)
            assert more, "the browser is gone"
            self._rest += more
        text, self._rest = self._rest.split(b"\0", 1)
        found: dict[str, Any] = json.loads(text)
        return found

    def _take(self, message: dict[str, Any]) -> None:
        what = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(what["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(str(what["exceptionDetails"]))
            case "Log.entryAdded":
                self.errors.append(str(what["entry"]))
            case "Runtime.consoleAPICalled" if what["type"] in ("error", "warning", "assert"):
                self.errors.append(str(what["args"]))

    def open(self, file: Path, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Open a file and return when it has loaded and its scripts have run."""
        self.errors, self.requests = [], []
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[theme])
        self._loaded = False
        self.send("Page.navigate", url=file.as_uri())
        while not self._loaded:
            self._take(self._next())
        self.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")

    def close(self) -> None:
        """End it in order: then its own processes leave the profile alone."""
        self._session = ""
        self.send("Browser.close")

    def run(self, script: str) -> Any:
        """Return the value of an expression on the page, after what it promises."""
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Move the mouse, press or release its button: mouseMoved, mousePressed, mouseReleased."""
        if kind != "mouseMoved":
            self._down = kind == "mousePressed"
        more: dict[str, Any] = {"buttons": int(self._down)}
        if kind != "mouseMoved":
            more |= {"button": "left", "clickCount": 1}
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def picture(self, file: Path) -> None:
        """Write a picture of the whole page."""
        found = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a browser, with a profile of its own, and end it."""
    assert FOUND
    to_read, to_write = os.pipe()
    back_read, back_write = os.pipe()
    command = [
        *("bash", "-c", f'exec "$@" 3<&{to_read} 4>&{back_write}', "bash", FOUND, "--headless"),
        *("--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"),
        *("--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions"),
        *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]
    started = subprocess.Popen(
        command,
        pass_fds=(to_read, back_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(back_write)
    try:
        found = Browser(to_write, back_read)
        yield found
        found.close()
    finally:
        started.terminate()
        started.wait()

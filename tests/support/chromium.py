"""A headless Chromium that opens a page: clicks, keys, values, screenshots, complaints.

The DevTools protocol over two pipes: JSON, a zero byte after each message. No other package.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
TIMEOUT = 120.0  # seconds, on a busy machine


class Browser:
    """One page of a Chromium."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, come: int) -> None:
        self._process, self._to, self._come = process, to, come
        self._buffer, self._number, self._session = b"", 0, ""
        self.complaints: list[str] = []  # errors, exceptions, failed requests
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """A command of the protocol; its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == self._number:
                assert "error" not in found, found["error"]
                return found["result"]

    def _receive(self) -> Any:
        until = time.monotonic() + TIMEOUT
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._come], [], [], max(0.0, until - time.monotonic()))
            data = os.read(self._come, 2**20) if ready else b""
            assert data, "the browser does not answer"
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        found = json.loads(text)
        self._notice(found.get("method", ""), found.get("params", {}))
        return found

    def _notice(self, event: str, found: Any) -> None:
        if event == "Runtime.exceptionThrown":
            self.complaints.append(str(found["exceptionDetails"]))
        elif event == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.complaints.append(found["entry"]["text"])
        elif event == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning"):
            self.complaints.append(str(found["args"]))
        elif event == "Network.requestWillBeSent":
            url = found["request"]["url"]
            if not url.startswith(("file:", "data:", "about:")):
                self.complaints.append(f"asks for {url}")

    def open(self, path: Path, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Open a file, and wait until its scripts have run."""
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.as_uri())
        while self.value("document.readyState") != "complete":
            time.sleep(0.02)

    def resize(self, width: int, height: int) -> None:
        size: dict[str, Any] = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", **size, mobile=width < 600)

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def text(self, selector: str) -> str:
        return str(self.value(f"document.querySelector({json.dumps(selector)}).textContent"))

    def key(self, *keys: str) -> None:
        """Press keys by their names in JavaScript: "ArrowLeft", "n"."""
        for key in keys:
            for kind in ("keyDown", "keyUp"):
                text = {"text": key} if len(key) == 1 and kind == "keyDown" else {}
                self.call("Input.dispatchKeyEvent", type=kind, key=key, **text)

    def move(self, selector: str, across: float = 0.5, down: float = 0.5) -> tuple[float, float]:
        """Move the mouse over an element, to this part of its width and height."""
        name = json.dumps(selector)
        self.value(f"document.querySelector({name}).scrollIntoView({{block: 'nearest'}})")
        box = f"document.querySelector({name}).getBoundingClientRect()"
        x, y, w, h = self.value(f"(b => [b.x, b.y, b.width, b.height])({box})")
        at = x + across * w, y + down * h
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=at[0], y=at[1])
        return at

    def click(self, selector: str, across: float = 0.5, down: float = 0.5) -> None:
        x, y = self.move(selector, across, down)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A Chromium with a profile in `folder`."""
    assert PROGRAM is not None
    flags = "--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --no-first-run"
    flags += " --disable-background-networking --disable-component-update --disable-sync"
    flags += f" --user-data-dir={folder}"
    theirs_in, to = os.pipe()
    come, theirs_out = os.pipe()
    # In a process of its own: between fork and exec a low number may belong to subprocess.
    high = f"a, b = (fcntl(n, F_DUPFD, 10) for n in ({theirs_in}, {theirs_out}))"
    start = f"import os, sys; from fcntl import *; {high}; os.dup2(a, 3); os.dup2(b, 4); "
    start += "os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", start, PROGRAM]
    process = subprocess.Popen(
        [*command, *flags.split(), "about:blank"],
        pass_fds=(theirs_in, theirs_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(process, to, come)
    finally:
        os.close(to)
        os.close(come)
        process.terminate()
        process.wait(30)

"""A real browser for tests: Chromium without a window, spoken to in the DevTools protocol over a pipe.

https://chromedevtools.github.io/devtools-protocol: messages are JSON objects, each with a zero byte behind it; the
browser reads them from file descriptor 3 and writes to 4 (--remote-debugging-pipe), so no port and no socket is needed.
"""

from __future__ import annotations

import base64
import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = "no Chromium on this computer: `apt install chromium`, or name one in $CHROMIUM (CONTRIBUTING.md)"
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # in a container there is none to be had, and the pages are gesso's own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
PATIENCE = 30.0
"""Seconds that one answer of the browser may take."""
# The pipes' ends in this process have numbers of their own; in the browser they must be 3 and 4.
START = """
import fcntl, os, sys
reading, writing = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(reading, 3), os.dup2(writing, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""

Message = dict[str, Any]


def find() -> str | None:
    """The browser: $CHROMIUM, or the first one that is installed."""
    named = os.environ.get("CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A running browser. `profile` is an empty folder for what it keeps."""

    def __init__(self, program: str, profile: Path) -> None:
        reading, self._write = os.pipe()
        self._read, writing = os.pipe()
        for end in (reading, writing):
            os.set_inheritable(end, True)
        starting = [sys.executable, "-I", "-S", "-c", START, str(reading), str(writing), program]
        self._log = profile / "chromium.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*starting, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
                pass_fds=(reading, writing),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        os.close(reading)
        os.close(writing)
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._read, selectors.EVENT_READ)
        self._rest = b""
        self._number = 0
        self._answers: dict[int, Message] = {}
        self.events: list[Message] = []

    def send(self, method: str, session: str | None = None, **params: Any) -> Message:
        """Carry out a command and give its result; AssertionError where the browser refuses it."""
        self._number += 1
        message: Message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        rest = memoryview(json.dumps(message).encode() + b"\0")
        while rest:
            rest = rest[os.write(self._write, rest) :]
        until = time.monotonic() + PATIENCE
        while self._number not in self._answers:
            self._receive(until, method)
        answer = self._answers.pop(self._number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return dict(answer["result"])

    def wait(self, session: str, method: str) -> Message:
        """The first event `method` of a session that is not taken yet."""
        until = time.monotonic() + PATIENCE
        while True:
            for event in self.events:
                if event.get("sessionId") == session and event["method"] == method:
                    self.events.remove(event)
                    return event
            self._receive(until, method)

    def _receive(self, until: float, awaited: str) -> None:
        """Read what there is, for at most until then."""
        if not self._ready.select(max(until - time.monotonic(), 0.0)):
            raise TimeoutError(f"the browser did not answer in {PATIENCE:.0f} s: {awaited}")
        read = os.read(self._read, 1 << 20)
        assert read, f"the browser ended with code {self._process.wait()} ({self._log}): {awaited}"
        *whole, self._rest = (self._rest + read).split(b"\0")
        for message in map(json.loads, whole):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self.events.append(message)

    def close(self) -> None:
        """End the browser."""
        self.send("Browser.close")
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._ready.close()
            os.close(self._read)
            os.close(self._write)

    @contextmanager
    def page(self, file: Path, *, width: int = 1100, height: int = 900, dark: bool = False) -> Iterator[Page]:
        """The page of a file in a tab of its own, `width` by `height` CSS pixels; up to 640 wide it is a phone's."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.send(f"{domain}.enable")
        phone = width <= 640
        scale = 2 if phone else 1
        page.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        page.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        page.send("Emulation.setFocusEmulationEnabled", enabled=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.send("Emulation.setEmulatedMedia", features=[scheme])
        page.send("Page.navigate", url=file.resolve().as_uri())
        self.wait(session, "Page.loadEventFired")
        try:
            yield page
        finally:
            self.send("Target.closeTarget", targetId=target)
            self.events = [event for event in self.events if event.get("sessionId") != session]


class Page:
    """A page in a tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def send(self, method: str, **params: Any) -> Message:
        return self._browser.send(method, self._session, **params)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited where it is a promise."""
        answer = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]["exception"].get("description")
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Click with the mouse in the middle of the first such element, which is brought into sight before."""
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def tap(self, selector: str, *, moved: float = 0.0) -> None:
        """The same with a finger, which moves by so many pixels to the right before it leaves."""
        x, y = self._middle(selector)
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        if moved:
            for part in (0.5, 1.0):
                self.send("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": x + part * moved, "y": y}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def key(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key; `code` is its Windows virtual key code, `text` what it types."""
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **typed)

    @property
    def asked(self) -> list[str]:
        """What the page has asked for beside itself and pictures inside it."""
        urls = [event["params"]["request"]["url"] for event in self._events("Network.requestWillBeSent")]
        return [url for url in urls[1:] if not url.startswith("data:image/")]

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings on the console, a breach of the page's own policy among them, and uncaught exceptions."""
        logged = [event["params"]["entry"] for event in self._events("Log.entryAdded")]
        said = [event["params"] for event in self._events("Runtime.consoleAPICalled")]
        thrown = [event["params"]["exceptionDetails"] for event in self._events("Runtime.exceptionThrown")]
        return [
            *(entry["text"] for entry in logged if entry["level"] in ("error", "warning")),
            *(str(each["args"]) for each in said if each["type"] in ("error", "warning", "assert")),
            *(str(each.get("exception", {}).get("description", each["text"])) for each in thrown),
        ]

    def shot(self, to: Path, *, whole: bool = True) -> None:
        """A picture of the page."""
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        to.write_bytes(base64.b64decode(shot["data"]))

    def _events(self, method: str) -> list[Message]:
        return [e for e in self._browser.events if e.get("sessionId") == self._session and e["method"] == method]

    def _middle(self, selector: str) -> tuple[float, float]:
        x, y = self.run(
            f"""(() => {{
                const found = document.querySelector({json.dumps(selector)});
                found.scrollIntoView({{ block: "center", behavior: "instant" }});
                const box = found.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        return float(x), float(y)

"""A real browser for tests: Chromium without a window, by its DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/ names the methods and events that are used here.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WAIT_S = 60.0  # for what a page is to do; generous, since tests share their machine
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = {  # name -> Windows key code, text that it types
    "Tab": (9, ""),
    "Enter": (13, "\r"),
    "Space": (32, " "),
    "ArrowLeft": (37, ""),
    "ArrowRight": (39, ""),
    "ArrowUp": (38, ""),
    "ArrowDown": (40, ""),
    "End": (35, ""),
    "Home": (36, ""),
}


def find_chromium() -> str | None:
    """The program, or None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class PageError(AssertionError):
    """What a page was asked went wrong, or did not happen in time."""


class Browser:
    """One Chromium with pages in it. Its profile is new, and removed at the end."""

    def __init__(self) -> None:
        from websockets.sync.client import connect

        program = find_chromium()
        assert program is not None, "no Chromium; install Debian's package chromium"
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        options = [
            "--headless=new",
            "--remote-debugging-port=0",
            f"--user-data-dir={self._folder.name}",
            "--no-first-run",
            "--disable-gpu",
            "--disable-extensions",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            # Root may not use the sandbox, and the pages here are our own.
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ]
        self._process = subprocess.Popen(
            [program, *options, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            connection = connect(self._address(), max_size=None, open_timeout=WAIT_S)
            self._stack = contextlib.ExitStack()
            self._socket = self._stack.enter_context(connection)
        except BaseException:
            self._end_process()
            raise
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _address(self) -> str:
        """Chromium writes where it listens into its profile."""
        path = Path(self._folder.name) / "DevToolsActivePort"
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end and self._process.poll() is None:
            lines = path.read_text().splitlines() if path.exists() else []
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            time.sleep(0.05)
        raise PageError("Chromium did not start")

    def _read(self) -> None:
        with contextlib.suppress(Exception):  # closed: nobody waits any longer
            for text in self._socket:
                message = json.loads(text)
                if "id" in message:
                    self._answers[message["id"]].put(message)
                elif (page := self._pages.get(message.get("sessionId", ""))) is not None:
                    page.note(message["method"], message["params"])

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Call a method of the protocol; `session` is a page's."""
        number = next(self._numbers)
        self._answers[number] = queue.SimpleQueue()
        asked = {"id": number, "method": method, "params": params}
        self._socket.send(json.dumps(asked | ({"sessionId": session} if session else {})))
        try:
            answer = self._answers[number].get(timeout=WAIT_S)
        except queue.Empty:
            raise PageError(f"Chromium did not answer {method} within {WAIT_S:.0f} s") from None
        finally:
            del self._answers[number]
        if "error" in answer:
            raise PageError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    @contextlib.contextmanager
    def page(
        self,
        url: str,
        size_wh: tuple[int, int] = (1280, 800),
        *,
        is_phone: bool = False,
        scheme: str = "light",
    ) -> Iterator[Page]:
        """A page in a window of its own, with cookies of its own."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, attached["sessionId"])
        self._pages[page.session] = page
        try:
            page.prepare(size_wh, is_phone=is_phone, scheme=scheme)
            page.call("Page.navigate", url=url)
            page.wait_for("location.href !== 'about:blank' && document.readyState === 'complete'")
            yield page
        finally:
            del self._pages[page.session]
            self.call("Target.disposeBrowserContext", browserContextId=context)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        self._stack.close()
        self._reader.join(WAIT_S)
        self._end_process()

    def _end_process(self) -> None:
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


class Page:
    """One page, as a person or its scripts would use it.

    Attributes:
        problems: errors and warnings of its console, and exceptions of its scripts.
        requests: the addresses that it has asked for.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self.session = session
        self.problems: list[str] = []
        self.requests: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self.session, **params)

    def prepare(self, size_wh: tuple[int, int], *, is_phone: bool, scheme: str) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(size_wh, is_phone=is_phone)
        self.set_media(scheme=scheme)

    def resize(self, size_wh: tuple[int, int], *, is_phone: bool = False) -> None:
        """A window of (width, height) CSS pixels; a phone's has fingers in place of a mouse."""
        width, height = size_wh
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=is_phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=is_phone)

    def set_media(self, *, scheme: str, motion: str = "no-preference") -> None:
        """What the person's system prefers: "light" or "dark"; "reduce" or "no-preference"."""
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        named = [{"name": name, "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=named)

    def note(self, method: str, params: dict[str, Any]) -> None:
        """An event of the protocol, on the reader's thread."""
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            told = details.get("exception", {}).get("description", details["text"])
            self.problems.append(told)
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.problems.append(str([each.get("value") for each in params["args"]]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            entry = params["entry"]
            self.problems.append(f"{entry['text']} {entry.get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, as JSON; a promise is awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait_for(self, expression: str, timeout_s: float = WAIT_S) -> Any:
        """Ask for an expression again and again until it is truthy; its value."""
        end = time.monotonic() + timeout_s
        while not (value := self.evaluate(expression)):
            if time.monotonic() > end:
                raise PageError(f"not true within {timeout_s:.0f} s: {expression}")
            time.sleep(0.05)
        return value

    def press(self, key: str, times: int = 1) -> None:
        """A key of KEYS, pressed and let go."""
        code, text = KEYS[key]
        name = " " if key == "Space" else key
        told = {"key": name, "code": key, "windowsVirtualKeyCode": code}
        for _ in range(times):
            down = "keyDown" if text else "rawKeyDown"
            self.call("Input.dispatchKeyEvent", type=down, text=text, **told)
            self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path | None = None) -> bytes:
        """PNG of what the window shows."""
        png = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if path is not None:
            path.write_bytes(png)
        return png

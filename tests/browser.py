"""A page opened in headless Chromium, driven over the DevTools protocol through a pipe: nothing to install but the
browser. Every request, console message and exception is noted."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu-sandbox",
    "--enable-unsafe-swiftshader",
    "--use-angle=swiftshader",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
    # No name resolves but this machine's own address, and what still connects meets a closed port.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--proxy-server=http://127.0.0.1:9",
)


STARTS = 3


class NoAnswerError(AssertionError):
    """The browser's process ended, or stayed silent, while an answer was waited for."""


def executable() -> str | None:
    """Chromium or Chrome on this machine; CHROME names another."""
    named = os.environ.get("CHROME")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


def _pipe() -> tuple[int, int]:
    """The two ends of a pipe, with numbers above those that a browser uses."""
    low = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in low)
    for end in low:
        os.close(end)
    return high


class Browser:
    """One headless browser with one tab.

    Attributes:
        requests: URLs the page asked for, its own among them.
        complaints: console errors, failed loads, uncaught exceptions, violations of the content policy.
    """

    def __init__(self, profile: Path, width: int = 1000, height: int = 800) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        # The first browser that a machine starts now and then ends, or hangs, before its first answer; the next works.
        for attempt in range(1, STARTS + 1):
            self._start(profile / str(attempt), width, height)
            try:
                target = self.call("Target.createTarget", url="about:blank")["targetId"]
                break
            except NoAnswerError:
                self._end()
                if attempt == STARTS:
                    raise
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def _start(self, profile: Path, width: int, height: int) -> None:
        command = executable()
        assert command is not None
        self._session: str | None = None
        self._number, self._buffer = 0, b""
        to_browser, self._out = _pipe()
        self._in, from_browser = _pipe()
        arguments = [command, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"]
        # The browser reads its file descriptor 3 and writes 4; an end that stayed open there would hide that it ended.
        moves = f"exec 3<&{to_browser} 4>&{from_browser} {to_browser}<&- {from_browser}>&-"
        profile.mkdir(parents=True)
        self._said = profile / "said.txt"
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                ["bash", "-c", f'{moves}; exec "$@"', "browser", *arguments],
                pass_fds=(to_browser, from_browser),
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
        os.close(to_browser)
        os.close(from_browser)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait(timeout=60)
        os.close(self._out)
        os.close(self._in)

    def _ended(self) -> NoAnswerError:
        """What to raise once the browser answers no more: how it ended, and what it said last."""
        try:
            status = f"status {self._process.wait(timeout=10)}"
        except subprocess.TimeoutExpired:  # it has closed its pipe and stays
            status = "no status: its process goes on, its pipe is closed"
        return NoAnswerError(f"the browser has ended with {status}; it said last:\n{self._last_words()}")

    def _last_words(self) -> str:
        return self._said.read_text(errors="replace")[-2000:]

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def call(self, method: str, timeout: float = 300, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        try:
            os.write(self._out, json.dumps(message).encode() + b"\0")
        except BrokenPipeError:
            raise self._ended() from None
        deadline = time.monotonic() + timeout
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def open(self, page: Path | str) -> None:
        """Open a file, or an address on this machine."""
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are waited for."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, expression: str, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.05)

    def screenshot(self, path: Path) -> Path:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path

    def show_as(self, width: int, *, dark: bool) -> None:
        """Look at the page on a screen `width` pixels wide, in a light or dark setting."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def cut_off(self) -> list[str]:
        """Texts and figures of the page that stand out of the screen to the left or right."""
        return self.evaluate(
            "[...document.querySelectorAll('h1, h2, p, th, td, figcaption, caption, .card, svg, .verdict, button, "
            "input, pre, .neuron-map, .legend')].filter((each) => {"
            " const box = each.getBoundingClientRect(), hidden = getComputedStyle(each).clipPath !== 'none'"
            "   || each.closest('thead, .unseen, .js-plotly-plot, #js-plotly-tester') !== null;"
            " return box.width > 0 && !hidden && (box.left < -1 || box.right > innerWidth + 1"
            "   || each.scrollWidth > each.clientWidth + 1 && each.clientWidth > 0"
            "     && (getComputedStyle(each).overflowX !== 'visible' || box.left + each.scrollWidth > innerWidth + 1));"
            " })"
            ".map((each) => `${each.tagName} ${each.className.baseVal ?? each.className}: `"
            " + each.textContent.trim().slice(0, 40))"
        )

    def press(self, key: str, code: int) -> None:
        """Press and release a key, for example ("Tab", 9)."""
        for type_ in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=type_, key=key, code=key, windowsVirtualKeyCode=code)

    def move_mouse(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise NoAnswerError(f"the browser does not answer; it said last:\n{self._last_words()}")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise self._ended()
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, parameters: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Network.loadingFailed":
            self.complaints.append(f"failed to load: {parameters.get('errorText')}")
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            self.complaints.append(f"console: {[value.get('value') for value in parameters['args']]}")
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(f"log: {parameters['entry']['text'][:500]}")

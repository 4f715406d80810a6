"""A headless Chromium driven through its own pipe (DevTools protocol), for tests of pages.

No driver and no websocket library: the browser reads commands from descriptor 3 and writes answers
to descriptor 4, JSON texts that end in a zero byte.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
#: Contrast of every text against the nearest painted ground, as WCAG defines it.
CONTRAST = """
(() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const f = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const lum = ([r, g, b]) => { return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
  const ground = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length && c[3] !== 0) return c; } return [255, 255, 255]; };
  const bad = [];
  for (const e of document.querySelectorAll('body *:not(script):not(svg *)')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const [a, b] = [lum(parse(getComputedStyle(e).color)), lum(ground(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) bad.push(e.className + ' ' + e.textContent.slice(0, 30));
  }
  return bad;
})()
"""


def find() -> str | None:
    """The browser of this machine, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Page:
    """What became of a page: requests beside the page itself, and everything on the console."""

    browser: Chromium
    session: str
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, parameters, self.session)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, also when the page itself may run none."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def accessibility(self, axe: str, *, least: tuple[str, ...]) -> list[str]:
        """What axe-core finds wrong in the page, of these impacts: rule, impact and element.

        ``axe``: the text of axe.min.js. Evaluated from outside: the page may run no script.
        """
        self.call("Runtime.evaluate", expression=axe)
        ask = "axe.run(document).then(found => JSON.stringify(found.violations))"
        answer = self.call(
            "Runtime.evaluate", expression=ask, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return [
            f"{one['id']} ({one['impact']}): {node['html'][:200]}"
            for one in json.loads(answer["result"]["value"])
            if one["impact"] in least
            for node in one["nodes"]
        ]

    def screenshot(self, path: Path | None = None, *, whole: bool = True) -> bytes:
        """A PNG of the whole page, or of what is seen first."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole,
                           **self._clip() if whole else {})  # fmt: skip
        png = base64.b64decode(answer["data"])
        if path is not None:
            path.write_bytes(png)
        return png

    def _clip(self) -> dict[str, Any]:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        area = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 12_000)}
        return {"clip": {**area, "scale": 1}}


class Chromium:
    """One browser for many pages. Closed by :func:`running`."""

    def __init__(self, executable: str, profile: str) -> None:
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        # The shell moves the pipes to 3 and 4, whatever their numbers are here.
        script = f'exec "$0" "$@" 3<&{read_commands} 4>&{write_answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, executable, "--headless=new", "--no-sandbox", "--disable-gpu",
             "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run",
             "--disable-background-networking", "--disable-dev-shm-usage", "--hide-scrollbars",
             "about:blank"],
            pass_fds=(read_commands, write_answers), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(read_commands)
        os.close(write_answers)
        self._buffer = b""
        self._number = 0
        self._pages: dict[str, Page] = {}
        self._loaded: set[str] = set()

    def close(self) -> None:
        with contextlib.suppress(OSError, AssertionError, TimeoutError):
            self.call("Browser.close", {}, limit=5)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def call(
        self, method: str, parameters: dict[str, Any], session: str | None = None, limit: float = 60
    ) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        end = time.monotonic() + limit
        while True:
            answer = self._next(end, method)
            if answer.get("id") == number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._event(answer)

    def open(
        self, path: Path, *, width: int = 1200, height: int = 900, dark: bool = False,
        scripts: bool = True, media: str = "screen",
    ) -> Page:  # fmt: skip
        """Load a local file and wait until everything in it is there."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        page = Page(self, session["sessionId"])
        self._pages[page.session] = page
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self._loaded.discard(page.session)
        page.call("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + 60
        while page.session not in self._loaded:
            self._event(self._next(end, "loading"))
        return page

    def _next(self, end: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(end - time.monotonic(), 0))
            if not ready:
                raise TimeoutError(f"chromium did not answer in time: {what}")
            chunk = os.read(self._answers, 1 << 20)
            if not chunk:
                raise AssertionError(f"chromium ended: {what}")
            self._buffer += chunk
        text, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        return message

    def _event(self, message: dict[str, Any]) -> None:
        page = self._pages.get(message.get("sessionId", ""))
        if page is None:
            return
        method, parameters = message["method"], message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded.add(page.session)
        elif method == "Network.requestWillBeSent":
            page.requests.append(parameters["request"]["url"])
        elif method == "Runtime.consoleAPICalled":
            page.messages.append(f"console: {parameters['args']}")
        elif method == "Runtime.exceptionThrown":
            page.messages.append(f"exception: {parameters['exceptionDetails']}")
        elif method == "Log.entryAdded":
            page.messages.append(f"log: {parameters['entry']['text']}")
        elif method == "Audits.issueAdded":
            page.messages.append(f"issue: {parameters['issue']['code']}")
        elif method == "Page.javascriptDialogOpening":
            page.messages.append(f"dialog: {parameters['message']}")
            self.call("Page.handleJavaScriptDialog", {"accept": True}, page.session)


@contextlib.contextmanager
def running(executable: str) -> Iterator[Chromium]:
    """A browser with a fresh profile, gone afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Chromium(executable, profile)
        try:
            yield browser
        finally:
            browser.close()

"""Headless Chromium, driven by its DevTools protocol (chromedevtools.github.io/devtools-protocol).

`python tests/browser_support.py PAGE PNG WIDTH HEIGHT light|dark [SELECTOR]` takes a screenshot, from an element on.
"""

import asyncio
import base64
import contextlib
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

SECONDS = 60
"""Longest wait for one answer, on two slow cores that other tests may share."""
PROBLEMS = ("Runtime.exceptionThrown", "Page.javascriptDialogOpening")


class Browser:
    """One page of a running Chromium.

    Attributes:
        problems: Errors and warnings of the console, exceptions and dialogs since the page was opened.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, runner: asyncio.Runner) -> None:
        self._socket, self._runner, self._numbers = socket, runner, itertools.count(1)
        self._events: list[dict[str, Any]] = []
        self.problems: list[str] = []

    def call(self, method: str, **params: Any) -> Any:
        """Calls a method of the protocol; events that come before its answer are kept."""
        number = next(self._numbers)
        self._runner.run(self._socket.send_json({"id": number, "method": method, "params": params}))
        while (message := self._receive()).get("id") != number:
            pass
        assert "error" not in message, message
        return message["result"]

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = self._runner.run(self._socket.receive_json(timeout=SECONDS))
        method, params = message.get("method", ""), message.get("params", {})
        entry = params.get("entry", {})
        bad_entry = method == "Log.entryAdded" and entry["level"] in ("error", "warning")
        bad_call = method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert")
        if method in PROBLEMS or bad_entry or bad_call:
            self.problems.append(str(entry.get("text") or params))
        self._events.append(message)
        return message

    def open(self, page: Path, width: int = 1100, height: int = 800, scheme: str = "light") -> None:
        """Opens a file in a window of a size in pixels, for someone who likes light or dark pages."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.problems.clear()
        self._events.clear()
        self.call("Page.navigate", url=page.absolute().as_uri())
        self.wait_for("Page.loadEventFired")

    def wait_for(self, event: str) -> None:
        while not any(message.get("method") == event for message in self._events):
            self._receive()

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Clicks with the mouse in the middle of an element."""
        place = f"document.querySelector({selector!r})"
        self.evaluate(f"{place}.scrollIntoView({{block: 'center'}})")
        box = self.evaluate(
            f"(box => [box.x + box.width / 2, box.y + box.height / 2])({place}.getBoundingClientRect())"
        )
        self._events.clear()
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def screenshot(self, file: Path, height: int, top: int = 0) -> None:
        """PNG of the page from `top` on, in pixels."""
        width = self.evaluate("innerWidth")
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Starts Chromium with a profile in a folder, and ends it."""
    line = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
    with (folder / "log").open("w+") as log, asyncio.Runner() as runner:
        process = subprocess.Popen([*line, f"--user-data-dir={folder}", "about:blank"], stdout=log, stderr=log)
        try:
            socket, session = runner.run(_connected(folder / "DevToolsActivePort"))
            try:
                yield Browser(socket, runner)
            finally:
                runner.run(session.close())
        finally:
            process.terminate()
            process.wait(timeout=SECONDS)


async def _connected(file: Path) -> tuple[aiohttp.ClientWebSocketResponse, aiohttp.ClientSession]:
    """Connects to the first page; the browser writes its port into a file."""
    async with asyncio.timeout(SECONDS):
        while not file.is_file() or len(file.read_text().splitlines()) < 2:
            await asyncio.sleep(0.1)
        session = aiohttp.ClientSession()
        async with session.get(f"http://127.0.0.1:{file.read_text().splitlines()[0]}/json") as answer:
            (page,) = [target for target in await answer.json() if target["type"] == "page"]
        return await session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=2**26), session


if __name__ == "__main__":
    page, png, width, height, scheme, *element = sys.argv[1:]
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        browser.open(Path(page), width=int(width), scheme=scheme)
        above = f"document.querySelector({element[0]!r}).getBoundingClientRect().top" if element else "0"
        browser.screenshot(Path(png), int(height), browser.evaluate(above))

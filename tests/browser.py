"""Chromium without a window, driven by its own protocol: what pages ask for and complain about, wide or narrow, light or dark."""

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tornado.websocket import websocket_connect

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
]


@dataclass
class Visit:
    """What a page did while it was opened: errors and warnings on the console, and the addresses that it asked for."""

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


class Browser:
    """One tab of one browser; a context, at whose end the browser ends."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        self._numbers = itertools.count(1)
        self._visit = Visit()
        self._events: list[str] = []
        self._loop = asyncio.new_event_loop()
        with (profile.with_suffix(".log")).open("wb") as log:
            command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        door = profile / "DevToolsActivePort"
        while not door.is_file() or len(door.read_text().splitlines()) < 2:
            assert self._process.poll() is None, profile.with_suffix(".log").read_text()
            time.sleep(0.05)
        port, path = door.read_text().splitlines()
        address = f"ws://127.0.0.1:{port}{path}"
        self._socket = self._wait(lambda: websocket_connect(address, max_message_size=1 << 28))
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._end)
        self._loop.close()
        self._process.terminate()
        self._process.wait()

    async def _end(self) -> None:
        self._socket.close()
        while await self._socket.read_message() is not None:
            pass

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command of the protocol."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._wait(lambda: self._socket.write_message(json.dumps(message)))
        while (answer := self._next()).get("id") != number:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def open(self, address: str, width: int, dark: bool = False, seconds: float = 60) -> Visit:
        """Load a page, `width` pixels wide, and wait until it has loaded."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self._visit, self._events = Visit(), []
        self.send("Page.navigate", url=address)
        until = time.monotonic() + seconds
        while "Page.loadEventFired" not in self._events:
            assert time.monotonic() < until, f"{address} did not load"
            self._next()
        self.evaluate("new Promise(done => setTimeout(done, 150))")  # for what scripts ask for once it has loaded
        return self._visit

    def evaluate(self, code: str) -> Any:
        """What an expression in the page comes to, once its promise is kept."""
        answer = self.send("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """The part of the page that is seen, as PNG."""
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def _wait(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        async def asked() -> Any:
            return await asyncio.wait_for(ask(), 60)

        return self._loop.run_until_complete(asked())

    def _next(self) -> dict[str, Any]:
        text = self._wait(self._socket.read_message)
        assert text is not None, "the browser went away"
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self._events.append(message["method"])
            self._hear(message["method"], message["params"])
        return message

    def _hear(self, method: str, said: Mapping[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self._visit.requests.append(said["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self._visit.complaints.append(json.dumps(said["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self._visit.complaints.append(json.dumps(said["args"]))
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self._visit.complaints.append(json.dumps(said["entry"]))

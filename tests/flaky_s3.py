"""A server on loopback between a client and an S3 server, which does to answers what networks and clouds do to them."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class FlakyS3:
    """What is done: `answer(request number, method, path)` gives a status to answer with in the server's place, `cut`
    to end the connection in the middle of the body, or None to pass the request on.
    """

    address: str = ""
    answer: Callable[[int, str, str], int | str | None] = lambda number, method, path: None
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def flaky_s3(behind: str) -> Iterator[FlakyS3]:
    """Passes requests on to the server at `behind` until the block is left."""
    state = FlakyS3()
    target = urlsplit(behind).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with state.lock:
                number = len(state.requests)
                state.requests.append(f"{self.command} {self.path}")
                if "Range" in self.headers:
                    state.ranges.append(f"{self.path} {self.headers['Range']}")
            doing = state.answer(number, self.command, self.path)
            if isinstance(doing, int):
                self.reply(doing, {}, b"<Error><Code>Injected</Code></Error>")
                return
            connection = http.client.HTTPConnection(target, timeout=10)
            connection.request(self.command, self.path, headers=dict(self.headers))
            found = connection.getresponse()
            body = found.read()
            connection.close()
            self.reply(found.status, dict(found.getheaders()), body, cut=doing == "cut")

        do_HEAD = do_GET

        def reply(self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", str(len(body))) if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.close_connection = True

        def log_message(self, format: str, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

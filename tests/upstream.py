"""A predictor for tests that answers REST as it is told, and keeps what it was asked."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

JSON = {"Content-Type": "application/json"}


class Asked(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Told(NamedTuple):
    status: int
    body: bytes = b"{}"
    headers: dict[str, str] = JSON


Answer = Callable[[Asked], Told]


class Upstream:
    """``answer`` may be changed at any time; ``asked`` is in the order of arrival."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.host = ""


@contextmanager
def upstream(answer: Answer | Told) -> Iterator[Upstream]:
    """A server on a free port of loopback, in threads of this process."""
    told = Upstream(answer if callable(answer) else lambda asked: answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            given = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, given, self.rfile.read(int(given.get("content-length", 0))))
            told.asked.append(asked)
            status, body, headers = told.answer(asked)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

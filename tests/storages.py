"""Real storages on loopback for tests: a web server with ranges, S3 (moto's server) and a hub."""

import contextlib
import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.running import eventually, free_port


class Web:
    """A web server. ``files`` are its contents by path.

    Attributes:
        asked: the method, path and Range of each request.
        break_after: the bytes after which each of the next replies breaks off.
        statuses: what the next requests get instead of a file.
        tags: whether files have an ETag.
        ranges: whether it understands ranges.
        lengths: whether it says how long a file is.
        headers: further headers of each reply.
        gate: waited for in the middle of each reply.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.logins: list[str | None] = []
        self.break_after: list[int] = []
        self.statuses: list[int] = []
        self.tags = self.ranges = self.lengths = True
        self.headers: dict[str, str] = {}
        self.on_break: Callable[[], object] = lambda: None
        self.gate = threading.Event()
        self.gate.set()
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, span = handler.path.partition("?")[0], handler.headers.get("Range")
        self.asked.append((handler.command, path, span))
        self.logins.append(handler.headers.get("Authorization"))
        if self.statuses or path not in self.files:
            handler.send_error(self.statuses.pop(0) if self.statuses else 404)
            return
        content = self.files[path]
        tag = f'"{hashlib.sha1(content).hexdigest()}"'
        start = 0
        if span and self.ranges and self.tags and handler.headers.get("If-Range") == tag:
            start = int(span.removeprefix("bytes=").removesuffix("-"))
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            handler.send_response(200)
        if self.tags:
            handler.send_header("ETag", tag)
        if self.lengths:
            handler.send_header("Content-Length", str(len(content) - start))
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        body = content[start:]
        handler.wfile.write(body[:1])
        self.gate.wait(60)
        if self.break_after:
            handler.wfile.write(body[1 : self.break_after.pop(0)])
            self.on_break()
        else:
            handler.wfile.write(body[1:])


@contextlib.contextmanager
def handling(answer: Callable[[BaseHTTPRequestHandler], object]) -> Iterator[str]:
    """A web server on loopback that answers by this function; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError):
                answer(self)

        do_HEAD = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def web() -> Iterator[Web]:
    served = Web()
    with handling(served.answer) as served.url:
        yield served


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """moto's server: a client of boto3 for it, and the environment that leads s3fs to it. It has the bucket ``models``."""
    import boto3

    port = free_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "loopback",
        "AWS_SECRET_ACCESS_KEY": "the-secret-of-loopback",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with (folder / "moto.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
        )
    try:
        client = boto3.client(
            "s3", endpoint_url=environment["AWS_ENDPOINT_URL"], region_name="us-east-1",
            aws_access_key_id="loopback", aws_secret_access_key="the-secret-of-loopback",
        )  # fmt: skip

        def made() -> bool:
            with contextlib.suppress(Exception):
                client.create_bucket(Bucket="models")
                return True
            return False

        eventually(made)
        yield client, environment
        client.close()
    finally:
        process.kill()
        process.wait()

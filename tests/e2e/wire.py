"""HTTP as it is on the wire, for what no HTTP client would send."""

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from tests.running import PATIENCE, Server

SOURCE = """
import time
from mpserve import Model

class Echo(Model):
    name = "m"

    def predict(self, payload, headers=None):
        time.sleep(payload.get("seconds", 0))
        return {"predictions": payload["instances"]}
"""

WAYS = [(), ("--event-loop=asyncio", "--fast_lane=no")]
"""Flags of the ways in which a worker can read HTTP, for tests that must hold on each."""

LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"


def post(instances: object, *fields: bytes, **more: object) -> bytes:
    body = json.dumps({"instances": instances, **more}).encode()
    return head(b"content-length: %d" % len(body), *fields) + body


def head(*fields: bytes) -> bytes:
    lines = (b"POST /v1/models/m:predict HTTP/1.1", b"host: x", *fields, b"", b"")
    return b"\r\n".join(lines)


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """A connection: bytes are sent as they are, responses are read one by one."""

    def __init__(self, sock: socket.socket, reader: BinaryIO) -> None:
        self.sock = sock
        self.reader = reader

    def send(self, data: bytes) -> None:
        # A server that has refused may not read to the end.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(data)

    def response(self) -> Response:
        """The next response; fails when the server closes instead."""
        line = self.reader.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers = {}
        while (field := self.reader.readline().decode().strip()) != "":
            name, _, value = field.partition(":")
            headers[name.lower()] = value.strip()
        return Response(int(line.split()[1]), headers, self.reader.read(int(headers.get("content-length", 0))))

    def reset_at_close(self) -> None:
        """Have the kernel send RST at the close."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def is_closed(self) -> bool:
        """Whether the server closes the connection without another byte. Waits for it."""
        return self.reader.read(1) == b""


@contextlib.contextmanager
def wire(server: Server) -> Iterator[Wire]:
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock, sock.makefile("rb") as reader:
        yield Wire(sock, reader)

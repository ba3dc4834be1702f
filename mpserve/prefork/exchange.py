"""One request and its answer on the fast lane. The protocol keeps it where it otherwise keeps uvicorn's cycle."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from mpserve.prefork.heads import RawHeaders

if TYPE_CHECKING:
    from mpserve.http.asking import Asked  # which brings Starlette and numpy

ID_HEADER = b"x-request-id"


class Begun(Protocol):
    """What answers a request."""

    def cancel(self) -> bool:
        """Answer it no more, since nobody is there. Whether that makes a difference."""


class Exchange:
    """``keep_alive``: whether the connection stays open after the answer. The public names are those of uvicorn's cycle."""

    __slots__ = (
        "_chunks",
        "asked",
        "begun",
        "disconnected",
        "keep_alive",
        "more_body",
        "response_complete",
        "response_started",
    )

    def __init__(self, asked: "Asked", keep_alive: bool) -> None:
        self.asked = asked
        self.begun: Begun | None = None
        self.keep_alive = keep_alive
        self.more_body = True
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self._chunks: list[bytes] | None = None

    def receive(self, chunk: bytes) -> None:
        if self._chunks is None:
            self._chunks = []
        self._chunks.append(chunk)

    def take_body(self) -> bytes:
        """The whole body, which is not kept here any longer."""
        chunks, self._chunks = self._chunks or [b""], None
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def head(
        self,
        status: int,
        headers: RawHeaders,
        length: int,
        identity: bytes,
        server_headers: Iterable[tuple[bytes, bytes]],
    ) -> bytes:
        """The head of the answer, as uvicorn would write it, with the id of the request if the model has set none."""
        parts = [STATUS_LINE[status]]
        for name, value in server_headers:
            parts += (name, b": ", value, b"\r\n")
        closes = False
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
            if name == ID_HEADER:
                identity = b""
            closes = closes or (name == b"connection" and b"close" in value.lower())
        parts.append(b"content-length: %d\r\n" % length)
        if identity:
            parts.append(b"x-request-id: %b\r\n" % identity)
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        return b"".join(parts)

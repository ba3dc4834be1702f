"""A request on the fast lane and its answer on the wire. The protocol keeps it where it otherwise keeps uvicorn's cycle."""

from typing import TYPE_CHECKING, Protocol, cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from mpserve.prefork.cycles import for_parts
from mpserve.prefork.heads import USUAL, Heads, RawHeaders
from mpserve.prefork.http1 import Protocol as Connection

if TYPE_CHECKING:
    from mpserve.http.asking import Asked, Told  # which bring Starlette and numpy
    from mpserve.http.responses import Answer
    from mpserve.http.streaming import StreamedAnswer

ID_HEADER = b"x-request-id"

COPIED = 65536
"""Bytes of an answer's body from which on it is not copied behind its head to be sent as one."""


class Begun(Protocol):
    """What answers a request."""

    def cancel(self) -> bool:
        """Answer it no more, since nobody is there. Whether that makes a difference."""


class Exchange:
    """Of one connection, whose requests go through it one after the other.

    ``keep_alive``: whether the connection stays open after the answer. The public names are those of uvicorn's cycle.
    """

    __slots__ = (
        "_chunks",
        "_connection",
        "_heads",
        "asked",
        "begun",
        "disconnected",
        "keep_alive",
        "more_body",
        "response_complete",
        "response_started",
    )

    asked: "Asked"

    def __init__(self, connection: Connection, heads: Heads) -> None:
        self._connection = connection
        self._heads = heads
        self._chunks: list[bytes] | None = None
        self.begun: Begun | None = None
        self.disconnected = False
        self.response_started = False
        self.more_body = False

    def receive(self, chunk: bytes) -> None:
        if self._chunks is None:
            self._chunks = []
        self._chunks.append(chunk)

    def take_body(self) -> bytes:
        """The whole body, which is not kept here any longer."""
        chunks, self._chunks = self._chunks or [b""], None
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def tell(self, answer: "Told", identity: bytes) -> None:
        """Send the answer to the request, which has this id."""
        connection = self._connection
        # It knows whom to tell: a circle, whose body and arrays only the garbage collector would free.
        begun, self.begun = self.begun, None
        is_open = self.keep_alive and not (self.disconnected or connection.flow.write_paused)
        if is_open and type(answer) is bytes and len(answer) < COPIED:
            connection.transport.write(self._heads.usual(connection.server_state.default_headers, answer, identity))
            self.response_complete = True
            connection.on_response_complete()
            return
        connection.tasks.discard(begun)
        if connection.flow.write_paused or (not isinstance(answer, bytes) and answer.body is None):
            sending = connection.loop.create_task(self.send(answer, identity))
            connection.tasks.add(sending)
            sending.add_done_callback(connection.tasks.discard)
        elif not self.disconnected:
            self._write(answer, identity)

    async def send(self, answer: "Told", identity: bytes) -> None:
        """As ``tell``, as soon as the connection takes it."""
        if not isinstance(answer, bytes) and answer.body is None:
            if all(name != ID_HEADER for name, _ in answer.headers):
                answer.headers.append((ID_HEADER, identity))
            await self._send_parts(answer)
            return
        if self._connection.flow.write_paused:
            await self._connection.flow.drain()
        if not self.disconnected:
            self._write(answer, identity)

    async def _send_parts(self, answer: "StreamedAnswer") -> None:
        connection = self._connection
        cycle = for_parts(connection, self.keep_alive, self.disconnected)
        if isinstance(connection.cycle, Exchange):  # not the one of a request that came behind it
            connection.cycle = cycle
        await cycle.run_asgi(cast("ASGI3Application", answer))

    def _write(self, answer: "bytes | Answer", identity: bytes) -> None:
        connection = self._connection
        status, headers, body = (200, USUAL, answer) if isinstance(answer, bytes) else answer
        head = self._head(status, [*connection.server_state.default_headers, *headers], len(body), identity)
        if len(body) < COPIED:
            connection.transport.write(head + body)
        else:
            connection.transport.writelines((head, body))
        self.response_complete = True
        if not self.keep_alive:
            connection.transport.close()
        connection.on_response_complete()

    def _head(self, status: int, headers: RawHeaders, length: int, identity: bytes) -> bytes:
        """The head of the answer, as uvicorn would write it, with the id of the request if the model has set none."""
        parts = [STATUS_LINE[status]]
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

"""A request and its answer on a connection, which it knows as a ``Wire``. ``direct_exchange`` and ``asgi`` have the kinds."""

import asyncio
from abc import ABC, abstractmethod
from typing import Protocol

from mpserve.http.server.interface import Answer
from mpserve.http.server.response_head import JSON_ONLY
from mpserve.http.server.server import HttpServer

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

JOIN_LIMIT = 65536  # bytes of a body below which head and body are joined and written at once

INTERNAL_ERROR = Answer(500, JSON_ONLY, b'{"error":"internal server error"}')


class Wire(Protocol):
    """A connection, as an exchange uses it."""

    server: HttpServer
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    client: tuple[str, int] | None
    is_admin: bool
    """Whether the client has connected to the address of those who manage the server."""
    exchange: "Exchange | None"
    """The exchange that is being answered."""

    def answered(self, exchange: "Exchange") -> None:
        """Continue after the whole answer is written."""

    def close(self) -> None:
        """Close the connection, since an answer cannot be completed."""

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    async def writable(self) -> None:
        """Wait until the client has read enough of the answers, or the connection is closed."""

    def hand_over(self, exchange: "Exchange", chunks: list[bytes]) -> None:
        """Let the application answer the exchange. ``chunks`` is the body so far."""


class Exchange(ABC):
    """A request and its answer. ``expects``: whether the client waits for ``100 Continue``."""

    __slots__ = ("_wire", "expects", "keep_alive", "more_body")

    def __init__(self, wire: Wire, keep_alive: bool, expects: bool) -> None:
        self._wire = wire
        self.keep_alive = keep_alive
        self.expects = expects
        self.more_body = True

    @abstractmethod
    def start(self) -> None:
        """Begin to answer, after the earlier requests."""

    @abstractmethod
    def receive(self, chunk: bytes) -> None:
        """Take a part of the body."""

    @abstractmethod
    def complete(self) -> None:
        """End the body."""

    @abstractmethod
    def disconnect(self) -> None:
        """Give up, since the client is gone."""

    @abstractmethod
    def abandon(self) -> bool:
        """Give up, since the body is refused. Return whether a refusal can be written instead of the answer."""

    def ask_for_body(self) -> None:
        """Write ``100 Continue``, also if the body has come."""
        self.expects = False
        self._wire.transport.write(CONTINUE)

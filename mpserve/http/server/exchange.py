"""A request and its answer on a connection: what both ways to answer have in common.

An exchange knows its connection only as a ``Wire``. ``direct`` and ``asgi`` have the two kinds of exchange.
"""

import asyncio
from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

from mpserve.http.server.response_head import JSON_ONLY
from mpserve.http.server.routes import RawHeaders
from mpserve.http.server.server import HttpServer

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

COPIED = 65536
"""Bytes of a body below which the body is copied behind its head, to be written in one piece."""


class Failure(NamedTuple):
    """The whole answer to a request for which there is no other."""

    status: int
    headers: RawHeaders
    body: bytes


INTERNAL_ERROR = Failure(500, JSON_ONLY, b'{"error":"internal server error"}')


class Wire(Protocol):
    """A connection, as an exchange uses it."""

    server: HttpServer
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    client: tuple[str, int] | None
    exchange: "Exchange | None"
    """The exchange that is being answered."""

    def answered(self, exchange: "Exchange") -> None:
        """Take note that the whole answer is written."""

    def close(self) -> None:
        """Close the connection, since an answer cannot be completed."""

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    async def writable(self) -> None:
        """Wait until the client has read enough of the answers. Returns at once on a closed connection."""

    def hand_over(self, exchange: "Exchange", chunks: list[bytes]) -> None:
        """Let the application answer the exchange whose body is being read. ``chunks`` is the body so far."""


class Exchange(ABC):
    """A request and its answer.

    Attributes:
        keep_alive: whether the connection stays open after the answer.
        more_body: whether a part of the body is still to come.
        expects: whether the client waits for ``100 Continue``.
    """

    __slots__ = ("_wire", "expects", "keep_alive", "more_body")

    def __init__(self, wire: Wire, keep_alive: bool, expects: bool) -> None:
        self._wire = wire
        self.keep_alive = keep_alive
        self.expects = expects
        self.more_body = True

    @abstractmethod
    def start(self) -> None:
        """Begin to answer: the earlier requests are answered."""

    @abstractmethod
    def receive(self, chunk: bytes) -> None:
        """Take a part of the body."""

    @abstractmethod
    def complete(self) -> None:
        """Take note that the body is complete."""

    @abstractmethod
    def disconnect(self) -> None:
        """Give up, since the client is gone."""

    @abstractmethod
    def abandon(self) -> bool:
        """Give up, since the body is refused. Return whether another answer can be written instead."""

    def ask_for_body(self) -> None:
        """Tell a client that expects it to send the body, also if the body has come: so all ways write the same."""
        self.expects = False
        self._wire.transport.write(CONTINUE)

"""An HTTP connection without a socket: a transport that keeps what is written, and routes and an application to be steered."""

import asyncio
from typing import Any

from mpserve.http.responses import Answer
from mpserve.http.server.connection import Connection
from mpserve.http.server.direct_exchange import DirectExchange
from mpserve.http.server.exchange import Wire
from mpserve.http.server.interface import ASGIApp, Limits, Message, Receive, Scope, Send
from mpserve.http.server.server import HttpServer
from mpserve.prefork.listener.rebalancer import Rebalancer
from mpserve.state.scoreboard import Scoreboard

LIMITS = Limits(
    line=200,
    fields=10,
    field_size=100,
    head_seconds=5,
    body_pause=7,
    body_rate=100,
    write_seconds=8,
    idle_seconds=9,
    body=1000,
)
DATE = b"date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
CLIENT = ("1.2.3.4", 5)


class Pipe(asyncio.Transport):
    """Keeps what is written. ``holds``: whether the other side reads nothing, so that a write fills the buffer."""

    def __init__(self) -> None:
        super().__init__({"peername": CLIENT, "sockname": ("5.6.7.8", 80)})
        self.written = b""
        self.is_reading_now = True
        self.has_ended = False
        self.was_aborted = False
        self.holds = False
        self.unsent = 0
        self.knows_half_close = True
        self.connection: Connection | None = None
        self._closing = False

    def write(self, data: Any) -> None:
        assert not self.has_ended
        self.written += data
        if self.holds:
            assert self.connection is not None
            self.connection.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def pause_reading(self) -> None:
        assert self.is_reading_now
        self.is_reading_now = False

    def resume_reading(self) -> None:
        assert not self.is_reading_now
        self.is_reading_now = True

    def can_write_eof(self) -> bool:
        return self.knows_half_close

    def write_eof(self) -> None:
        self.has_ended = True

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    def abort(self) -> None:
        self._closing = self.was_aborted = True

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def take(self) -> bytes:
        """What was written since the last call, without the date."""
        written, self.written = self.written.replace(DATE, b""), b""
        return written


class Begun:
    """A direct request that has begun."""

    def __init__(self, body: bytes, exchange: DirectExchange) -> None:
        self.body = body
        self.exchange = exchange
        self.cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1

    def answer(self, status: int = 200) -> None:
        if status == 200:
            self.exchange.send_json(b"direct " + self.body, b"id")
        else:
            self.exchange.send(Answer(status, [(b"x-its", b"own")], b"direct " + self.body), b"id")


class Routes:
    """Direct routes for ``/direct``. ``at_once``: whether a request is answered before ``begin`` returns."""

    def __init__(self) -> None:
        self.at_once = True
        self.matched = 0
        self.headers: list[tuple[bytes, bytes]] = []  # of the last request that was matched
        self.begun: list[Begun] = []

    def match(self, target: bytes, headers: list[tuple[bytes, bytes]]) -> str | None:
        self.matched += 1
        self.headers = headers
        return "it" if target.startswith(b"/direct") else None

    def exchange(self, wire: Wire) -> "SteeredExchange":
        return SteeredExchange(wire, self)


class SteeredExchange(DirectExchange):
    def __init__(self, wire: Wire, routes: Routes) -> None:
        super().__init__(wire)
        self.routes = routes

    def begin(self, body: bytes) -> Begun:
        assert (self.head.request, self._wire.client) == ("it", CLIENT)
        begun = Begun(body, self)
        self.routes.begun.append(begun)
        if self.routes.at_once:
            begun.answer()
        return begun


async def read(receive: Receive) -> bytes:
    """The whole body."""
    body = b""
    while True:
        message = await receive()
        assert message["type"] == "http.request", message
        body += message["body"]
        if not message["more_body"]:
            return body


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body, or refuses one that is larger than the limit."""
    announced = int(dict(scope["headers"]).get(b"content-length", 0))
    body = b"too large" if announced > LIMITS.body else b"app " + await read(receive)
    status = 200 if announced <= LIMITS.body and len(body) <= LIMITS.body else 413
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def sending(*messages: Message) -> ASGIApp:
    """An application that sends these."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


class Clock:
    """An event loop whose time a test moves on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.passed = 0.0

    def time(self) -> float:
        return self.loop.time() + self.passed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loop, name)


class Client:
    """One client of a server: a connection and its transport."""

    def __init__(self, server: HttpServer) -> None:
        self.pipe = Pipe()
        self.connection = Connection(server)
        self.connection.loop = self.clock = Clock(self.connection.loop)  # type: ignore[assignment]
        self.pipe.connection = self.connection
        self.connection.connection_made(self.pipe)

    def send(self, data: bytes) -> None:
        if not self.pipe.is_closing():
            self.connection.data_received(data)

    async def told(self) -> bytes:
        """What the server has written since the last call, once nothing more comes by itself."""
        for _ in range(30):
            await asyncio.sleep(0)
        return self.pipe.take()

    async def ask(self, data: bytes) -> bytes:
        """What the server writes when this is sent."""
        self.send(data)
        return await self.told()

    def later(self, seconds: float) -> None:
        """Let so many seconds pass, as the worker's tick would find them."""
        self.connection.expire(self.connection.loop.time())
        self.connection.expire(self.connection.loop.time() + seconds)

    def wait(self, seconds: float) -> None:
        """Let so many seconds pass, for the connection too."""
        self.clock.passed += seconds
        self.connection.expire(self.clock.time())

    @property
    def is_kept(self) -> bool:
        return not (self.pipe.is_closing() or self.pipe.has_ended)

    def leave(self) -> None:
        self.connection.connection_lost(None)
        self.pipe.connection = None  # as a transport does


class House:
    """A server and its clients."""

    def __init__(self, app: ASGIApp = echo, limits: Limits = LIMITS) -> None:
        self.routes = Routes()
        self.row = Scoreboard(1).row(0)
        self.shedding = Rebalancer()
        self.server = HttpServer(app, {"a": 1}, self.routes, limits, self.row, self.shedding)
        self.server.set_date(0)

    def client(self) -> Client:
        return Client(self.server)


def post(
    body: bytes = b"body", *fields: bytes, path: bytes = b"/direct", version: bytes = b"1.1", host: bytes = b"host: x"
) -> bytes:
    lines = [b"POST %b HTTP/%b" % (path, version), host, *fields, b"content-length: %d" % len(body)]
    return b"\r\n".join(filter(None, lines)) + b"\r\n\r\n" + body


def chunked(*chunks: bytes, path: bytes = b"/direct") -> bytes:
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
    return b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" % path + coded


def get(path: bytes = b"/", *fields: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join([b"%b %b HTTP/%b" % (method, path, version), b"host: x", *fields, b"", b""])

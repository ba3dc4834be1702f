"""One HTTP/1 connection: it reads requests, and has each answered in its turn.

A request is a ``DirectExchange`` or a ``Cycle`` of the ASGI application. The connection keeps their order, the limits, the
deadlines and the end. It has no timers, of which each costs more than a look at all connections ten times a second.
"""

import asyncio
import math
from collections import deque
from typing import cast

from mpserve.http.server.asgi import Cycle, connection_scope, request_scope
from mpserve.http.server.direct import DirectExchange
from mpserve.http.server.exchange import Exchange
from mpserve.http.server.heads import Head
from mpserve.http.server.parser import MALFORMED, ParsedHead, Refusal, RequestParser
from mpserve.http.server.response_head import last_response
from mpserve.http.server.routes import Scope
from mpserve.http.server.server import HttpServer
from mpserve.http.server.state import FOLLOWS, State

IDLE, HEAD, BODY, REFUSED, CLOSING, CLOSED = State

LINGER = 1.0
"""Seconds for which the bytes of a refused client are read and dropped. To close at once would reset the connection, and the
client would lose the answer."""

NOT_YET = -math.inf
"""The deadline of a connection that became idle since the last look: to ask for the time after each answer costs more."""


class Connection(asyncio.Protocol):
    """One client connection of a server."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self.limits = server.limits
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.client: tuple[str, int] | None = None
        self.state = IDLE
        self.retiring = False
        """Whether the connection is to be closed after the next answer."""
        self.exchange: Exchange | None = None
        """The exchange that is being answered."""
        self._waiting: deque[Exchange] = deque()
        """Exchanges that came behind it, in their order."""
        self._receiving: Exchange | None = None
        """The exchange whose body is being read."""
        routes = server.routes
        self._direct = None if routes is None else DirectExchange(self, routes.begin)
        """The object for direct requests of this connection, of which one is answered at a time."""
        self._missing = 0
        """Bytes of a body behind a known head: they do not go through the parser, which would copy them."""
        self._last: Head | None = None
        """The known head that came last, which is most likely to come again."""
        self._refusal: tuple[int, str] | None = None
        self._deadline = math.inf
        """When, on the loop's clock, the client is late."""
        self._can_write = True
        self._drained = asyncio.Event()
        """Set when the connection can be written to again."""
        self._is_reading = True
        self._parser = RequestParser(self, server.limits)
        self._parsed: ParsedHead | None = None
        """The head that the parser has read last."""
        self._scope: Scope | None = None
        """The part of an ASGI scope that all requests have, made for the first one."""
        self._fresh = b""
        """Bytes that are being parsed, if a head may begin with the first of them."""

    @property
    def unanswered(self) -> int:
        """Requests that have come and are not answered."""
        return len(self._waiting) + (self.exchange is not None)

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        peer = transport.get_extra_info("peername")
        self.client = (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) else None
        self.server.connections.add(self)
        self.server.row.connections += 1
        self._deadline = self.loop.time() + self.limits.head_seconds

    def connection_lost(self, exc: Exception | None) -> None:
        self._enter(CLOSED)
        self.server.connections.discard(self)
        self.server.row.connections -= 1
        exchange, self.exchange = self.exchange, None
        self._waiting.clear()
        self._drained.set()
        # These know the connection: circles that only the garbage collector would free.
        self._direct = self._receiving = None
        self._parser.close()
        del self._parser
        if exchange is not None:
            exchange.disconnect()

    def eof_received(self) -> None:
        """Let the transport close itself."""

    def data_received(self, data: bytes) -> None:
        if self.state is IDLE and self.exchange is None and not self._waiting:
            head = self._last
            size = len(data)
            if head is None or size != head.whole or not data.startswith(head.text):
                head = self._last = self.server.heads.find(data)
            if head is None or self._direct is None or size > head.whole:
                self._parse(data, data)
            elif size < head.whole:
                self._expect(head, data)
            else:
                exchange = self._direct
                exchange.head = head
                exchange.keep_alive = head.keep_alive
                exchange.body = data[head.size :]
                exchange.more_body = False
                self._take(exchange)
        elif self._missing:
            self._receive(data)
        elif self.state not in (REFUSED, CLOSING, CLOSED):
            self._parse(data, b"")

    def pause_writing(self) -> None:
        self._can_write = False
        self._drained.clear()

    def resume_writing(self) -> None:
        self._can_write = True
        self._drained.set()
        self._go_on()

    # Known heads

    def _expect(self, head: Head, data: bytes) -> None:
        """Begin to read a body behind a known head."""
        assert self._direct is not None
        self._enter(BODY)
        self._direct.expect(head, expects=False)
        self._receiving = self._direct
        self._missing = head.length
        self._take(self._direct)
        self._receive(data[head.size :])

    def _receive(self, data: bytes) -> None:
        assert self._receiving is not None
        missing = self._missing
        self._missing = max(missing - len(data), 0)
        self._receiving.receive(data if len(data) <= missing else data[:missing])
        if self._missing:
            self._deadline = self.loop.time() + self.limits.body_pause
            return
        self.complete_body()
        if len(data) > missing:
            self.data_received(data[missing:])

    # What the parser reads

    def _parse(self, data: bytes, fresh: bytes) -> None:
        """Parse bytes. ``fresh`` are the same, if a head may begin with the first of them."""
        self._fresh = fresh
        try:
            self._parser.feed(data)
        except Refusal as refusal:
            self._refuse(refusal.status, refusal.reason)
        self._fresh = b""
        if self.state is BODY:
            self._deadline = self.loop.time() + self.limits.body_pause

    def begin_head(self) -> None:
        if self.state is CLOSING:
            raise Refusal(400, "the request before this one has closed the connection")
        self._enter(HEAD)
        if self.exchange is None:
            self._deadline = self.loop.time() + self.limits.head_seconds

    def take_head(self, head: ParsedHead) -> None:
        exchange = self._direct_exchange(head) or self._cycle(head)
        self._parsed = head
        self._fresh = b""
        self._enter(BODY)
        self._receiving = exchange
        self._take(exchange)

    def _direct_exchange(self, parsed: ParsedHead) -> Exchange | None:
        """The request, if it is a direct one. Its head is remembered if the next one may be the same."""
        routes, length = self.server.routes, parsed.length
        if routes is None or parsed.method != b"POST" or (length or 0) > self.limits.body:
            return None
        request = routes.match(parsed.target, parsed.headers)
        if request is None:
            return None
        head = Head(request, parsed.version, parsed.keep_alive, length or 0)
        if self._fresh and length is not None and not parsed.expects:
            self.server.heads.remember(self._fresh, head)
        exchange = self._direct
        if (
            exchange is None or self.exchange is not None or self._waiting
        ):  # a request that waits needs an object of its own
            exchange = DirectExchange(self, routes.begin)
        exchange.expect(head, parsed.expects)
        return exchange

    def _cycle(self, head: ParsedHead) -> Cycle:
        try:
            self._scope = self._scope or connection_scope(self)
            scope = request_scope(self, self._scope, head)
        except ValueError as error:
            raise Refusal(400, MALFORMED) from error
        return Cycle(self, scope, self.server.app, head.keep_alive, head.expects)

    def hand_over(self, exchange: Exchange, chunks: list[bytes]) -> None:
        """Let the application answer the exchange whose body is being read. ``chunks`` is the body so far."""
        assert self._parsed is not None
        self._receiving = cycle = self._cycle(self._parsed)
        cycle.expects, cycle.keep_alive = exchange.expects, exchange.keep_alive
        if self.exchange is exchange:
            self.exchange = cycle
            cycle.start()
        else:
            self._waiting[-1] = cycle
        for chunk in chunks:
            cycle.receive(chunk)

    def take_body(self, chunk: bytes) -> None:
        if self._receiving is not None:
            self._receiving.receive(chunk)

    # The order of the answers

    def _take(self, exchange: Exchange) -> None:
        """Have a request answered, now or after those before it."""
        self._deadline = math.inf
        rebalancer = self.server.rebalancer
        if self.retiring or (rebalancer.due and rebalancer.takes_one()):
            exchange.keep_alive = False
        if self.exchange is None and not self._waiting and self._can_write:
            self.exchange = exchange
            exchange.start()
        else:
            self._waiting.append(exchange)
            self.pause_reading()

    def complete_body(self) -> None:
        self._enter(IDLE)
        self._deadline = NOT_YET if self.exchange is None else math.inf
        exchange, self._receiving = self._receiving, None
        if exchange is not None:
            exchange.complete()

    def answered(self, exchange: Exchange) -> None:
        """Take note that the whole answer is written."""
        self.exchange = None
        self.server.total_requests += 1
        if not exchange.keep_alive:
            self._finish()
        elif self.state is IDLE and self._is_reading and not self._waiting and self._can_write:
            self._deadline = NOT_YET
        else:
            # Not at once: requests that are answered at once would be begun within each other.
            self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Begin the next exchange, or wait for the next request."""
        if self.exchange is not None or self.state in (CLOSING, CLOSED):
            return
        if not self._can_write:
            self.pause_reading()
        elif self._waiting:
            self.exchange = self._waiting.popleft()
            # The rest of a body was not read meanwhile, so its time starts now.
            self._deadline = self.loop.time() + self.limits.body_pause if self.state is BODY else math.inf
            self.resume_reading()
            self.exchange.start()
        elif self.state is REFUSED:
            self._answer_refusal()
        else:
            self.resume_reading()
            # Nothing was read meanwhile, so the time of a head that has begun starts now.
            self._deadline = self.loop.time() + self.limits.head_seconds if self.state is HEAD else NOT_YET

    def pause_reading(self) -> None:
        if self._is_reading and not self.transport.is_closing():
            self._is_reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on, unless more requests wait already."""
        if not (self._is_reading or self._waiting or self.transport.is_closing()):
            self._is_reading = True
            self.transport.resume_reading()

    async def writable(self) -> None:
        """Wait until the client has read enough of the answers. Returns at once on a closed connection."""
        while not self._can_write and self.state is not CLOSED:
            await self._drained.wait()

    # Refusals

    def _refuse(self, status: int, reason: str) -> None:
        """Refuse what has come, in the order of the requests. Then close."""
        if self.state in (REFUSED, CLOSING, CLOSED):
            return
        self._enter(REFUSED)
        self._deadline = math.inf
        self._refusal = status, reason
        self._missing = 0
        receiving, self._receiving = self._receiving, None
        if receiving is not None and not self._abandon(receiving):
            self.close()
        elif not self.unanswered:
            self._answer_refusal()

    def _abandon(self, receiving: Exchange) -> bool:
        """Give up a request whose body will never be complete. Return whether a refusal can be written in its place."""
        if receiving is self.exchange:
            self.exchange = None
            return receiving.abandon()
        if self._waiting and receiving is self._waiting[-1]:
            self._waiting.pop()
        return True  # also where it was answered early

    def _answer_refusal(self) -> None:
        assert self._refusal is not None
        self.transport.write(last_response(*self._refusal, self.server.server_fields))
        self._hang_up()

    # Deadlines and the end

    def expire(self, now: float) -> None:
        """Give up a client that is late at ``now``: with a head, with a body, with its next request."""
        limits = self.limits
        if self._deadline == NOT_YET:
            self._deadline = now + limits.idle_seconds
        if not self._is_reading or self._waiting:  # bytes that are not read, or not yet needed, are not late
            self._deadline = max(self._deadline, now + limits.body_pause)
        if now < self._deadline or self.transport.is_closing():
            return
        self._deadline = math.inf
        if self.state is HEAD:
            self._refuse(408, f"the request head was not complete after {limits.head_seconds:g} s")
        elif self.state is BODY and self.exchange is not None:
            self._refuse(408, f"nothing more of the request body came for {limits.body_pause:g} s")
        else:
            self.close()

    def retire(self, at_once: bool) -> None:
        """Close after the next answer, so that a client that is about to use its idle connection loses nothing.

        ``at_once`` closes the connection now, unless a request is being received or answered. To be called again until the
        connection is closed.
        """
        self.retiring = True
        last = self._waiting[-1] if self._waiting else self.exchange
        if last is not None:
            last.keep_alive = False
        elif at_once and self.state is not HEAD:
            self._part()

    def _part(self) -> None:
        if not self.transport.is_closing():  # asyncio's TLS transport cannot be aborted after a second close()
            self.close()
        # TLS waits half a minute for the other side's farewell, and an idle client does not even look for ours.
        elif self.loop.time() > self._deadline and not self.transport.get_write_buffer_size():
            self.transport.abort()

    def _finish(self) -> None:
        """The last answer is written."""
        if self.state is IDLE:
            self.close()
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        """End the answers. What the client still sends is dropped for a while."""
        self._waiting.clear()
        self.resume_reading()
        if self.transport.can_write_eof():
            self._enter(CLOSING)
            self._deadline = self.loop.time() + LINGER
            self.transport.write_eof()
        else:
            self.close()

    def close(self) -> None:
        """Close the connection. What was written is sent before."""
        self._enter(CLOSING)
        self._deadline = self.loop.time() + LINGER
        self.transport.close()

    def _enter(self, state: State) -> None:
        assert state in FOLLOWS[self.state], f"{state.name} does not follow {self.state.name}"
        self.state = state

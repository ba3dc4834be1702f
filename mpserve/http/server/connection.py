"""One HTTP/1 connection: it reads requests and answers them in their order.

A request is a ``DirectExchange`` or a ``Cycle`` of the ASGI application. The connection enforces their order, the limits and the
deadlines. It has no timers, since ``expire`` looks at all connections ten times a second for less.
"""

import asyncio
import math
from collections import deque
from typing import cast

from mpserve.http.server.asgi import Cycle, connection_scope, request_scope
from mpserve.http.server.direct_exchange import DirectExchange
from mpserve.http.server.exchange import Exchange
from mpserve.http.server.heads import Head
from mpserve.http.server.interface import Scope
from mpserve.http.server.pace import LINGER, MAX_LINGER, NOT_YET, AnswerPace, BodyPace
from mpserve.http.server.parser import MALFORMED, ParsedHead, Refusal, RequestParser
from mpserve.http.server.response_head import last_response
from mpserve.http.server.server import HttpServer
from mpserve.http.server.state import FOLLOWS, State

IDLE, HEAD, BODY, REFUSED, CLOSING, CLOSED = State


class Connection(asyncio.Protocol):
    """One client connection of a server."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self.limits = server.limits
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.client: tuple[str, int] | None = None
        self.state = IDLE
        self.is_admin = self.retiring = False  # retiring: the connection is to be closed after the next answer
        self.exchange: Exchange | None = None  # the exchange that is being answered
        self._waiting: deque[Exchange] = deque()  # exchanges that came later, in their order
        self._receiving: Exchange | None = None  # the exchange whose body is being read
        routes = server.routes
        self._direct: DirectExchange | None = None if routes is None else routes.exchange(self)
        """The exchange of direct requests, which is used again for each."""
        self._missing = 0
        """Missing bytes of a body after a known head. They do not go through the parser, which would copy them."""
        self.last_head: Head | None = None  # the last known head
        self._refusal: tuple[int, str] | None = None
        self._deadline = math.inf  # the time of the loop at which the client is late
        self._linger_end = math.inf  # the time of the loop at which a lingering close ends
        self._body_pace = BodyPace(server.limits)
        self._answer_pace = AnswerPace(server.limits.write_seconds)
        self._can_write = True
        self._drained = asyncio.Event()  # set when the connection can write again
        self._is_reading = True
        self._parser = RequestParser(self, server.limits)
        self._parsed: ParsedHead | None = None  # the last head of the parser
        self._scope: Scope | None = None  # the common part of the ASGI scopes
        self._fresh = b""  # the bytes that are being parsed, if they begin with a head

    @property
    def unanswered(self) -> int:
        """Number of requests that are not answered."""
        return len(self._waiting) + (self.exchange is not None)

    @property
    def idle_since(self) -> float:
        """The time from which nothing was received or is to be answered; infinity if there is something, or was just now."""
        is_idle = self.state is IDLE and self.exchange is None and not self.transport.is_closing()
        if not is_idle or self._deadline == NOT_YET or self.transport.get_write_buffer_size():
            return math.inf
        has_asked = self.last_head is not None or self._parsed is not None
        return self._deadline - (self.limits.idle_seconds if has_asked else self.limits.head_seconds)

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's class does not inherit from it
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
        # These refer to the connection: reference cycles that only the garbage collector would free.
        self._direct = self._receiving = None
        self._parser.close()
        del self._parser
        if exchange is not None:
            exchange.disconnect()

    def eof_received(self) -> None:
        """Let the transport close itself."""

    def data_received(self, data: bytes) -> None:
        if self.state is IDLE and self.exchange is None and not self._waiting:
            head = self.last_head
            size = len(data)
            if head is None or size != head.whole or not data.startswith(head.text):
                head = self.last_head = self.server.heads.find(data)
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
        elif self.state is CLOSING:
            self._deadline = min(self.loop.time() + LINGER, self._linger_end)

    def pause_writing(self) -> None:
        self._can_write = False
        self._drained.clear()

    def resume_writing(self) -> None:
        self._can_write = True
        self._answer_pace.took_all()
        self._drained.set()
        self._go_on()

    # Known heads

    def _expect(self, head: Head, data: bytes) -> None:
        """Begin to read the body after a known head."""
        assert self._direct is not None
        self._enter(BODY)
        self._direct.expect(head, expects=False)
        self._receiving = self._direct
        self._missing = head.length
        self._body_pace.begin(self.loop.time())
        self._take(self._direct)
        self._receive(data[head.size :])

    def _receive(self, data: bytes) -> None:
        assert self._receiving is not None
        missing = self._missing
        self._missing = max(missing - len(data), 0)
        self._receiving.receive(data if len(data) <= missing else data[:missing])
        if self._missing:
            self._deadline = self._body_pace.deadline(self.loop.time(), len(data))
            return
        self.complete_body()
        if len(data) > missing:
            self.data_received(data[missing:])

    # Called by the parser

    def _parse(self, data: bytes, fresh: bytes) -> None:
        """Parse ``data``. ``fresh`` is the same if it begins with a head, else empty."""
        self._fresh = fresh
        try:
            self._parser.feed(data)
        except Refusal as refusal:
            self._refuse(refusal.status, refusal.reason)
        self._fresh = b""
        if self.state is BODY:
            self._deadline = self._body_pace.deadline(self.loop.time(), len(data))

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
        self._body_pace.begin(self.loop.time())
        self._take(exchange)

    def _direct_exchange(self, parsed: ParsedHead) -> Exchange | None:
        """The exchange of a direct request, or None. Its head is remembered if the same bytes may come again."""
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
        if exchange is None or self.exchange is not None or self._waiting:  # a waiting request needs its own object
            exchange = routes.exchange(self)
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
        """Let the application answer the exchange. ``chunks`` is the body so far."""
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
        """Answer a request, now or after the earlier requests."""
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
        """Continue after the whole answer is written."""
        self.exchange = None
        self.server.total_requests += 1
        if not exchange.keep_alive:
            self._finish()
        elif self.state is IDLE and self._is_reading and not self._waiting and self._can_write:
            self._deadline = NOT_YET
        else:
            # Not a call, since the requests of one segment would make the stack deeper and deeper.
            self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Begin the next exchange, or wait for the next request."""
        if self.exchange is not None or self.state in (CLOSING, CLOSED):
            return
        if not self._can_write:
            self.pause_reading()
        elif self._waiting:
            self.exchange = self._waiting.popleft()
            self._deadline = math.inf
            if self.state is BODY:  # Reading was paused, so the time of the body starts now.
                self._body_pace.begin(self.loop.time())
                self._deadline = self._body_pace.deadline(self.loop.time(), 0)
            self.resume_reading()
            self.exchange.start()
        elif self.state is REFUSED:
            self._answer_refusal()
        else:
            self.resume_reading()
            # Reading was paused, so the time of a head starts now.
            self._deadline = self.loop.time() + self.limits.head_seconds if self.state is HEAD else NOT_YET

    def pause_reading(self) -> None:
        if self._is_reading and not self.transport.is_closing():
            self._is_reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again, unless requests wait."""
        if not (self._is_reading or self._waiting or self.transport.is_closing()):
            self._is_reading = True
            self.transport.resume_reading()

    async def writable(self) -> None:
        """Wait until the client has read enough of the answers, or the connection is closed."""
        while not self._can_write and self.state is not CLOSED:
            await self._drained.wait()

    # Refusals

    def _refuse(self, status: int, reason: str) -> None:
        """Write a refusal after the earlier answers. Then close."""
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
        """Give up a request whose body is not complete. Return whether a refusal can be written instead of its answer."""
        if receiving is self.exchange:
            self.exchange = None
            return receiving.abandon()
        if self._waiting and receiving is self._waiting[-1]:
            self._waiting.pop()
        return True  # also if the request was answered before its body was complete

    def _answer_refusal(self) -> None:
        assert self._refusal is not None
        self.transport.write(last_response(*self._refusal, self.server.server_fields))
        self._hang_up()

    # Deadlines and the end

    def expire(self, now: float) -> None:
        """Refuse a head or a body that is late at ``now``, or close an idle connection."""
        limits = self.limits
        if self._answer_pace.is_late(self.transport.get_write_buffer_size(), now):
            self.transport.abort()
        if self._deadline == NOT_YET:
            self._deadline = now + limits.idle_seconds
        if not self._is_reading or self._waiting:  # bytes that are not read are not late
            self._deadline = max(self._deadline, now + limits.body_pause)
            self._body_pace.postpone(now)
        if now < self._deadline or self.transport.is_closing():
            return
        self._deadline = math.inf
        if self.state is HEAD:
            self._refuse(408, f"the request head was not complete after {limits.head_seconds:g} s")
        elif self.state is BODY and self.exchange is not None and self._body_pace.is_slow:
            self._refuse(408, f"the request body came at less than {limits.body_rate} bytes per second")
        elif self.state is BODY and self.exchange is not None:
            self._refuse(408, f"nothing more of the request body came for {limits.body_pause:g} s")
        else:
            self.close()

    def retire(self, at_once: bool) -> None:
        """Close after the next answer. Call this again until the connection is closed.

        ``at_once``: close now, unless a request is being received or answered.
        """
        self.retiring = True
        last = self._waiting[-1] if self._waiting else self.exchange
        if last is not None:
            last.keep_alive = False
        elif at_once and self.state is not HEAD:
            self._close_idle()

    def _close_idle(self) -> None:
        if not self.transport.is_closing():
            self.close()
        # TLS waits half a minute for the close of the client, and an idle client may not send it.
        elif self.loop.time() > self._deadline and not self.transport.get_write_buffer_size():
            self.transport.abort()

    def _finish(self) -> None:
        if self.state is IDLE:
            self.close()
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        """Close for writing, where the transport can (TLS cannot). Drop what the client sends, until it pauses for ``LINGER``."""
        self._waiting.clear()
        self.resume_reading()
        self._enter(CLOSING)
        now = self.loop.time()
        self._deadline, self._linger_end = now + LINGER, now + MAX_LINGER
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def close(self) -> None:
        """Close the connection after all written bytes are sent."""
        self._enter(CLOSING)
        self._deadline = self.loop.time() + LINGER
        if not self.transport.is_closing():  # asyncio's TLS transport cannot be looked at after a second close()
            self.transport.close()

    def _enter(self, state: State) -> None:
        assert state in FOLLOWS[self.state], f"{state.name} does not follow {self.state.name}"
        self.state = state

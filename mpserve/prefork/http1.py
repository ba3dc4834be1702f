"""HTTP/1.1 on the wire: uvicorn's httptools protocol with the limits that it leaves open, and retirement.

uvicorn with httptools takes a head of 5 MB or 5,000 header fields, and waits for ever for the end of a request.
The limits are gunicorn's own settings (``limit_request_line``, ``limit_request_fields``, ``limit_request_field_size``),
``header_timeout`` and ``body_timeout``.

Which requests are not answered by uvicorn's cycle is ``fastlane``'s affair.
"""

import asyncio
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httptools
import orjson
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from mpserve.prefork.balance import Shedding
from mpserve.prefork.cycles import unchunked
from mpserve.scoreboard import Row

LINGER = 1.0
"""Seconds for which the remaining bytes of a client that is hung up on are read and dropped: closing at once would reset
the connection, and the client would lose the answer."""


NOT_YET = -math.inf
"""The deadline of a connection that has become idle since the last look: to ask for the time after each answer costs more."""


@dataclass(frozen=True)
class Limits:
    """Of a request head: bytes of the request line, number of fields, bytes of one field, seconds to receive it.

    ``pause``: seconds for which nothing may come of a body that is not complete.
    """

    line: int
    fields: int
    field_size: int
    seconds: float
    pause: float

    @property
    def head(self) -> int:
        """Bytes of the whole head."""
        return self.line + self.fields * self.field_size


class Refused(Exception):
    """The head breaks a limit; raised inside a parser callback to stop the parser."""


class Protocol(HttpToolsProtocol):
    """One client connection. ``expire`` is to be called now and then; there are no timers, of which each costs more
    than a look at all connections ten times a second.
    """

    def __init__(
        self,
        config: Config,
        state: ServerState,
        app_state: dict[str, Any],
        limits: Limits,
        row: Row,
        shedding: Shedding,
    ) -> None:
        super().__init__(config=config, server_state=state, app_state=app_state)
        self.limits = limits
        self.row = row
        self.shedding = shedding
        self.retiring = False
        """Whether the connection is to be closed after the next answer."""
        self._deadline = math.inf
        """When, on the loop's clock, a head or more of a body is late, or a connection has been idle for too long."""
        self._unanswered = 0
        self._heads = 0
        self._in_head = False
        self._in_body = False
        self._head_bytes = 0
        self._refusal: tuple[int, str] | None = None
        self._hung_up = False
        self._closed_at: float | None = None

    @property
    def begun(self) -> object | None:
        """What answers a request of this connection, if it is no task."""
        return None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.row.connections += 1
        self._deadline = self.loop.time() + self.limits.seconds

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.row.connections -= 1
        self._deadline = math.inf

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self._hung_up:
            return
        head = self._heads if self._in_head else None
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        if self._refusal is None and self._in_head and self._heads == head:
            # httptools keeps what it has of a field to itself until the field is complete.
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.head:
                self._refusal = (431, f"the request head is larger than {self.limits.head} bytes")
                self.send_400_response("")
        if self._in_body:
            self._deadline = self.loop.time() + self.limits.pause

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            # The parser takes what follows the head for the other protocol, but the offer is declined (RFC 9110, 7.8).
            self._feed(b"".join(self._head_without_upgrade()) + data[offer.args[0] :])

    def _head_without_upgrade(self) -> Iterator[bytes]:
        yield b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        for name, value in self.headers:
            if name != b"upgrade":
                yield b"%b: %b\r\n" % (name, value)
        yield b"\r\n"

    def _should_upgrade(self) -> bool:
        """Whether uvicorn must keep its hands off a request that offers an upgrade: ``_feed`` sees to it."""
        return True

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._heads += 1
        self._in_head = True
        self._head_bytes = 0
        if not self._unanswered:
            self._deadline = self.loop.time() + self.limits.seconds

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self.limits.line:
            self._refuse(414, f"the request line is longer than {self.limits.line} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self.headers
        headers.append((name.lower(), value))
        limits = self.limits
        if len(headers) > limits.fields:
            self._refuse(431, f"the request has more than {limits.fields} header fields")
        if len(name) + len(value) > limits.field_size:
            self._refuse(431, f"a header field is larger than {limits.field_size} bytes")

    def on_headers_complete(self) -> None:
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(405, "this server is no proxy")
        self._in_head = False
        self._in_body = True
        self._begin_request()

    def _begin_request(self) -> None:
        """The head is complete."""
        self._begin_cycle()
        if not self.parser.should_upgrade():
            self._begin_answer()

    def _begin_answer(self) -> None:
        self._deadline = math.inf
        self._unanswered += 1
        if self.retiring or (self.shedding.due and self.shedding.takes_one()):
            self.cycle.keep_alive = False

    def _begin_cycle(self) -> None:
        """Leave the request to uvicorn. Its scope is made only now, since the fast lane does without."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        self._deadline = math.inf if self._unanswered else self.loop.time() + self.timeout_keep_alive
        self._complete_request()

    def _complete_request(self) -> None:
        """The body is complete."""
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        super()._start_asgi_task(cycle, unchunked(cycle, app) if cycle.scope["http_version"] == "1.0" else app)

    def on_response_complete(self) -> None:
        self._unanswered -= 1
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        if self._unanswered:
            return
        if self._refusal is not None:
            self._answer_refusal()
        elif self._in_head:  # nothing was read meanwhile, so its time begins now
            self._deadline = self.loop.time() + self.limits.seconds
        elif self.expect_100_continue and self.cycle.more_body:
            # A client that was not told to go on may send the body or leave it out, so the next bytes could mean both.
            self._hang_up()
        else:
            self._deadline = NOT_YET

    def expire(self, now: float) -> None:
        """Give up waiting for a head or more of a body that is late by now, or for the next request of an idle client."""
        if self._deadline == NOT_YET:
            self._deadline = now + self.timeout_keep_alive
        if self.flow.read_paused or self._unanswered > 1:  # what is not read, or not yet needed, is not late
            self._deadline = max(self._deadline, now + self.limits.pause)
        if now < self._deadline or self.transport.is_closing():
            return
        self._deadline = math.inf
        if self._in_head:
            self._refusal = (408, f"the request head was not complete after {self.limits.seconds:g} s")
            self.send_400_response("")
        elif self._in_body and self._unanswered:
            self._refusal = (408, f"nothing more of the request body came for {self.limits.pause:g} s")
            self.send_400_response("")
        else:
            self.transport.close()

    def retire(self, at_once: bool) -> None:
        """Close after the next answer, so that a client that is about to use its idle connection loses nothing.

        ``at_once`` closes it now, unless a request is being received or answered. To be called again until it is closed.
        """
        self.retiring = True
        if self._unanswered:
            self.cycle.keep_alive = False
        elif at_once and not self._in_head:
            self._part()

    def _part(self) -> None:
        if not self.transport.is_closing():  # asyncio's TLS transport cannot be aborted after a second close()
            self.transport.close()
        # TLS waits half a minute for the other side's farewell, and an idle client does not even look for ours.
        self._closed_at = self._closed_at or self.loop.time()
        if self.loop.time() - self._closed_at > LINGER and not self.transport.get_write_buffer_size():
            self.transport.abort()

    def _refuse(self, status: int, reason: str) -> None:
        self._refusal = (status, reason)
        raise Refused(reason)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is malformed (the parser calls this) or breaks a limit, in the order of the requests; then close."""
        self._in_head = self._in_body = False
        self._deadline = math.inf
        if self._refusal is None:
            self._refusal = (400, "the bytes received are no HTTP request")
        if self._unanswered and self.cycle.more_body:  # its body is malformed and will never be complete
            self._unanswered -= 1
            self._abandon_request()
        if not (self._unanswered or self.transport.is_closing()):
            self._answer_refusal()

    def _abandon_request(self) -> None:
        """The body will never be complete."""
        if self.pipeline:
            self.pipeline.popleft()
        elif self.cycle.response_started:
            self.transport.close()
        else:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _answer_refusal(self) -> None:
        """Answer in the form of every other error."""
        assert self._refusal is not None
        status, reason = self._refusal
        body = orjson.dumps({"error": reason})
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self._hang_up()

    def _hang_up(self) -> None:
        self._hung_up = True
        self._deadline = math.inf
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER, self.transport.close)
        else:
            self.transport.close()

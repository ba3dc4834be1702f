"""HTTP/1.1 on the wire: uvicorn's httptools protocol with the limits that it leaves open, and a way to retire a connection.

uvicorn with httptools takes a head of 5 MB or 5,000 header fields, and waits for ever for the end of a request head. The limits are
gunicorn's own settings (``limit_request_line``, ``limit_request_fields``, ``limit_request_field_size``) and ``header_timeout``.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from mpserve.scoreboard import Row

LINGER_AFTER_REFUSAL = 1.0
"""Seconds a refused client's remaining bytes are read and dropped: closing at once would reset the connection and lose the answer."""


@dataclass(frozen=True)
class Limits:
    """Of a request head: bytes of the request line, number of fields, bytes of one field, seconds to receive it."""

    line: int
    fields: int
    field_size: int
    seconds: float


class Refused(Exception):
    """The head breaks a limit; raised inside a parser callback to stop the parser."""


class Protocol(HttpToolsProtocol):
    """One client connection."""

    def __init__(self, config: Config, state: ServerState, app_state: dict[str, Any], limits: Limits, row: Row) -> None:
        super().__init__(config=config, server_state=state, app_state=app_state)
        self.limits = limits
        self.row = row
        self.retiring = False
        self._refusal: tuple[int, str] | None = None
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.row.connections = len(self.connections)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.row.connections = len(self.connections)
        self._cancel_head_timer()

    def data_received(self, data: bytes) -> None:
        if self._refusal is None:
            super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.limits.line:
            self._refuse(414, f"the request line is longer than {self.limits.line} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > self.limits.fields:
            self._refuse(431, f"the request has more than {self.limits.fields} header fields")
        if len(name) + len(value) > self.limits.field_size:
            self._refuse(431, f"a header field is larger than {self.limits.field_size} bytes")

    def on_headers_complete(self) -> None:
        self._cancel_head_timer()
        super().on_headers_complete()
        if self.retiring and self.cycle is not None:
            self.cycle.keep_alive = False

    def retire(self) -> None:
        """Close after the next answer. A client that is about to use its idle connection thus loses nothing."""
        self.retiring = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.seconds, self._head_is_late)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self.scope is None:  # not a byte came: there is no request to answer
            self.transport.close()
            return
        self._refusal = (408, f"the request head was not complete after {self.limits.seconds:g} s")
        self.send_400_response("")

    def _refuse(self, status: int, reason: str) -> None:
        self._refusal = (status, reason)
        raise Refused(reason)

    def send_400_response(self, msg: str) -> None:
        """Answer a head that is refused (ours) or malformed (the parser's) in the form of every other error, then close."""
        self._cancel_head_timer()
        status, reason = self._refusal or (400, "the bytes received are no HTTP request")
        self._refusal = (status, reason)
        body = orjson.dumps({"error": reason})
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_AFTER_REFUSAL, self.transport.close)
        else:
            self.transport.close()

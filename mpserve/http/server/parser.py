"""Bytes to requests: httptools' parser with the limits that it leaves open.

httptools takes a head of any size, and stops at a request that offers an upgrade. This module refuses what breaks a limit or
RFC 9112, and declines upgrades. It knows no connection and no answer.
"""

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import httptools

from mpserve.http.server.heads import framing_of
from mpserve.http.server.limits import Limits
from mpserve.http.server.routes import RawHeaders

logger = logging.getLogger(__name__)

MALFORMED = "the bytes received are no HTTP request"


class Refusal(Exception):
    """Why the server itself refuses a request. Raised in a callback of httptools, it stops the parser."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class ParsedHead(NamedTuple):
    """A head that is complete. ``length`` is None if the body comes in chunks."""

    method: bytes
    target: bytes
    version: str
    headers: RawHeaders
    keep_alive: bool
    length: int | None
    expects: bool


class Sink(Protocol):
    """Takes what the parser reads. Each method may raise ``Refusal``."""

    def begin_head(self) -> None: ...
    def take_head(self, head: ParsedHead) -> None: ...
    def take_body(self, chunk: bytes) -> None: ...
    def complete_body(self) -> None: ...


class RequestParser:
    """Reads the requests of one connection."""

    def __init__(self, sink: Sink, limits: Limits) -> None:
        self._sink = sink
        self._limits = limits
        self._parser = self._new_parser()
        self._target = b""
        self._headers: RawHeaders = []
        self._fed = 0
        """Bytes that are being parsed."""
        self._reads_head = False
        """Whether a head is being read, rather than a body."""
        self._kept = 0
        """Bytes that httptools may have kept to itself: those since the head began or a part of the body was given out."""

    def _new_parser(self) -> Any:
        parser = httptools.HttpRequestParser(self)
        # Bytes behind the last request of a connection are dropped with the connection, and are no reason to refuse it.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def close(self) -> None:
        """Let go of httptools' parser, which knows this object: a circle that only the garbage collector would free."""
        self._parser = None

    def feed(self, data: bytes) -> None:
        """Parse bytes.

        Raises:
            Refusal: they are no request, or break a limit.
        """
        self._fed = len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            raise _refusal_of(error) from None
        self._kept += len(data)
        if self._kept > self._limits.head:  # httptools keeps a field to itself until the field is complete
            where = "head is" if self._reads_head else "trailers are"
            raise Refusal(431, f"the request {where} larger than {self._limits.head} bytes")

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
            return
        except httptools.HttpParserUpgrade as offer:
            # httptools takes what follows the head for the other protocol, but the offer is declined (RFC 9110, 7.8).
            rest = data[offer.args[0] :]
        head = b"".join(self._head_without_upgrade())
        # A new parser, since the old one is at its end if the head says `connection: close` too.
        self._parser = self._new_parser()
        self._feed(head + rest)

    def _head_without_upgrade(self) -> Iterator[bytes]:
        parser = self._parser
        yield b"%b %b HTTP/%b\r\n" % (parser.get_method(), self._target, parser.get_http_version().encode())
        for name, value in self._headers:
            if name != b"upgrade":
                yield b"%b: %b\r\n" % (name, value)
        yield b"\r\n"

    # What httptools calls

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers = []
        self._reads_head = True
        self._kept = -self._fed
        self._sink.begin_head()

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > self._limits.line:
            raise Refusal(414, f"the request line is longer than {self._limits.line} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self._headers
        headers.append((name.lower(), value))
        if len(headers) > self._limits.fields:
            raise Refusal(431, f"the request has more than {self._limits.fields} header fields")
        if len(name) + len(value) > self._limits.field_size:
            raise Refusal(431, f"a header field is larger than {self._limits.field_size} bytes")

    def on_headers_complete(self) -> None:
        parser = self._parser
        method = parser.get_method()
        if method == b"CONNECT":
            raise Refusal(405, "this server is no proxy")
        if parser.should_upgrade():  # see `_feed`
            return
        version = parser.get_http_version()
        is_current = version >= "1.1"
        headers, self._headers = self._headers, []  # which takes the trailers, for which nothing here asks
        hosts, length, expects = framing_of(headers)
        if hosts > 1 or (is_current and not hosts):  # RFC 9112, 3.2
            raise Refusal(400, f"expected one Host field in the head of the request, got {hosts}")
        self._reads_head = False
        keep_alive = is_current and parser.should_keep_alive()
        expects = expects and is_current
        self._sink.take_head(ParsedHead(method, self._target, version, headers, keep_alive, length, expects))

    def on_body(self, body: bytes) -> None:
        self._kept = -self._fed
        self._sink.take_body(body)

    def on_message_complete(self) -> None:
        if not self._reads_head:  # else the head offers an upgrade, see `_feed`
            self._kept = -self._fed
            self._sink.complete_body()


def _refusal_of(error: httptools.HttpParserError) -> Refusal:
    """The refusal that stopped httptools, or one for what httptools itself has found."""
    cause = error.__context__
    if isinstance(cause, Refusal):
        return cause
    if isinstance(error, httptools.HttpParserCallbackError):
        logger.error("unexpected error while reading a request", exc_info=cause or error)
        return Refusal(500, "internal server error")
    return Refusal(400, MALFORMED)

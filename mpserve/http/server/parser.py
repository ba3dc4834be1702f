"""Parses requests by httptools, enforces limits and RFC 9112, and declines upgrades. Knows no connection and no answer.

httptools accepts a head of any size, and stops at a request that offers an upgrade.
"""

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import httptools

from mpserve.http.server.heads import HOST, framing_of
from mpserve.http.server.interface import Limits, RawHeaders

logger = logging.getLogger(__name__)

MALFORMED = "the bytes received are no HTTP request"
VERSIONS = ("1.1", "1.0")
SHOWN = 100  # bytes of the client's own words in a refusal


class Refusal(Exception):
    """The reason why the server refuses a request. Raised in a callback of httptools, it stops the parser."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class ParsedHead(NamedTuple):
    """A complete head. ``length`` is None if the body comes in chunks."""

    method: bytes
    target: bytes
    version: str
    headers: RawHeaders
    keep_alive: bool
    length: int | None
    expects: bool


class Sink(Protocol):
    """Receives the parts of requests. Each method may raise ``Refusal``."""

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
        self._fed = 0  # number of bytes that are being parsed
        self._reads_head = False  # whether a head is being read, not a body
        self._kept = 0  # bytes since the head began or since the last part of the body. httptools may keep them all.

    def _new_parser(self) -> Any:
        parser = httptools.HttpRequestParser(self)
        # Bytes after the last request of a connection are dropped, and do not make the request malformed.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def close(self) -> None:
        """Drop httptools' parser, which refers to this object: a reference cycle that only the garbage collector would free."""
        self._parser = None

    def feed(self, data: bytes) -> None:
        """Parse bytes. Raises Refusal: they are malformed or exceed a limit."""
        self._fed = len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            raise _refusal_of(error) from None
        self._kept += len(data)
        if self._kept > self._limits.head:  # httptools keeps a field until it is complete
            where = "head is" if self._reads_head else "trailers are"
            raise Refusal(431, f"the request {where} larger than {self._limits.head} bytes")

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
            return
        except httptools.HttpParserUpgrade as offer:
            # httptools takes the following bytes for the other protocol, but the server declines it (RFC 9110, 7.8).
            rest = data[offer.args[0] :]
        head = b"".join(self._head_without_upgrade())
        # A new parser, since the old parser has ended if the head says `connection: close` too.
        self._parser = self._new_parser()
        self._feed(head + rest)

    def _head_without_upgrade(self) -> Iterator[bytes]:
        parser = self._parser
        yield b"%b %b HTTP/%b\r\n" % (parser.get_method(), self._target, parser.get_http_version().encode())
        for name, value in self._headers:
            if name != b"upgrade":
                yield b"%b: %b\r\n" % (name, value)
        yield b"\r\n"

    # Called by httptools

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
        headers.append((name.lower(), value.rstrip(b" \t")))  # httptools strips the begin alone (RFC 9112, 5.1)
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
        if version not in VERSIONS:
            # A request line without a version is malformed, a version is not (RFC 9112, 3; RFC 9110, 15.6.6).
            raise Refusal(
                400 if version == "0.9" else 505, f"expected a request of HTTP/1.1 or 1.0, got HTTP/{version}"
            )
        is_current = version == "1.1"
        headers, self._headers = self._headers, []  # the new list takes the trailers, which are not used
        hosts, length, expects = framing_of(headers)
        if len(hosts) > 1 or (is_current and not hosts):  # RFC 9112, 3.2
            raise Refusal(400, f"expected one Host field in the head of the request, got {len(hosts)}")
        if hosts and not HOST.fullmatch(hosts[0]):
            got = hosts[0][:SHOWN].decode("latin-1")
            raise Refusal(400, f"expected a host and perhaps a port in the Host field, got {got!r}")
        self._reads_head = False
        keep_alive = is_current and parser.should_keep_alive()
        expects = expects and is_current
        self._sink.take_head(ParsedHead(method, self._target, version, headers, keep_alive, length, expects))

    def on_body(self, body: bytes) -> None:
        self._kept = -self._fed
        self._sink.take_body(body)

    def on_message_complete(self) -> None:
        if not self._reads_head:  # otherwise the head offers an upgrade, see `_feed`
            self._kept = -self._fed
            self._sink.complete_body()


def _refusal_of(error: httptools.HttpParserError) -> Refusal:
    """The refusal that stopped httptools, or a refusal for an error of httptools."""
    cause = error.__context__
    if isinstance(cause, Refusal):
        return cause
    if isinstance(error, httptools.HttpParserCallbackError):
        logger.error("unexpected error while reading a request", exc_info=cause or error)
        return Refusal(500, "internal server error")
    return Refusal(400, MALFORMED)

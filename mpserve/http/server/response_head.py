"""Writes the heads of all responses."""

import re
from collections.abc import Iterable
from functools import cache, lru_cache
from http import HTTPStatus
from typing import NamedTuple

import orjson

from mpserve.http.server.interface import RawHeaders

END = b"\r\n\r\n"
ID_HEADER = b"x-request-id"

JSON_ONLY: RawHeaders = [(b"content-type", b"application/json")]
"""The headers of the usual answer. The server compares the list by identity. Never change it."""

LENGTHS_KEPT = 1024
FIELDS_KEPT = 1024  # checked header fields that are remembered: most answers repeat theirs

# RFC 9110, 5.1 and 5.5.
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_A_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class ResponseHead(NamedTuple):
    """The bytes of a head, and how it frames the response."""

    text: bytes
    length: int | None  # bytes of the body. None: the body is chunked, ends with the connection, or is absent.
    is_chunked: bool
    closes: bool  # whether the connection is closed after the response


@cache
def status_line(status: int) -> bytes:
    """The first line of a response."""
    if not 100 <= status <= 999:
        raise ValueError(f"{status} is no HTTP status")
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return b"HTTP/1.1 %d %b\r\n" % (status, phrase.encode())


@lru_cache(FIELDS_KEPT)
def _field(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """The name of a header field in lower case, and its line. Raises ValueError: the field cannot be sent."""
    if not _NAME.fullmatch(name) or _NOT_IN_A_VALUE.search(value):
        raise ValueError(f"the response header {name!r} has the value {value!r}, which HTTP cannot carry")
    lower = name.lower()
    return lower, b"%b: %b\r\n" % (lower, value)


def response_head(
    status: int,
    server_fields: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    last_fields: bytes = b"",
    *,
    keep_alive: bool,
    may_chunk: bool,
) -> ResponseHead:
    """Write a head.

    Args:
        status: the status code.
        server_fields: header fields of the server itself, as bytes that end with a line end.
        headers: header fields of the response.
        last_fields: as ``server_fields``, and written after the headers. The caller frames the response with them.
        keep_alive: whether the connection may stay open.
        may_chunk: whether a body of unknown length is sent in chunks.

    Raises:
        ValueError: a header field or the status cannot be sent.
    """
    parts = [status_line(status), server_fields]
    length: int | None = None
    is_chunked = closes = False
    for name, value in headers:
        lower, line = _field(name, value)
        if lower == b"content-length":
            length = int(value)
        elif lower == b"transfer-encoding":
            is_chunked = is_chunked or value.lower() == b"chunked"
        elif lower == b"connection":
            closes = closes or b"close" in (token.strip() for token in value.lower().split(b","))
        parts.append(line)
    parts.append(last_fields)
    if not (keep_alive or closes):
        closes = True
        parts.append(b"connection: close\r\n")
    if may_chunk and length is None and not is_chunked:
        is_chunked = True
        parts.append(b"transfer-encoding: chunked\r\n")
    parts.append(b"\r\n")
    return ResponseHead(b"".join(parts), None if is_chunked else length, is_chunked, closes)


def last_response(status: int, reason: str, server_fields: bytes) -> bytes:
    """Write a whole error response, after which the connection is closed."""
    body = orjson.dumps({"error": reason})
    headers = [*JSON_ONLY, (b"content-length", b"%d" % len(body))]
    return response_head(status, server_fields, headers, keep_alive=False, may_chunk=False).text + body


def usual_head(server_fields: bytes) -> bytes:
    """The first part of the head of a usual answer: status 200 and ``JSON_ONLY``. The second part is in ``LENGTHS``."""
    return response_head(200, server_fields, JSON_ONLY, keep_alive=True, may_chunk=False).text[:-2]


class _Lengths(dict[int, bytes]):
    """The second part of the head of a usual answer, up to the request id, by the length of the body."""

    def __missing__(self, length: int) -> bytes:
        if len(self) >= LENGTHS_KEPT:
            self.clear()
        self[length] = text = b"content-length: %d\r\nx-request-id: " % length
        return text


LENGTHS = _Lengths()

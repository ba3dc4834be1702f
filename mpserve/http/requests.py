"""Reads the headers and the bodies of ASGI requests."""

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette.requests import Request
from starlette.types import Receive

from mpserve.config.settings import Settings
from mpserve.errors import InvalidInput, PayloadTooLarge
from mpserve.http.server.interface import AnyAnswer
from mpserve.protocol.compression import decompress
from mpserve.protocol.json.documents import parse_object
from mpserve.serving.repository.core import ServerCore

CONTENT_LENGTH = re.compile(r"[0-9]{1,18}")  # RFC 9110, 8.6. At most 18 digits.

INLINE = 65536
"""Maximum bytes of a compressed body that is decompressed on the event loop. A larger body is decompressed in a thread."""

RawHeaders = Iterable[tuple[bytes, bytes]]
Handler = Callable[[Request], Awaitable[AnyAnswer]]
"""Answers a route that is no inference."""


def read_headers(raw: RawHeaders) -> dict[str, str]:
    """The headers as texts. The values of a repeated header are joined with commas (RFC 9110, 5.2).

    Space around a value does not count (RFC 9110, 5.5), and some ASGI servers leave it.
    """
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name, value = raw_name.decode("latin-1"), raw_value.strip(b" \t").decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


async def read_body(core: ServerCore, headers: dict[str, str], receive: Receive) -> bytes | None:
    """The decompressed request body, which is JSON, or None if the client is gone.

    Raises:
        PayloadTooLarge: the body is beyond the limits of JSON, compressed or decompressed.
        InvalidInput: ``content-length`` is not a number, or the body does not have its content coding.
    """
    settings = core.settings
    body = await receive_body(headers, receive, settings, is_json=True)
    if body is not None and "content-encoding" in headers:
        coded = (headers["content-encoding"], body, settings.body_limit(is_json=True), settings.max_compression_ratio)
        body = decompress(*coded) if len(body) <= INLINE else await core.offload(decompress, *coded)
    if body is not None:
        core.json_limits.check(body)
    return body


async def read_document(core: ServerCore, request: Request) -> dict[str, Any]:
    """The request body as a JSON object. An empty body means an empty object. Raises MPServeError."""
    body = await read_body(core, read_headers(request.scope["headers"]), request.receive)
    return parse_object(body) if body and body.strip() else {}


async def receive_body(headers: dict[str, str], receive: Receive, settings: Settings, is_json: bool) -> bytes | None:
    """The request body as it was sent, or None if the client is gone. ``is_json``: whether the whole body is JSON.

    Raises:
        PayloadTooLarge: the body is larger than ``max_body_size``, or is JSON and larger than ``max_json_size``.
        InvalidInput: ``content-length`` is not a number.
    """
    length = headers.get("content-length", "0")
    if not CONTENT_LENGTH.fullmatch(length):
        raise InvalidInput(f"expected a number as content-length, got {length[:40]!r}")
    # A compressed body is JSON only after it is decompressed.
    limit = settings.body_limit(is_json and "content-encoding" not in headers)
    chunks: list[bytes] = []
    size = 0
    while max(size, int(length)) <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size <= limit and not message.get("more_body", False):
            return b"".join(chunks) if len(chunks) > 1 else chunks[0]
    option = "max_json_size" if limit < settings.max_body_size else "max_body_size"
    raise PayloadTooLarge(f"the request body is larger than the {limit} bytes that --{option} allows")

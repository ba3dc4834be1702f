"""A cache of request heads, and the header fields that frame a request. The module knows no connection.

A client writes the same head before each request of one length. A head in the cache was parsed and matched once, and the same
bytes have the same meaning.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mpserve.http.server.response_head import END

BEGIN = b"POST "  # A head in the cache begins with it. The parser would also accept line ends before a request.

MAX_HEADS = 1024
"""Maximum heads in the cache. It is cleared when it is full, since a client may send a new head each time (a trace id)."""
MAX_HEAD_SIZE = 4096  # maximum bytes of a head in the cache


# RFC 9110, 7.2, with the host of RFC 3986, 3.2.2: a name or an IPv4 address, or another address in brackets. It may be empty.
HOST = re.compile(rb"(\[[0-9A-Za-z:.%_~-]+\]|([0-9A-Za-z._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(:[0-9]*)?")


def framing_of(headers: Iterable[tuple[bytes, bytes]]) -> tuple[list[bytes], int | None, bool]:
    """Read the header fields that frame a request. The parser has refused contradictions.

    Returns:
        The Host fields; the bytes of the body, or None for chunks; whether the client waits for ``100 Continue``.
    """
    hosts: list[bytes] = []
    length: int | None = 0
    expects = False
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            length = None
        elif name == b"expect":
            expects = value.lower() == b"100-continue"
    return hosts, length, expects


@dataclass(slots=True)
class Head:
    """The head of a direct request."""

    request: Any  # the result of ``DirectRoutes.match``
    version: str
    keep_alive: bool
    length: int  # bytes of the body
    text: bytes = b""
    size: int = 0  # bytes of the head
    whole: int = 0  # bytes of head and body


class Heads:
    """The cache of one worker, for all its connections."""

    def __init__(self) -> None:
        self._cache: dict[bytes, Head] = {}

    def clear(self) -> None:
        self._cache.clear()

    def find(self, data: bytes) -> Head | None:
        """Return the head at the beginning of ``data`` if it is in the cache."""
        return self._cache.get(data[: data.find(END) + 4])

    def remember(self, data: bytes, head: Head) -> None:
        """Put the head at the beginning of ``data`` in the cache."""
        end = data.find(END, 0, MAX_HEAD_SIZE) + 4
        if end < 4 or not data.startswith(BEGIN):
            return
        if len(self._cache) >= MAX_HEADS:
            self._cache.clear()
        head.text = data[:end]
        head.size = end
        head.whole = end + head.length
        self._cache[head.text] = head

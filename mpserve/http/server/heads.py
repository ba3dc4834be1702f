"""Heads of requests: how a head frames its request, and the memory of heads that came before.

A client that keeps its connection writes the same head before each request of one length. To parse such a head costs as much
as to answer a small request. A head in this memory was parsed and matched once, so the same bytes mean the same. The
module knows no connection.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mpserve.http.server.response_head import END

BEGIN = b"POST "
"""The parser skips line ends before a request. The first ``END`` would then not be the end of the head."""

MOST = 1024
"""Heads that are kept. New heads push old ones out, for example those of a client that sends a trace id."""
LONGEST = 4096
"""Bytes of a head that is kept, so that all heads together stay below 4 MB."""


def framing_of(headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, int | None, bool]:
    """Read the header fields that frame a request. The parser has refused contradictory ones.

    Returns:
        The number of Host fields; the bytes of the body, or None if the body comes in chunks; whether the client waits for
        ``100 Continue``.
    """
    hosts = 0
    length: int | None = 0
    expects = False
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            length = None
        elif name == b"expect":
            expects = value.lower() == b"100-continue"
    return hosts, length, expects


@dataclass(slots=True)
class Head:
    """The head of a direct request whose body has ``length`` bytes. ``request`` is what the routes have made of the head.

    ``text`` is the head itself, ``size`` its bytes, ``whole`` the bytes of head and body.
    """

    request: Any
    version: str
    keep_alive: bool
    length: int
    text: bytes = b""
    size: int = 0
    whole: int = 0


class Heads:
    """The known heads of one worker, for all its connections."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def find(self, data: bytes) -> Head | None:
        """Return the known head that ``data`` begins with."""
        return self._known.get(data[: data.find(END) + 4])

    def remember(self, data: bytes, head: Head) -> None:
        """Keep the head that ``data`` begins with."""
        end = data.find(END, 0, LONGEST) + 4
        if end < 4 or not data.startswith(BEGIN):
            return
        if len(self._known) >= MOST:
            self._known.clear()
        head.text = data[:end]
        head.size = end
        head.whole = end + head.length
        self._known[head.text] = head

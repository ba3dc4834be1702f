"""Heads that come again and again: of requests, byte for byte, with what they were found to ask for, and of the usual answer.

A client that keeps its connection writes the same head before each request of one length, and to parse it costs as much as
to answer a small request. What is known here the parser has taken once and the lane too, so the same bytes mean the same.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

if TYPE_CHECKING:
    from mpserve.http.asking import Asked  # which brings Starlette and numpy

RawHeaders = list[tuple[bytes, bytes]]

USUAL: RawHeaders = [(b"content-type", b"application/json")]
"""The headers of most answers."""

END = b"\r\n\r\n"
BEGIN = b"POST "
"""Line ends before a request are passed over by the parser, and would make the first ``END`` another."""

MOST = 1024
"""Heads that are remembered. Those of a client that puts something new into each (a trace, say) push the others out."""
LONGEST = 4096
"""Bytes of a head that is remembered, so that all of them stay below 4 MB."""


@dataclass(slots=True)
class Head:
    """What a head asks for, whether the connection stays open after the answer, and the bytes of the body.

    ``text`` is the head itself, ``size`` its bytes, and ``whole`` those of head and body, once they are known.
    """

    asked: "Asked"
    keep_alive: bool
    length: int
    text: bytes = b""
    size: int = 0
    whole: int = 0


class _Lengths(dict[int, bytes]):
    """What stands in an answer between its first fields and its id, by the length of its body: to write a number takes longer."""

    def __missing__(self, length: int) -> bytes:
        if len(self) >= MOST:
            self.clear()
        self[length] = text = b"content-length: %d\r\nx-request-id: " % length
        return text


class Heads:
    """Those of one worker, all its connections together."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self._server_headers: RawHeaders | None = None
        self._begin = b""
        self._lengths = _Lengths()

    def find(self, data: bytes) -> Head | None:
        """The head that ``data`` begins with, if it is known."""
        return self._known.get(data[: data.find(END) + 4])

    def remember(self, data: bytes, head: Head) -> None:
        """``data`` began with a request that asks for this."""
        end = data.find(END, 0, LONGEST) + 4
        if end < 4 or not data.startswith(BEGIN):
            return
        if len(self._known) >= MOST:
            self._known.clear()
        head.text = data[:end]
        head.size = end
        head.whole = end + head.length
        self._known[head.text] = head

    def usual(self, server_headers: RawHeaders, body: bytes, identity: bytes) -> bytes:
        """An answer of status 200 with the ``USUAL`` headers, on a connection that stays."""
        if server_headers is not self._server_headers:  # they change every second
            self._server_headers = server_headers
            fields = [b"%b: %b\r\n" % field for field in (*server_headers, *USUAL)]
            self._begin = STATUS_LINE[200] + b"".join(fields)
        return b"".join((self._begin, self._lengths[len(body)], identity, END, body))

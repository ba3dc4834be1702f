"""A direct request, which is answered without ASGI and without a task. The module knows no route and no model."""

import logging
from abc import abstractmethod

from mpserve.http.server.asgi import Cycle
from mpserve.http.server.exchange import INTERNAL_ERROR, JOIN_LIMIT, Exchange, Wire
from mpserve.http.server.heads import Head
from mpserve.http.server.interface import Answer, Cancellable, StreamedAnswer
from mpserve.http.server.response_head import END, ID_HEADER, JSON_ONLY, LENGTHS, response_head

logger = logging.getLogger(__name__)


class DirectExchange(Exchange):
    """A direct request and its answer. A connection uses the object again for each request."""

    __slots__ = ("_chunks", "_limit", "_request", "_size", "body", "head")

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire, keep_alive=True, expects=False)
        self._request: Cancellable | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._limit = wire.server.limits.body
        self.head: Head
        self.body = b""

    @abstractmethod
    def begin(self, body: bytes) -> Cancellable:
        """Begin the request of ``head``. One answer is sent, on the event loop, perhaps before this method returns."""

    def expect(self, head: Head, expects: bool) -> None:
        """Set the head of the next request. Its body is still to come."""
        self.head = head
        self.keep_alive = head.keep_alive
        self.expects = expects
        self.more_body = True

    def start(self) -> None:
        """Begin to answer if the body is complete, else wait."""
        if self.expects:
            self.ask_for_body()
        if self.more_body:
            return
        wire = self._wire
        body, self.body = self.body, b""
        request = self.begin(body)
        if wire.exchange is self:  # otherwise the request is answered already
            self._request = request

    def receive(self, chunk: bytes) -> None:
        """Take a part of the body. The application refuses a body that is too large."""
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size > self._limit:
            chunks = self._chunks[:]
            self.abandon()
            self._wire.hand_over(self, chunks)

    def complete(self) -> None:
        """End the body. Begin to answer if the earlier requests are answered."""
        chunks = self._chunks
        self.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._size = 0
        self.more_body = False
        if self._wire.exchange is self:
            self.start()

    def disconnect(self) -> None:
        request, self._request = self._request, None
        if request is not None:
            request.cancel()

    def abandon(self) -> bool:
        """Drop the body. The request has not begun."""
        self._chunks.clear()
        self._size = 0
        return True

    def send_json(self, body: bytes, identity: bytes) -> None:
        """Send an answer with status 200, this JSON and the id of the request."""
        wire = self._wire
        size = len(body)
        if self.keep_alive and size < JOIN_LIMIT and wire.exchange is self:  # most answers
            self._request = None
            wire.transport.write(b"".join((wire.server.usual_head, LENGTHS[size], identity, END, body)))
            wire.answered(self)
        else:
            self.send(Answer(200, JSON_ONLY, body), identity)

    def send(self, answer: Answer | StreamedAnswer, identity: bytes) -> None:
        """Send the answer to the request with this id."""
        self._request = None  # it refers to the exchange: a reference cycle that only the garbage collector would free
        if answer.body is None:
            self._stream(answer, identity)
        elif self._wire.exchange is self:
            self._write(answer, identity)

    def _write(self, answer: Answer, identity: bytes) -> None:
        wire = self._wire
        body = answer.body
        framing = b"content-length: %d\r\n" % len(body)
        if ID_HEADER not in dict(answer.headers):
            framing += b"x-request-id: %b\r\n" % identity
        try:
            head = response_head(
                answer.status,
                wire.server.server_fields,
                answer.headers,
                framing,
                keep_alive=self.keep_alive,
                may_chunk=False,
            )
        except ValueError as error:
            logger.error("an answer cannot be sent: %s", error)
            self._write(INTERNAL_ERROR, identity)
            return
        self.keep_alive = not head.closes
        if len(body) < JOIN_LIMIT:
            wire.transport.write(head.text + body)
        else:
            wire.transport.writelines((head.text, body))
        wire.answered(self)

    def _stream(self, answer: StreamedAnswer, identity: bytes) -> None:
        """Let the answer send itself. If the client is gone, the answer is told and closes its source."""
        wire = self._wire
        if ID_HEADER not in dict(answer.headers):
            answer.headers.append((ID_HEADER, identity))
        scope = {"type": "http", "method": "POST", "http_version": self.head.version}
        cycle = Cycle(wire, scope, answer, self.keep_alive, expects=False)
        cycle.complete()
        if wire.exchange is self:
            wire.exchange = cycle
        else:
            cycle.disconnect()
        cycle.start()

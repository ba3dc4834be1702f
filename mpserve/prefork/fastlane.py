"""The fast lane on the wire: an inference request that came alone is answered without an ASGI cycle.

Half of what a small request costs is that machinery. Others, and what the lane does not plainly understand, are uvicorn's.
"""

import asyncio
import math
from typing import TYPE_CHECKING, Any

from mpserve.prefork.exchange import Exchange
from mpserve.prefork.heads import Head, Heads
from mpserve.prefork.http1 import Protocol

if TYPE_CHECKING:
    from mpserve.http.lane import Lane  # which brings Starlette and numpy


class LaneProtocol(Protocol):
    """One client connection, as ``Protocol``, with a ``lane``; ``heads`` are those that the worker remembers."""

    def __init__(self, *args: Any, lane: "Lane", heads: Heads) -> None:
        super().__init__(*args)
        self.lane = lane
        self.heads = heads
        self._exchange: Exchange | None = None
        self._receiving: Exchange | None = None
        """The request of the lane whose body is still to come."""
        self._missing = 0
        """Bytes of that body that are to come, where its head was known: the parser has not seen it."""
        self._first: Head | None = None
        """The first head of what is being read, if it is one for the lane."""
        self._last: Head | None = None
        """The known head that came last, which is most likely to come again."""

    @property
    def begun(self) -> object | None:
        return self._exchange.begun if self._exchange is not None and self._unanswered else None

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(self.cycle, Exchange):
            self.cycle.disconnected = True
            begun = self.cycle.begun
            if begun is not None and not begun.cancel():  # so that it leaves its model's queue, unless it has done so
                self.tasks.add(begun)  # it is only counted there, and kept
            self.cycle = None  # uvicorn would look for its event
        self._exchange = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._unanswered or self._in_head or self._in_body or self._refusal is not None or self._hung_up:
            if self._missing:
                self._receive(data)
            else:
                super().data_received(data)
            return
        head = self._last
        if head is None or len(data) != head.whole or not data.startswith(head.text):
            head = self._last = self.heads.find(data)
            if head is None or len(data) != head.whole:
                self._receive_first(data, head)
                return
        self._complete_exchange(self._begin_exchange(head), data[head.size :])

    def _receive_first(self, data: bytes, head: Head | None) -> None:
        """Take the first bytes of a request, which may begin with a known head, and are not just the whole of it."""
        if head is None or len(data) > head.whole:
            self._first = None
            super().data_received(data)
            if self._first is not None:
                self.heads.remember(data, self._first)
        else:
            self._in_body = True
            self._missing = head.length
            self._await_body(head)
            self._receive(data[head.size :])

    def _receive(self, data: bytes) -> None:
        """Take more of a body whose head was known. To go through the parser it would be copied once more."""
        assert self._receiving is not None
        missing = self._missing
        self._receiving.receive(data if len(data) <= missing else data[:missing])
        if len(data) < missing:
            self._missing = missing - len(data)
            self._deadline = self.loop.time() + self.limits.pause
            return
        self._missing = 0
        self._in_body = False
        self._deadline = math.inf
        self._complete_request()
        if len(data) > missing:
            self.data_received(data[missing:])

    def _begin_request(self) -> None:
        head = self._head()
        if head is None:
            super()._begin_request()
        else:
            self._first = head
            self._await_body(head)

    def _head(self) -> Head | None:
        """The head that has been read, unless the request is one that must go the ordinary way."""
        if self._unanswered or self.parser.get_method() != b"POST" or self.parser.should_upgrade():
            return None
        if self.parser.get_http_version() == "1.0":
            return None
        asked = self.lane.accept(self.url, self.headers)
        return None if asked is None else Head(asked, self.parser.should_keep_alive(), asked.length)

    def _begin_exchange(self, head: Head) -> Exchange:
        exchange = self._exchange  # whose last request has been answered
        if exchange is None:
            exchange = self._exchange = Exchange(self, self.heads)
        exchange.asked = head.asked
        exchange.keep_alive = head.keep_alive
        exchange.response_complete = False
        self.cycle = exchange  # type: ignore[assignment]  # it has what is asked of a cycle
        self._begin_answer()
        return exchange

    def _await_body(self, head: Head) -> None:
        self._receiving = self._begin_exchange(head)
        self._receiving.more_body = True

    def on_body(self, body: bytes) -> None:
        if self._receiving is not None:
            self._receiving.receive(body)
        else:
            super().on_body(body)

    def _complete_request(self) -> None:
        exchange, self._receiving = self._receiving, None
        if exchange is None:
            super()._complete_request()
        else:
            exchange.more_body = False
            self._complete_exchange(exchange, exchange.take_body())

    def _abandon_request(self) -> None:
        if self._receiving is None:
            super()._abandon_request()
        self._receiving = None
        self._missing = 0

    def _complete_exchange(self, exchange: Exchange, body: bytes) -> None:
        exchange.begun = self.lane.begin(exchange.asked, body, self.client, exchange.tell)
        if exchange.begun is None:
            exchange.begun = task = self.loop.create_task(self._answer(exchange, body))
            self.tasks.add(task)

    async def _answer(self, exchange: Exchange, body: bytes) -> None:
        try:
            answer, identity = await self.lane.answer(exchange.asked, body, self.client)
            await exchange.send(answer, identity)
        except BaseException:  # a model that cancels the task that it runs in
            self.transport.close()
            raise
        finally:
            self.tasks.discard(asyncio.current_task())

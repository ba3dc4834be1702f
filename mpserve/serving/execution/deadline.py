"""The time of one request. Knows neither models nor queues."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from mpserve.errors import MPServeError


class Expiring(Protocol):
    """A request whose time may be up."""

    arrived: int
    mark: int
    durations: list[int]
    begun: bool  # whether the model has begun with the request

    def expire(self, error: MPServeError) -> None:
        """End with this error, whatever the model is at."""


class Deadline:
    """The time of a request, from its construction until ``close``. One timer: a task for each request costs five times as much.

    Args:
        seconds: that the request has.
        needed: of these, that must be left when the model begins, unless there never were as many. A request that has not
            begun by then is late already.
        request: is ended when it is late.
        late: makes the error of a late request.
        all: where the deadline is kept while it runs.
    """

    __slots__ = ("_all", "_late", "_left", "_request", "_seconds", "_timer")

    def __init__(
        self,
        seconds: float,
        needed: float,
        request: Expiring,
        late: Callable[[float], MPServeError],
        all: "set[Deadline]",
    ) -> None:
        self._seconds = seconds
        self._left = needed if needed < seconds else 0.0
        self._request = request
        self._late = late
        self._all = all
        self._timer = asyncio.get_running_loop().call_later(seconds - self._left, self._expire)
        all.add(self)

    def _expire(self) -> None:
        if self._left and self._request.begun:
            self._timer = asyncio.get_running_loop().call_later(self._left, self._expire)
            self._left = 0.0
        else:
            self.end(self._late(self._seconds))

    def end(self, error: MPServeError) -> None:
        """End the request with ``error`` now."""
        self.close()
        self._request.expire(error)

    def close(self) -> None:
        """The request is over. May be called again."""
        self._timer.cancel()
        self._all.discard(self)

"""The time limit of one request. Knows neither models nor queues."""

import asyncio
from collections.abc import Callable

from mpserve.errors import MPServeError
from mpserve.serving.execution.scheduled import Scheduled


class Deadline:
    """The time limit of a request, from its construction until ``close``. A timer costs a fifth of a task.

    Args:
        seconds: the time limit.
        needed: seconds that must be left when the model begins; ignored if ``seconds`` is less. A request that has not
            begun by then ends as late.
        request: the request to end.
        late: makes the error of a late request from ``seconds``.
        all: holds the deadline while it runs.
    """

    __slots__ = ("_all", "_late", "_left", "_request", "_seconds", "_timer")

    def __init__(
        self,
        seconds: float,
        needed: float,
        request: Scheduled,
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
        self.close()
        self._request.expire(error)

    def close(self) -> None:
        """Stop the timer: the request is over. May be called again."""
        self._timer.cancel()
        self._all.discard(self)

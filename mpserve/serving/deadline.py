"""The time of one request: when it is up, and what ends a task then. Knows neither models nor queues."""

import asyncio
import sys
from collections.abc import Callable
from types import TracebackType

from mpserve.errors import MPServeError
from mpserve.serving.tally import QUEUE, Stopwatch

GiveUp = Callable[[MPServeError], object]
"""Ends a request with an error."""


class Deadline:
    """The time of a request, from its construction until ``close``. One timer: a task for each request costs five times as much.

    Args:
        seconds: that the request has.
        needed: of these, that must be left when the model begins, as ``watch`` says, unless there never were as many. What
            has not begun by then is late already.
        late: makes the error of one that is late.
        give_up: is given it.
        all: where it is kept while it runs.
    """

    __slots__ = ("_all", "_give_up", "_late", "_left", "_seconds", "_timer", "_watch")

    def __init__(
        self,
        seconds: float,
        needed: float,
        watch: Stopwatch,
        late: Callable[[float], MPServeError],
        give_up: GiveUp,
        all: "set[Deadline]",
    ) -> None:
        self._seconds = seconds
        self._left = needed if needed < seconds else 0.0
        self._watch = watch
        self._late = late
        self._give_up = give_up
        self._all = all
        self._timer = asyncio.get_running_loop().call_later(seconds - self._left, self._expire)
        all.add(self)

    def _expire(self) -> None:
        if self._left and self._watch.spent[QUEUE]:
            self._timer = asyncio.get_running_loop().call_later(self._left, self._expire)
            self._left = 0.0
        else:
            self.end(self._late(self._seconds))

    def end(self, error: MPServeError) -> None:
        """Give the request up with ``error`` now."""
        self.close()
        self._give_up(error)

    def close(self) -> None:
        """The request is over. May be called again."""
        self._timer.cancel()
        self._all.discard(self)


class Ending:
    """A part of a task that can be ended with an error, which is told from any other cancellation.

    As ``asyncio.timeout``, which Python 3.10 has not.
    """

    __slots__ = ("_error", "_task")

    def __enter__(self) -> "Ending":
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._error: MPServeError | None = None
        return self

    def end(self, error: MPServeError) -> None:
        """Raise ``error`` where the task is, once."""
        self._error = error
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._error is None:
            return
        if sys.version_info >= (3, 11) and self._task.uncancel():
            return  # somebody else has cancelled the task as well, and wants it to end
        if kind is asyncio.CancelledError:
            raise self._error from None

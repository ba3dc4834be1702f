"""Divides a worker's ``graceful_timeout`` between its last requests and the models' ``stop()``. Knows neither of them."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

MARGIN = 1.0  # seconds before gunicorn's SIGKILL at which the worker is to have ended
STOPPING = 0.5  # seconds that are kept for ``stop()``
HURRY = 1.0  # seconds for everything after SIGINT or SIGQUIT: gunicorn kills after two (arbiter.py, stop)
LOOK = 0.1  # seconds between two looks at a running ``stop()``


def time_for_requests(graceful_timeout: float) -> float:
    """Seconds in which the requests of a worker that ends must be answered."""
    return max(graceful_timeout - MARGIN, 0) - STOPPING


class Grace:
    """The time in which one worker must end. The time is unlimited before ``begin`` or ``hurry``."""

    def __init__(self, graceful_timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = max(graceful_timeout - MARGIN, 0)
        self._clock = clock
        self._deadline = math.inf

    def begin(self) -> None:
        """Start the time. Later calls change nothing."""
        self._limit(self._seconds)

    def hurry(self) -> None:
        """Leave at most ``HURRY`` seconds from now."""
        self._limit(HURRY)

    def _limit(self, seconds: float) -> None:
        self._deadline = min(self._deadline, self._clock() + seconds)

    @property
    def left_for_requests(self) -> float:
        """Seconds in which the requests must be answered. Negative when the time is over."""
        return self._deadline - STOPPING - self._clock()

    async def stop(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run ``work`` in the time that is left, at least ``STOPPING``. Log work that fails or takes too long."""
        self.begin()
        task = asyncio.ensure_future(work())
        at_least = self._clock() + STOPPING
        # Not asyncio.wait_for, which keeps waiting for a coroutine that refuses to be cancelled.
        while not task.done() and self._clock() < max(self._deadline, at_least):  # hurry() may be called meanwhile
            await asyncio.wait({task}, timeout=LOOK)
        if not task.done():
            logger.error("stop() did not finish in time; ending without it")
        elif (error := task.exception()) is not None:
            logger.error("stop() failed", exc_info=error)

"""How a worker that ends divides its ``graceful_timeout`` between the requests that it finishes and the models' ``stop()``.

It knows no request and no model.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

MARGIN = 1.0
"""Seconds before gunicorn's SIGKILL by which the worker is done on its own."""
STOPPING = 0.5
"""Seconds that the requests leave to ``stop()``, so that the margin is kept whole."""
HURRY = 1.0
"""Seconds for all that is left once SIGINT or SIGQUIT came: gunicorn kills after two (arbiter.py, stop)."""
LOOK = 0.1
"""Seconds between two looks at a ``stop()`` that runs."""


class Grace:
    """The time in which one worker must end, of ``graceful_timeout`` seconds; it has no end before ``begin`` or ``hurry``."""

    def __init__(self, graceful_timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = max(graceful_timeout - MARGIN, 0)
        self._clock = clock
        self._deadline = math.inf

    def begin(self) -> None:
        """Let the time run. Later calls change nothing."""
        self._limit(self._seconds)

    def hurry(self) -> None:
        """Let no more than ``HURRY`` be left from now on."""
        self._limit(HURRY)

    def _limit(self, seconds: float) -> None:
        self._deadline = min(self._deadline, self._clock() + seconds)

    @property
    def left_for_requests(self) -> float:
        """Seconds in which the requests must be answered; less than 0 if they are late."""
        return self._deadline - STOPPING - self._clock()

    async def stop(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run ``work`` in the time that is left, or in ``STOPPING`` if that is more.

        Work that fails or takes too long is logged.
        """
        self.begin()
        task = asyncio.ensure_future(work())
        at_least = self._clock() + STOPPING
        # Not asyncio.wait_for, which waits on for a coroutine that refuses to be cancelled.
        while not task.done() and self._clock() < max(self._deadline, at_least):  # hurry() may come meanwhile
            await asyncio.wait({task}, timeout=LOOK)
        if not task.done():
            logger.error("stop() did not finish in time; ending without it")
        elif (error := task.exception()) is not None:
            logger.error("stop() failed", exc_info=error)

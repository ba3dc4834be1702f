"""Loads the models of a worker under a deadline, after a pause if the last load in this slot failed.

While the models load, clients get 503 if no other worker can answer them. The caller decides what a failed load means.
"""

import asyncio
import faulthandler
import logging
import math
import time
from typing import Any

from mpserve.errors import MPServeError
from mpserve.prefork.listener.listeners import Listeners
from mpserve.serving.repository.core import ServerCore
from mpserve.telemetry.memory import resident

logger = logging.getLogger(__name__)

TICK = 0.1
BACK_OFF_LIMIT = 60.0
FIRST_WORD = 5.0  # seconds after which a load tells that it goes on; then after twice as many, and so on
GIL_GRACE = 5.0  # seconds after the deadline at which C code ends a load that lets no Python code run


class LoadFailed(Exception):
    """The worker cannot serve. The message is for the operator."""


def back_off(failures: int) -> float:
    """Seconds to wait after this many failed loads in a row."""
    return min(BACK_OFF_LIMIT, 2.0 ** min(failures - 1, 10))


async def load(core: ServerCore, listeners: Listeners, stopping: asyncio.Event) -> bool:
    """Load the models. Return False if ``stopping`` was set meanwhile.

    Raises LoadFailed: a model could not be loaded, or not in time.
    """
    row = core.row
    failures = row.attempts
    if failures and core.board.ever_ready:
        # The successor waits, since a killed worker cannot.
        delay = back_off(failures)
        logger.warning("the last %d worker(s) in this slot failed; loading again in %g s", failures, delay)
        await _wait(core, listeners, stopping, asyncio.ensure_future(asyncio.sleep(delay)), math.inf)
    if stopping.is_set():
        return False
    row.attempts = failures + 1
    timeout = core.settings.load_timeout
    loading = asyncio.ensure_future(core.load())
    # The event loop cannot enforce the deadline of a load that holds the GIL. This thread of C code can.
    faulthandler.dump_traceback_later(timeout + GIL_GRACE, exit=True)
    try:
        await _wait(core, listeners, stopping, loading, timeout)
    finally:
        faulthandler.cancel_dump_traceback_later()
    if stopping.is_set():
        loading.cancel()
        row.attempts = failures
        return False
    if not loading.done():
        where = core.where()
        loading.cancel()
        raise LoadFailed(f"{core.loading} did not finish within the {timeout:g} s of --load_timeout; it is at {where}")
    try:
        loading.result()
    except MPServeError as error:
        raise LoadFailed(str(error)) from error
    return True


async def _wait(
    core: ServerCore, listeners: Listeners, stopping: asyncio.Event, task: "asyncio.Future[Any]", timeout: float
) -> None:
    """Wait for ``task``, for ``timeout`` seconds or for ``stopping``. Accept clients that no other worker can answer."""
    begin = time.monotonic()
    deadline, told = begin + timeout, FIRST_WORD
    while not (task.done() or stopping.is_set()) and time.monotonic() < deadline:
        if listeners.clients_can_connect and not core.board.any_ready():
            listeners.open(early=True)
        else:
            listeners.pause()
        if core.loading and (seconds := time.monotonic() - begin) > told:
            logger.info("%s goes on: %.0f s, %d MiB", core.loading, seconds, resident() >> 20)
            told *= 2
        await asyncio.wait({task}, timeout=TICK)

"""The first stage of a worker's life: load the models, under a deadline, after a pause if the last load here failed.

Meanwhile clients whom nobody else would answer get a 503 instead of waiting. What a failure means for the server is
decided elsewhere.
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

logger = logging.getLogger(__name__)

TICK = 0.1
BACK_OFF_LIMIT = 60.0
GIL_GRACE = 5.0
"""Seconds after the deadline at which a load that lets no Python code run is ended by C code."""


class LoadFailed(Exception):
    """The worker cannot serve; the message is for the operator."""


def back_off(failures: int) -> float:
    """Seconds to wait after so many failed loads in a row."""
    return min(BACK_OFF_LIMIT, 2.0 ** min(failures - 1, 10))


async def load(core: ServerCore, door: Listeners, ending: asyncio.Event) -> bool:
    """Load the models; False when the worker was told to end meanwhile, by ``ending``.

    Raises:
        LoadFailed: a model could not be loaded, or not in time.
    """
    row = core.row
    failures = row.attempts
    if failures and core.board.ever_ready:
        # Sleep before loading, in the successor, since the dead cannot; a killed or crashed load counts as well.
        delay = back_off(failures)
        logger.warning("the last %d load(s) in this slot failed; loading again in %g s", failures, delay)
        await _watch(core, door, ending, asyncio.ensure_future(asyncio.sleep(delay)), math.inf)
    if ending.is_set():
        return False
    row.attempts = failures + 1
    timeout = core.settings.load_timeout
    loading = asyncio.ensure_future(core.load())
    # The loop cannot keep the deadline of a load that holds the GIL; this thread of C can.
    faulthandler.dump_traceback_later(timeout + GIL_GRACE, exit=True)
    try:
        await _watch(core, door, ending, loading, timeout)
    finally:
        faulthandler.cancel_dump_traceback_later()
    if ending.is_set():
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


async def _watch(
    core: ServerCore, door: Listeners, ending: asyncio.Event, task: "asyncio.Future[Any]", timeout: float
) -> None:
    """Wait for ``task``, the deadline or the end, and mind the door."""
    deadline = time.monotonic() + timeout
    while not (task.done() or ending.is_set()) and time.monotonic() < deadline:
        if door.lets_clients_wait and not core.board.any_ready():
            door.open()
        else:
            door.shut()
        await asyncio.wait({task}, timeout=TICK)

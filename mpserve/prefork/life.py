"""A worker's life on its event loop, from top to bottom: load, open, serve, drain, stop.

uvicorn gives the HTTP protocol, its configuration and its shared state; its ``Server`` is not used, since signals, the order of
shutdown and the moment of listening are exactly what has to differ (it re-raises SIGTERM, so ``worker_exit`` never ran).
"""

import asyncio
import contextlib
import faulthandler
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Awaitable, Sequence
from email.utils import formatdate
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from mpserve.errors import ConfigurationError, ModelLoadError
from mpserve.prefork.door import Door
from mpserve.prefork.http1 import Limits, Protocol
from mpserve.scoreboard import State
from mpserve.serving.core import ServerCore

logger = logging.getLogger(__name__)

TICK = 0.1
HEARTBEAT = 1.0
IDLE_GRACE = 1.0
"""Seconds that an idle kept-alive connection is left open in a drain: a request already on its way still gets its answer."""
HURRY = 1.0
"""Seconds for everything that is left once SIGINT or SIGQUIT came: gunicorn kills after two (arbiter.py, stop)."""
MARGIN = 1.0
"""Seconds before gunicorn's SIGKILL by which the worker is done on its own."""
BACK_OFF_LIMIT = 60.0


class LoadFailed(Exception):
    """The models could not be loaded; the message is for the operator."""


class Life:
    """One worker's life. ``run`` is the whole of it."""

    def __init__(self, core: ServerCore, config: Config, listeners: Sequence[socket.socket], limits: Limits) -> None:
        self.core = core
        self.config = config
        self.listeners = listeners
        self.limits = limits
        self.row = core.row
        self.state = ServerState()
        self.parent = os.getppid()
        self.max_requests: int | None = config.limit_max_requests
        self.orphaned = False
        self.hurried = asyncio.Event()
        self.ending = asyncio.Event()
        self._graceful_timeout = float(config.timeout_graceful_shutdown or 0)
        self._deadline = math.inf

    async def run(self) -> None:
        """Live.

        Raises:
            LoadFailed: the models could not be loaded; nothing was served.
        """
        self._catch_signals()
        self.config.load()
        lifespan = self.config.lifespan_class(self.config)
        door = Door(self.listeners, lambda: self._protocol(lifespan.state), self.config.ssl, self.config.backlog)
        ticker = asyncio.ensure_future(self._tick())
        try:
            if not await self._load(door):
                return
            await lifespan.startup()
            if lifespan.should_exit:
                raise LoadFailed("the ASGI application's own lifespan startup failed; its traceback is above")
            self.core.open()
            await door.open()
            logger.info("worker ready")
            await self.ending.wait()
            await self._wait_for_successor()
            await self._drain(door)
            await self._within(self._remaining(), self._stop(lifespan))
        finally:
            ticker.cancel()
            if self.ending.is_set():
                self.row.state = State.EXITED

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._end)
        for hurry in (signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(hurry, self._hurry)

    def _end(self) -> None:
        self.ending.set()

    def _hurry(self) -> None:
        self._deadline = min(self._deadline, time.monotonic() + HURRY)
        self.hurried.set()
        self.ending.set()

    def _protocol(self, app_state: dict[str, Any]) -> Protocol:
        return Protocol(self.config, self.state, app_state, self.limits, self.row)

    async def _tick(self) -> None:
        """What must happen every second or oftener, whatever stage the worker is in."""
        beat = 0.0
        while True:
            now = time.monotonic()
            if now - beat >= HEARTBEAT:
                beat = now
                self.state.default_headers = [(b"date", formatdate(time.time(), usegmt=True).encode())]
                if self.row.state in (State.READY, State.DRAINING) and self.config.callback_notify is not None:
                    # Not while loading: gunicorn's clock starts with the first beat, and a load may hold the GIL for minutes.
                    await self.config.callback_notify()
                if self.row.state == State.READY:
                    self.core.publish()
            if os.getppid() != self.parent and not self.orphaned:
                self.orphaned = True
                logger.error("the arbiter is gone; finishing what is in hand, then ending")
                self.ending.set()
            if self.max_requests is not None and self.state.total_requests >= self.max_requests:
                self.ending.set()
            await asyncio.sleep(TICK)

    async def _load(self, door: Door) -> bool:
        """Load the models; False when the worker was told to end meanwhile."""
        failures = self.row.attempts
        if failures and self.core.board.ever_ready:
            await self._back_off(door, failures)
        if self.ending.is_set():
            return False
        self.row.attempts = failures + 1
        timeout = self.core.settings.load_timeout
        # The loop cannot keep the deadline of a load that holds the GIL; this thread of C can.
        faulthandler.dump_traceback_later(timeout + 5, exit=True)
        load = asyncio.ensure_future(self.core.load())
        await self._watch(door, load, timeout)
        faulthandler.cancel_dump_traceback_later()
        if not load.done():
            load.cancel()
            if self.ending.is_set():
                return False
            raise LoadFailed(
                f"{self.core.loading} did not finish within the {timeout:g} s of --load_timeout; it is at {self.core.where()}"
            )
        try:
            load.result()
        except (ModelLoadError, ConfigurationError) as error:
            raise LoadFailed(str(error)) from error
        return True

    async def _back_off(self, door: Door, failures: int) -> None:
        """Sleep before loading, in the successor, since the dead cannot; a killed or crashed load counts as well."""
        delay = min(BACK_OFF_LIMIT, 2.0 ** (failures - 1))
        logger.warning("the last %d load(s) in this slot failed; loading again in %g s", failures, delay)
        await self._watch(door, asyncio.ensure_future(asyncio.sleep(delay)), delay + 1)

    async def _watch(self, door: Door, task: "asyncio.Future[Any]", timeout: float) -> None:
        """Wait for ``task``, the deadline or the end. Meanwhile answer 503 to clients whom nobody else would answer."""
        deadline = time.monotonic() + timeout
        while not (task.done() or self.ending.is_set()) and time.monotonic() < deadline:
            if door.lets_clients_wait and not self.core.board.any_ready():
                await door.open()
            else:
                await door.shut()
            await asyncio.wait({task}, timeout=TICK)

    async def _wait_for_successor(self) -> None:
        """Told to end by a HUP, go on serving until a younger worker is ready, so that no request is lost meanwhile.

        A server that is stopping is told apart by this: there the younger, loading workers have been told to end as well.
        """
        mine = self.row.age
        while not (self.hurried.is_set() or self.orphaned):
            younger = [row for row in self.core.board.live() if row.age > mine]
            if any(row.state == State.READY for row in younger) or not any(r.state == State.LOADING for r in younger):
                return
            await asyncio.sleep(TICK)

    async def _drain(self, door: Door) -> None:
        """Not ready any more, but still there for ``drain_delay``; then shut the door and finish what was accepted."""
        self._deadline = min(self._deadline, time.monotonic() + max(self._graceful_timeout - MARGIN, 0))
        self.row.state = State.DRAINING
        if not self.orphaned:
            await self._unless_hurried(self.core.settings.drain_delay)
        await door.shut()
        for connection in self._connections():
            connection.retire()
        idle_until = time.monotonic() + IDLE_GRACE
        while self.state.connections or self.state.tasks:
            if time.monotonic() > idle_until or self.hurried.is_set():
                for connection in self._connections():
                    connection.shutdown()
            if self._remaining() <= 0:
                logger.error("%d request(s) did not finish in time and are abandoned", len(self.state.tasks))
                break
            await asyncio.sleep(TICK)

    def _connections(self) -> list[Protocol]:
        return [connection for connection in self.state.connections if isinstance(connection, Protocol)]

    async def _unless_hurried(self, seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.hurried.wait(), min(seconds, self._remaining()))

    def _remaining(self) -> float:
        """Seconds left to end in good order."""
        return max(self._deadline - time.monotonic(), 0)

    async def _stop(self, lifespan: Any) -> None:
        await self.core.stop()
        await lifespan.shutdown()

    async def _within(self, seconds: float, work: Awaitable[None]) -> None:
        try:
            await asyncio.wait_for(work, max(seconds, HURRY / 2))
        except asyncio.TimeoutError:
            logger.error("stop() did not finish in time; ending without it")

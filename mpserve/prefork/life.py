"""A worker's life on its event loop, from top to bottom: load, open, serve, drain, stop.

uvicorn gives the HTTP protocol, its configuration and its shared state; its ``Server`` is not used, since signals, the
order of shutdown and the moment of listening are exactly what has to differ (it re-raises SIGTERM, so ``worker_exit``
never ran).
"""

import asyncio
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from mpserve import rundir
from mpserve.errors import ConfigurationError
from mpserve.metrics import metrics
from mpserve.prefork.balance import Shedding, load_of, ready_others
from mpserve.prefork.door import Door
from mpserve.prefork.fastlane import LaneProtocol
from mpserve.prefork.gate import Gate
from mpserve.prefork.grace import Grace
from mpserve.prefork.heads import Heads
from mpserve.prefork.http1 import Limits, Protocol
from mpserve.prefork.loading import LoadFailed, back_off, load
from mpserve.prefork.upkeep import Upkeep
from mpserve.scoreboard import State
from mpserve.serving.core import ServerCore
from mpserve.serving.log_settings import LogSettings

if TYPE_CHECKING:
    from mpserve.grpc.server import GrpcServer
    from mpserve.http.lane import Lane

logger = logging.getLogger(__name__)

TICK = 0.1
HEARTBEAT = 1.0
IDLE_GRACE = 1.0
"""Seconds that an idle kept-alive connection is left open in a drain: a request that is on its way gets its answer."""


class Life:
    """One worker's life. ``run`` is the whole of it.

    Args:
        core: the models.
        config: of HTTP.
        listeners: the sockets of HTTP, shared by all workers.
        limits: of a request head.
        lane: the fast lane, if the application has one.
        arbiter: the pid of the parent that it must not outlive.
        notify: gives gunicorn a sign of life.
        grpc: the gRPC server, if there is to be one.
    """

    def __init__(
        self,
        core: ServerCore,
        config: Config,
        listeners: Sequence[socket.socket],
        limits: Limits,
        lane: "Lane | None",
        arbiter: int,
        notify: Callable[[], None],
        grpc: "GrpcServer | None",
    ) -> None:
        self.core = core
        self.config = config
        self.listeners = listeners
        self.limits = limits
        self.lane = lane
        self.heads = Heads()
        self.arbiter = arbiter
        self.notify = notify
        self.grpc = grpc
        self.row = core.row
        self.log_settings = LogSettings(core)
        self.state = ServerState()
        self.shedding = Shedding()
        self.ending = asyncio.Event()
        """Told to end, for whatever reason."""
        self.hurried = False
        self.orphaned = False
        self.stuck = False
        """Whether a model does not come back from a call, so that only a new worker can serve it."""
        self.grace = Grace(config.timeout_graceful_shutdown or 0)
        self._beaten = -math.inf
        """When it has given the last sign of life."""

    async def run(self) -> None:
        """Live.

        Raises:
            LoadFailed: the models could not be loaded; nothing was served.
        """
        self._catch_signals()
        ticker = asyncio.ensure_future(self._tick())
        async with AsyncExitStack() as at_the_end:
            at_the_end.callback(ticker.cancel)
            at_the_end.callback(self._leave)
            at_the_end.push_async_callback(self.grace.stop, self.core.stop)
            await self._configure()
            lifespan = self.config.lifespan_class(self.config)
            door = Door(self.listeners, lambda listener: self._gate(listener, lifespan.state), self.config.backlog)
            if not await load(self.core, door, self.ending):
                return
            at_the_end.push_async_callback(self.grace.stop, lifespan.shutdown)
            await lifespan.startup()
            if lifespan.should_exit:
                raise LoadFailed("the ASGI application's own lifespan startup failed; its traceback is above")
            self.core.open()
            await self._catch_up()
            self._beat()  # gunicorn's clock runs from here, however soon the loop is blocked
            await self._open_grpc(at_the_end)
            door.open()
            logger.info("worker ready")
            await self._serve()
            await self._drain(door)

    def _leave(self) -> None:
        if self.ending.is_set():
            self.row.state = State.EXITED
        if self.orphaned and not self.core.board.live():
            rundir.remove_all()  # the arbiter would have, last of all

    @property
    def final(self) -> bool:
        """Whether this worker must end, rather than give way to a successor that it may wait for."""
        spent = self.config.limit_max_requests is not None and (
            self.state.total_requests >= self.config.limit_max_requests
        )
        return self.hurried or self.orphaned or self.stuck or spent or self.core.board.stopping

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.ending.set)
        for hurry in (signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(hurry, self._hurry)

    def _hurry(self) -> None:
        self.hurried = True
        self.grace.hurry()
        self.ending.set()

    def _gate(self, listener: socket.socket, app_state: dict[str, Any]) -> Gate:
        make_protocol = partial(self._protocol, app_state)
        return Gate(listener, make_protocol, self.config.ssl, self.core.board, self.row, self.shedding)

    def _protocol(self, app_state: dict[str, Any]) -> Protocol:
        made = (self.config, self.state, app_state, self.limits, self.row, self.shedding)
        lane = self.lane
        protocol = Protocol(*made) if lane is None else LaneProtocol(*made, lane=lane, heads=self.heads)
        # Who gets a 503 here while the models load may find a ready worker by its next connection.
        protocol.retiring = self.row.state == State.LOADING
        return protocol

    async def _tick(self) -> None:
        """Do all that must happen every second or oftener, whatever stage the worker is in."""
        upkeep = Upkeep(
            {
                "the heartbeat": self._beat_each_second,
                "the watch for the arbiter": self._look_at_arbiter,
                "the worker's row": self._publish,
                "the follow-up of loads and unloads": self.core.reconciler.kick,
                "the follow-up of shared memory": self.core.follow_regions,
                "the follow-up of log settings": self.log_settings.follow,
                "the end of late connections": self._expire_connections,
                "the balance of connections": self._balance,
                "the watch for stuck models": self._look_at_models,
                "the count of metrics": metrics().flush,
            }
        )
        while True:
            upkeep.run()
            if self.final:  # also where SIGTERM came so early that the arbiter's handler, inherited, swallowed it
                self.ending.set()
            await asyncio.sleep(TICK)

    def _beat_each_second(self) -> None:
        if time.monotonic() - self._beaten >= HEARTBEAT:
            self._beat()

    def _beat(self) -> None:
        self._beaten = time.monotonic()
        if self.row.state in (State.READY, State.DRAINING):
            # Not while loading: gunicorn's clock starts with the first beat, and a load may hold the GIL for minutes.
            self.notify()
        self.state.default_headers = [(b"date", formatdate(time.time(), usegmt=True).encode())]

    def _look_at_arbiter(self) -> None:
        if os.getppid() != self.arbiter and not self.orphaned:
            self.orphaned = True
            logger.error("the arbiter is gone; finishing what is in hand, then ending")

    def _publish(self) -> None:
        """Tell the other workers which models can answer here; a model may have set or cleared its ``ready``."""
        if self.row.state == State.READY:
            self.core.publish()

    def _expire_connections(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(self.state.connections):
            if isinstance(connection, Protocol):
                connection.expire(now)

    def _balance(self) -> None:
        others = [row for row in ready_others(self.core.board, self.row) if row.is_live()]
        sheds = self.row.state == State.READY
        self.shedding.look(load_of(self.row), [load_of(row) for row in others] if sheds else [])

    def _look_at_models(self) -> None:
        """Tell how many requests wait, and make way for a successor where a model's call does not come back."""
        models = [served for group in self.core.served.values() for served in group]
        self.row.waiting = sum(served.admission.waiting for served in models)
        now = time.monotonic()
        found = [served.label for served in models if served.find_stuck(now)]
        if found and not self.stuck:
            self.stuck = True
            self.row.restarts += 1
            logger.error("the worker finishes its other requests and is replaced: stuck in %s", ", ".join(found))

    async def _catch_up(self) -> None:
        """Make a wish true that came while the models were loaded, before the first client can ask.

        After READY, not before: who waits for a wish waits for the workers that are READY, so it misses none.
        """
        while self.core.reconciler.is_behind and not self.ending.is_set():
            self.core.reconciler.kick()
            await asyncio.sleep(TICK)

    async def _configure(self) -> None:
        try:
            self.config.load()
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            self.row.attempts += 1
            if self.core.board.ever_ready:  # without a certificate there is no door, so no client waits for an answer
                await asyncio.wait({asyncio.ensure_future(self.ending.wait())}, timeout=back_off(self.row.attempts))
            raise LoadFailed(f"TLS cannot be set up with the certificate and key: {error}") from error

    async def _open_grpc(self, at_the_end: AsyncExitStack) -> None:
        if self.grpc is None:
            return
        try:
            await self.grpc.start()
        except ConfigurationError as error:
            raise LoadFailed(str(error)) from error
        at_the_end.push_async_callback(self.grpc.stop)

    async def _serve(self) -> None:
        """Serve until the end. One that is replaced by a HUP waits for its successors, and goes on if they die."""
        while True:
            await self.ending.wait()
            if self.final or await self._is_succeeded():
                return
            logger.error("the workers that were to replace this one died before they were ready; it goes on serving")
            self.ending.clear()

    async def _is_succeeded(self) -> bool:
        """Wait while younger workers load and more are needed; False if one of those waited for has died.

        Who ends on a false alarm is told again: gunicorn repeats SIGTERM every second while it has too many workers.
        """
        awaited: set[int] = set()
        while not self.final:
            younger = [row for row in self.core.board.live() if row.age > self.row.age]
            loading = {row.age for row in younger if row.state == State.LOADING}
            ready = {row.age for row in younger if row.state == State.READY}
            awaited |= loading
            if len(ready) >= self.core.board.workers_wanted:
                return True
            if not loading:
                return awaited <= ready
            await asyncio.sleep(TICK)
        return True

    async def _drain(self, door: Door) -> None:
        """Not ready any more, but still there for ``drain_delay``; then leave the door and finish what was accepted."""
        self.row.state = State.DRAINING
        self.grace.begin()
        if self.grpc is not None:
            self.grpc.retire()
        await self._pause(self.core.settings.drain_delay)
        door.leave()
        calls = asyncio.ensure_future(self._drain_grpc())
        idle_until = time.monotonic() + IDLE_GRACE
        while True:
            await asyncio.sleep(TICK)  # at first for the connections that were accepted just now
            for connection in list(self.state.connections):
                if isinstance(connection, Protocol):
                    connection.retire(at_once=self.hurried or time.monotonic() > idle_until)
            if not (self.state.connections or self.state.tasks) and (calls.done() or self.hurried):
                return
            if self.grace.left_for_requests <= 0:
                logger.error("%d request(s) did not finish in time and are abandoned", self._unfinished())
                return

    def _unfinished(self) -> int:
        begun = (connection.begun for connection in self.state.connections if isinstance(connection, Protocol))
        return len({*self.state.tasks, *begun} - {None})

    async def _drain_grpc(self) -> None:
        if self.grpc is not None:
            await self.grpc.drain(max(self.grace.left_for_requests, 0))

    async def _pause(self, seconds: float) -> None:
        """Sleep, unless there is no time for it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.grace.left_for_requests > 0 and not (self.hurried or self.orphaned):
            await asyncio.sleep(TICK)

"""A worker's life on its event loop, from top to bottom: load, open, serve, drain, stop.

The order of the end, the signals and the moment of listening are decided here. The HTTP server only counts and closes its
connections.
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
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpserve.errors import ConfigurationError
from mpserve.http.server.connection import Connection
from mpserve.http.server.limits import Limits
from mpserve.http.server.server import HttpServer
from mpserve.http.server.uvicorn import Application
from mpserve.prefork.listener.acceptor import Acceptor
from mpserve.prefork.listener.listeners import Listeners
from mpserve.prefork.listener.rebalancer import Rebalancer, load_of, ready_others
from mpserve.prefork.worker.grace import Grace
from mpserve.prefork.worker.loading import LoadFailed, back_off, load
from mpserve.prefork.worker.upkeep import Upkeep
from mpserve.serving.extensions.log_settings import LogSettings
from mpserve.serving.repository.core import ServerCore
from mpserve.state import rundir
from mpserve.state.scoreboard import State
from mpserve.telemetry.metrics import metrics

if TYPE_CHECKING:
    from mpserve.grpc.server import GrpcServer
    from mpserve.http.inference.direct import DirectRoutes

logger = logging.getLogger(__name__)

TICK = 0.1
HEARTBEAT = 1.0
IDLE_GRACE = 1.0
"""Seconds that an idle kept-alive connection is left open in a drain: a request that is on its way gets its answer."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What gunicorn asks of a worker.

    Attributes:
        arbiter: the pid of the parent that the worker must not outlive.
        backlog: connections that the kernel queues.
        max_requests: requests after which the worker is replaced. None: never.
        graceful_timeout: seconds for the whole end of the worker.
        beat: tells the arbiter that the worker is alive.
    """

    arbiter: int
    backlog: int
    max_requests: int | None
    graceful_timeout: float
    beat: Callable[[], None]


class WorkerServer:
    """One worker's life. ``run`` is the whole of it.

    Args:
        core: the models.
        application: the ASGI application.
        listeners: the sockets of HTTP, shared by all workers.
        limits: the limits of HTTP requests.
        routes: the direct routes, if the application has any.
        terms: what gunicorn asks of the worker.
        grpc: the gRPC server, if there is to be one.
    """

    def __init__(
        self,
        core: ServerCore,
        application: Application,
        listeners: Sequence[socket.socket],
        limits: Limits,
        routes: "DirectRoutes | None",
        terms: Terms,
        grpc: "GrpcServer | None",
    ) -> None:
        self.core = core
        self.application = application
        self.listeners = listeners
        self.limits = limits
        self.routes = routes
        self.terms = terms
        self.grpc = grpc
        self.row = core.row
        self.log_settings = LogSettings(core)
        self.http: HttpServer | None = None
        """There is one from the moment at which the application is loaded."""
        self.rebalancer = Rebalancer()
        self.ending = asyncio.Event()
        """Told to end, for whatever reason."""
        self.hurried = False
        self.orphaned = False
        self.stuck = False
        """Whether a model does not come back from a call, so that only a new worker can serve it."""
        self.grace = Grace(terms.graceful_timeout)
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
            self.http = http = await self._load_application()
            door = Listeners(self.listeners, lambda listener: self._gate(listener, http), self.terms.backlog)
            if not await load(self.core, door, self.ending):
                return
            at_the_end.push_async_callback(self.grace.stop, self.application.shutdown)
            if not await self.application.startup():
                raise LoadFailed("the ASGI application's own lifespan startup failed; its traceback is above")
            self.core.open()
            await self._catch_up()
            self._beat()  # gunicorn's clock runs from here, however soon the loop is blocked
            await self._open_grpc(at_the_end)
            door.open()
            logger.info("worker ready")
            await self._serve()
            await self._drain(door, http)

    def _leave(self) -> None:
        if self.ending.is_set():
            self.row.state = State.EXITED
        if self.orphaned and not self.core.board.live():
            rundir.remove_all()  # the arbiter would have, last of all

    @property
    def final(self) -> bool:
        """Whether this worker must end, rather than give way to a successor that it may wait for."""
        most, http = self.terms.max_requests, self.http
        spent = most is not None and http is not None and http.total_requests >= most
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

    def _gate(self, listener: socket.socket, http: HttpServer) -> Acceptor:
        def connect() -> Connection:
            connection = Connection(http)
            # A client that gets a 503 here while the models load may find a ready worker by its next connection.
            connection.retiring = self.row.state == State.LOADING
            return connection

        return Acceptor(listener, connect, self.application.tls, self.core.board, self.row, self.rebalancer)

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
            self.terms.beat()
        if self.http is not None:
            self.http.set_date(time.time())

    def _look_at_arbiter(self) -> None:
        if os.getppid() != self.terms.arbiter and not self.orphaned:
            self.orphaned = True
            logger.error("the arbiter is gone; finishing what is in hand, then ending")

    def _publish(self) -> None:
        """Tell the other workers which models can answer here; a model may have set or cleared its ``ready``."""
        if self.row.state == State.READY:
            self.core.publish()

    def _expire_connections(self) -> None:
        if self.http is not None:
            self.http.expire(asyncio.get_running_loop().time())

    def _balance(self) -> None:
        others = [row for row in ready_others(self.core.board, self.row) if row.is_live()]
        sheds = self.row.state == State.READY
        self.rebalancer.look(load_of(self.row), [load_of(row) for row in others] if sheds else [])

    def _look_at_models(self) -> None:
        """Tell how many requests wait, and make way for a successor where a model's call does not come back."""
        models = [instance for group in self.core.models.values() for instance in group]
        self.row.waiting = sum(instance.admission.waiting for instance in models)
        now = time.monotonic()
        found = [instance.label for instance in models if instance.find_stuck(now)]
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

    async def _load_application(self) -> HttpServer:
        application = self.application
        try:
            application.load()
        except ConfigurationError as error:
            raise LoadFailed(str(error)) from error
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            self.row.attempts += 1
            if self.core.board.ever_ready:  # without a certificate there is no door, so no client waits for an answer
                await asyncio.wait({asyncio.ensure_future(self.ending.wait())}, timeout=back_off(self.row.attempts))
            raise LoadFailed(f"TLS cannot be set up with the certificate and key: {error}") from error
        return HttpServer(application.app, application.state, self.routes, self.limits, self.row, self.rebalancer)

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

    async def _drain(self, door: Listeners, http: HttpServer) -> None:
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
            http.retire(at_once=self.hurried or time.monotonic() > idle_until)
            # Of a direct request whose client is gone only the row knows.
            if http.is_idle and not self.row.in_flight and (calls.done() or self.hurried):
                return
            if self.grace.left_for_requests <= 0:
                unfinished = max(http.unanswered, self.row.in_flight)
                logger.error("%d request(s) did not finish in time and are abandoned", unfinished)
                return

    async def _drain_grpc(self) -> None:
        if self.grpc is not None:
            await self.grpc.drain(max(self.grace.left_for_requests, 0))

    async def _pause(self, seconds: float) -> None:
        """Sleep, unless there is no time for it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.grace.left_for_requests > 0 and not (self.hurried or self.orphaned):
            await asyncio.sleep(TICK)

"""The server of one worker on its event loop, from top to bottom: load, open, serve, drain, stop.

This module decides when the worker listens, what its signals do and in which order it ends.
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
from mpserve.http.server.interface import Limits
from mpserve.http.server.server import HttpServer
from mpserve.http.server.uvicorn import Application
from mpserve.prefork.listener.acceptor import Acceptor, ClientTerms, most_connections
from mpserve.prefork.listener.listeners import Listeners
from mpserve.prefork.listener.rebalancer import Rebalancer, load_of, ready_others
from mpserve.prefork.worker.announcement import announce
from mpserve.prefork.worker.grace import Grace
from mpserve.prefork.worker.loading import LoadFailed, back_off, load
from mpserve.prefork.worker.upkeep import Upkeep
from mpserve.serving.extensions.log_settings import LogSettings
from mpserve.serving.repository.core import ServerCore
from mpserve.state import rundir
from mpserve.state.scoreboard import STARTING, STEADY, Ending, State
from mpserve.state.watch import Watch
from mpserve.telemetry.logging import mend
from mpserve.telemetry.memory import resident
from mpserve.telemetry.metrics import metrics

if TYPE_CHECKING:
    from mpserve.grpc.server import GrpcServer
    from mpserve.http.inference.direct_routes import DirectRoutes

logger = logging.getLogger(__name__)

TICK = 0.1
HEARTBEAT = 1.0
IDLE_GRACE = 1.0
"""Seconds for which idle connections stay open in a drain, so that a request that is on its way is answered."""


@dataclass(frozen=True, slots=True)
class Terms:
    """gunicorn's settings for a worker."""

    arbiter: int  # the pid of the parent. The worker must not outlive it.
    backlog: int  # connections that the kernel queues
    max_requests: int | None  # requests after which the worker is replaced. None: never.
    graceful_timeout: float  # seconds in which the worker must end
    beat: Callable[[], None]  # tells the arbiter that the worker is alive
    certificates: Watch
    admin: socket.socket | None  # the socket of ``--admin_bind``, which is one of the listeners


class WorkerServer:
    """Serves HTTP, and gRPC if ``grpc`` is given, in one worker. ``sockets`` are shared by all workers."""

    def __init__(
        self,
        core: ServerCore,
        application: Application,
        sockets: Sequence[socket.socket],
        limits: Limits,
        routes: "DirectRoutes | None",
        terms: Terms,
        grpc: "GrpcServer | None",
    ) -> None:
        self.core = core
        self.application = application
        self.sockets = sockets
        self.limits = limits
        self.routes = routes
        self.terms = terms
        self.grpc = grpc
        self.row = core.row
        self.log_settings = LogSettings(core)
        self.http: HttpServer | None = None  # none until the application is loaded
        self.rebalancer = Rebalancer()
        self.stopping = asyncio.Event()  # set when the worker is to end
        self.hurried = False
        self.orphaned = False
        self.stuck = False  # whether a call of a model does not return, so that only a new worker can serve the model
        self.lost = False  # whether only a new worker can use the accelerator
        self.grace = Grace(terms.graceful_timeout)
        self._last_beat = -math.inf
        self._opened = math.inf
        self._least_memory = 0
        core.on_accelerator_lost = self._lose_accelerator

    async def run(self) -> None:
        """Serve until the end. Raises LoadFailed: nothing was served."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stopping.set)
        for number in (signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, self._hurry)
        ticker = asyncio.ensure_future(self._tick())
        async with AsyncExitStack() as at_the_end:
            at_the_end.callback(ticker.cancel)
            at_the_end.callback(self._leave)
            at_the_end.push_async_callback(self.grace.stop, self.core.stop)
            self.http = http = await self._load_application()
            listeners = Listeners(self.sockets, lambda listener: self._acceptor(listener, http), self.terms.backlog)
            if not await load(self.core, listeners, self.stopping):
                return
            at_the_end.push_async_callback(self.grace.stop, self.application.shutdown)
            if not await self.application.startup():
                raise LoadFailed("the ASGI application's own lifespan startup failed; its traceback is above")
            self.core.follow()
            await self._catch_up()
            self._beat()  # so that gunicorn notices a loop that is blocked from here on
            await self._open_grpc(at_the_end)
            listeners.open()
            self._measure_memory()
            self.core.open()
            self._opened = time.monotonic()
            logger.info("worker ready")
            telling = asyncio.ensure_future(
                announce(
                    self.core,
                    [each for each in self.sockets if each is not self.terms.admin],
                    self.application.tls is not None,
                    self.grpc is not None,
                )
            )  # beside the rest, since it asks the models for their inputs
            at_the_end.callback(telling.cancel)
            await self._serve()
            await self._drain(listeners, http)

    def _leave(self) -> None:
        if self.stopping.is_set():
            self.row.state = State.EXITED
        if self.orphaned and not self.core.board.live():
            rundir.remove_all()  # since the arbiter cannot

    @property
    def must_end(self) -> bool:
        """Whether this worker must end without waiting for its successors."""
        return self.hurried or self.orphaned or self.stuck or self.lost or self.core.board.stopping

    def _hurry(self) -> None:
        self.hurried = True
        self.grace.hurry()
        self.stopping.set()

    def _acceptor(self, listener: socket.socket, http: HttpServer) -> Acceptor:
        def connect() -> Connection:
            connection = Connection(http)
            # A client that gets 503 while the models load may reach a ready worker by its next connection.
            connection.retiring = self.row.state in STARTING
            connection.is_admin = listener is self.terms.admin
            return connection

        most = most_connections(self.core.settings.max_connections)
        is_plain = listener is self.terms.admin and listener.family == socket.AF_UNIX
        terms = ClientTerms(
            lambda: None if is_plain else self.application.tls, self.limits.head_seconds, most, http.make_room
        )
        return Acceptor(listener, connect, terms, self.core.board, self.row, self.rebalancer)

    async def _tick(self) -> None:
        upkeep = Upkeep(
            {
                "the heartbeat": self._beat_each_second,
                "the watch for the arbiter": self._look_at_arbiter,
                "the worker's row": self._publish,
                "the proof of the worker": self._look_at_age,
                "the follow-up of loads and unloads": self.core.reconciler.kick,
                "the follow-up of shared memory": self.core.follow_regions,
                "the follow-up of log settings": self.log_settings.follow,
                "the server's own log lines": mend,
                "the end of late connections": self._expire_connections,
                "the balance of connections": self._balance,
                "the watch for stuck models": self._look_at_models,
                "the worker's share of requests and memory": self._look_at_share,
                "the watch for certificates": self._look_at_certificates,
                "the watch for keys of callers": self._look_at_keys,
                "the count of metrics": self._flush_metrics,
            }
        )
        while True:
            self.row.ticked = time.monotonic_ns() // 1_000_000
            upkeep.run()
            if self.core.board.hurrying and not self.hurried:
                self._hurry()
            if self.must_end:  # also if SIGTERM came while the worker had only the arbiter's handler, which ignores it
                self.stopping.set()
            await asyncio.sleep(TICK)

    def _beat_each_second(self) -> None:
        if time.monotonic() - self._last_beat >= HEARTBEAT:
            self._beat()

    def _beat(self) -> None:
        self._last_beat = time.monotonic()
        if self.row.state in (State.OPENING, State.READY, State.DRAINING):
            # Not while loading: gunicorn expects beats after the first one, and a load may hold the GIL for minutes.
            self.terms.beat()
        if self.http is not None:
            self.http.set_date(time.time())

    def _look_at_arbiter(self) -> None:
        if os.getppid() != self.terms.arbiter and not self.orphaned:
            self.orphaned = True
            logger.error("the arbiter is gone; the worker finishes its requests, then ends")

    def _look_at_certificates(self) -> None:
        if self.http is not None:  # the application has read them
            self.terms.certificates.look()

    def _look_at_keys(self) -> None:
        if self.core.authenticator is not None:
            self.core.authenticator.look()

    def _look_at_age(self) -> None:
        """Count this worker as good once it has served for a while: a model may kill its worker soon after the load."""
        if self.row.attempts and time.monotonic() - self._opened >= STEADY:
            self.row.attempts = 0
            self.core.board.ever_steady = True

    def _publish(self) -> None:
        """Write to the scoreboard which models can answer here. A model may have changed its ``ready``."""
        if self.row.state == State.READY:
            self.core.publish()

    def _expire_connections(self) -> None:
        if self.http is not None:
            self.http.expire(asyncio.get_running_loop().time())

    def _balance(self) -> None:
        others = [row for row in ready_others(self.core.board, self.row) if row.is_live()]
        is_ready = self.row.state == State.READY
        self.rebalancer.look(load_of(self.row), [load_of(row) for row in others] if is_ready else [])

    def _look_at_models(self) -> None:
        """Publish how many requests wait. End the worker if a call of a model does not return."""
        models = [instance for group in self.core.models.values() for instance in group]
        self.core.publish_queues()
        now = time.monotonic()
        stuck = [instance.label for instance in models if instance.find_stuck(now)]
        if stuck and not self.stuck:
            self.stuck = True
            self.row.restart(Ending.STUCK)
            logger.error("the worker finishes its other requests and is replaced: stuck in %s", ", ".join(stuck))

    def _look_at_share(self) -> None:
        """Ask the arbiter for a successor if this worker has had its share of requests, or of memory."""
        if self.row.state != State.READY or self.row.is_spent:
            return
        if reason := self._spent():
            self.row.is_spent = True
            logger.info("%s; the worker is replaced", reason)

    def _spent(self) -> str:
        """Why the worker is to be replaced; an empty text if it is not."""
        most, answered = self.terms.max_requests, self.total_requests
        if most is not None and answered >= most:
            return f"{answered} requests were answered (--max_requests)"
        allowed = self.core.settings.max_rss
        if allowed and self._least_memory < allowed <= (used := resident()):
            return f"the worker uses {used >> 20} MiB of memory (--max_rss)"
        return ""

    @property
    def total_requests(self) -> int:
        """Number of requests that were answered, over HTTP and gRPC."""
        return (self.http.total_requests if self.http else 0) + (self.grpc.total_requests if self.grpc else 0)

    def _measure_memory(self) -> None:
        """Remember how much memory a new worker uses. A successor would use no less."""
        allowed = self.core.settings.max_rss
        self._least_memory = resident()
        if allowed and self._least_memory >= allowed:
            logger.warning(
                "the worker uses %d MiB of memory before its first request, and --max_rss is %d MiB:"
                " a successor would use no less, so the worker is not replaced for its memory",
                self._least_memory >> 20, allowed >> 20,
            )  # fmt: skip

    def _flush_metrics(self) -> None:
        try:
            metrics().flush_all()
        except OSError:
            self.row.failed_flushes += 1
            raise

    def _lose_accelerator(self) -> None:
        self.lost = True
        self.row.restart(Ending.ACCELERATOR)
        self.stopping.set()
        logger.error(
            "the worker finishes its other requests and is replaced: only a new process can use the accelerator"
        )

    async def _catch_up(self) -> None:
        """Follow the changes of models that came during the load, before the first client.

        The worker follows them already: a change waits for all such workers, so that none is missed.
        """
        while self.core.reconciler.is_behind and not self.stopping.is_set():
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
            if self.core.board.ever_ready:  # no client waits meanwhile, since without TLS nobody can connect
                await asyncio.wait({asyncio.ensure_future(self.stopping.wait())}, timeout=back_off(self.row.attempts))
            raise LoadFailed(f"TLS cannot be set up with the certificate and key: {error}") from error
        shared = self.routes, self.limits, self.row, self.rebalancer
        http = HttpServer(application.app, application.state, *shared)
        if self.core.authenticator is not None:
            self.core.authenticator.on_change = http.forget_heads
        return http

    async def _open_grpc(self, at_the_end: AsyncExitStack) -> None:
        if self.grpc is None:
            return
        try:
            await self.grpc.start()
        except ConfigurationError as error:
            raise LoadFailed(str(error)) from error
        at_the_end.push_async_callback(self.grpc.stop)

    async def _serve(self) -> None:
        """Serve until the end. In a HUP, wait for the successors, and go on if they die."""
        while True:
            await self.stopping.wait()
            if self.must_end or await self._is_succeeded():
                return
            logger.error("the workers that were to replace this one died before they were ready; it goes on serving")
            self.stopping.clear()

    async def _is_succeeded(self) -> bool:
        """Wait until enough younger workers are ready. Return False if a younger worker has died.

        A False at the wrong moment does no harm: gunicorn repeats SIGTERM every second while it has too many workers.
        """
        awaited: set[int] = set()
        while not self.must_end:
            younger = [row for row in self.core.board.live() if row.age > self.row.age]
            loading = {row.age for row in younger if row.state in STARTING}
            ready = {row.age for row in younger if row.state == State.READY}
            awaited |= loading
            if len(ready) >= self.core.board.workers_wanted:
                return True
            if not loading:
                return awaited <= ready
            await asyncio.sleep(TICK)
        return True

    async def _drain(self, listeners: Listeners, http: HttpServer) -> None:
        """Say not ready, still accept for ``drain_delay``, then finish the requests that were accepted."""
        self.row.state = State.DRAINING
        self.row.attempts = 0  # it was told to end
        self.grace.begin()
        if self.grpc is not None:
            self.grpc.retire()
        # A client that a lost worker still accepted would get 503, and another worker could answer it.
        await self._pause(0 if self.lost else self.core.settings.drain_delay)
        listeners.close()
        calls = asyncio.ensure_future(self._drain_grpc())
        idle_until = time.monotonic() + IDLE_GRACE
        while True:
            await asyncio.sleep(TICK)  # first, so that the connections accepted just now are counted
            http.retire(at_once=self.hurried or time.monotonic() > idle_until)
            # Only the row counts a direct request whose client is gone.
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
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.grace.left_for_requests > 0 and not (self.hurried or self.orphaned):
            await asyncio.sleep(TICK)

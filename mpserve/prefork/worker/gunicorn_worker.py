"""The gunicorn worker class. It uses no gunicorn hooks, since a user's configuration may replace them.

gunicorn calls the class in this order:

1. ``setup`` in the arbiter, before the user's code is preloaded;
2. ``check_config`` in the arbiter, when the sockets are bound;
3. ``__init__`` in the arbiter, right before each fork;
4. ``run`` in the worker, after ``post_fork``, the change of user and ``post_worker_init``.
"""

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gunicorn.config import Config as GunicornConfig
from gunicorn.errors import HaltServer
from gunicorn.workers.base import Worker as BaseWorker

from mpserve.errors import ConfigurationError
from mpserve.http.server.interface import Limits
from mpserve.http.server.uvicorn import Application
from mpserve.prefork.arbiter import forksafety, grpc_front, process_exit, systemd, torch_cuda
from mpserve.prefork.arbiter import gunicorn as gunicorn_arbiter
from mpserve.prefork.listener import listeners
from mpserve.prefork.worker import children, devices, memory, threads
from mpserve.prefork.worker.grace import time_for_requests
from mpserve.prefork.worker.loading import LoadFailed
from mpserve.prefork.worker.worker_server import Terms, WorkerServer
from mpserve.serving.execution.model_counters import PRESENT
from mpserve.serving.inference.observing import begin_observing
from mpserve.serving.repository.core import ServerCore
from mpserve.serving.repository.host import own_directory
from mpserve.state.scoreboard import STARTING, STEADY, Ending, State, shared
from mpserve.state.watch import Watch, Words
from mpserve.telemetry import metrics
from mpserve.telemetry.last_errors import keep_errors
from mpserve.telemetry.logging import remember, set_slot
from mpserve.telemetry.streams import endure
from mpserve.version import VERSION

if TYPE_CHECKING:
    from mpserve.grpc.server import GrpcServer
    from mpserve.http.inference.direct_routes import DirectRoutes

logger = logging.getLogger(__name__)

WORKER_CLASS = "mpserve.prefork.worker.gunicorn_worker.Worker"
CRASHES = 5  # failed workers in a row after which a server ends of which no worker has ever been steady
CERTIFICATE = Words(used=" for new connections", kept="the certificate of before serves on")
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class Worker(BaseWorker):  # type: ignore[misc]
    """A gunicorn worker that serves models."""

    @classmethod
    def setup(cls) -> None:
        """Prepare the arbiter for the user's code: shared memory, shared files, one native thread, no CUDA.

        Raises ConfigurationError: mpserve does not work with the installed version of a package.
        """
        gunicorn_arbiter.check()
        endure()
        systemd.take_over()
        keep_errors(shared())
        remember()
        shared()
        metrics.configure()
        _state_directory()
        threads.hold_to_one(os.environ)
        grpc_front.configure(os.environ)
        torch_cuda.arm()
        forksafety.watch_forks()
        gunicorn_arbiter.spawn_without_pauses()
        gunicorn_arbiter.mind_workers()

    @staticmethod
    def check_config(cfg: GunicornConfig, log: object) -> None:
        """Refuse settings that this worker cannot work with. Raises ConfigurationError, which gunicorn prints."""
        if not cfg.preload_app:
            raise ConfigurationError(
                "mpserve preloads models in the arbiter: set preload_app = True (or drop the override)"
            )
        if cfg.reuse_port:
            raise ConfigurationError(
                "reuse_port sends connections to workers that are still loading: set reuse_port = False"
            )
        if cfg.timeout and cfg.timeout < 4:
            raise ConfigurationError(f"timeout = {cfg.timeout} is too short for a heartbeat each second: use 4 or more")

    def __init__(self, age: int, ppid: int, sockets: list[Any], app: Any, timeout: float, cfg: Any, log: Any) -> None:
        super().__init__(age, ppid, sockets, app, timeout, cfg, log)
        self.core = _core_of(app)
        self.slot = _free_slot(_slots_taken())
        try:
            self.plan = devices.plan(self.core.settings.devices, devices.visible_accelerators(os.environ))
        except ConfigurationError as reason:
            raise self._halt(str(reason)) from reason
        self.cpus = threads.available_cpus()
        if not shared().ever_ready:
            self._before_any_is_ready()
        elif not shared().ever_steady:
            self._before_any_is_steady()
        self._take_row()
        try:
            forksafety.refuse_accelerator()
        except ConfigurationError as reason:
            raise self._halt(str(reason)) from reason
        forksafety.freeze()
        forksafety.expect_fork()
        process_exit.disinherit()

    def _before_any_is_ready(self) -> None:
        board = shared()
        if board.row(0).state == State.EMPTY:
            self._before_the_first()
        elif any(row.state in STARTING and row.slot not in _slots_taken() for row in board.used()):
            if board.stopping:
                raise HaltServer(
                    "A worker could not load its models; the reason is above.", gunicorn_arbiter.BOOT_ERROR
                )
            raise self._halt(
                "A worker died while it loaded its models, before any worker was ready; its last lines are above."
            )

    def _before_any_is_steady(self) -> None:
        failures = shared().row(self.slot).attempts
        if failures >= CRASHES:
            raise self._halt(
                f"{failures} workers in a row could not load their models, or died within {STEADY:g} s of being ready, and no"
                " worker has ever served for longer; their last lines are above."
            )

    def _before_the_first(self) -> None:
        process_exit.announce_stop()
        gunicorn_arbiter.halt_on_no_status()  # `_before_any_is_ready` decides instead, by the scoreboard
        if self.core.settings.admin_bind and self._admin_socket() is None:
            reason = (
                f"admin_bind: the server does not listen at {self.core.settings.admin_bind}; add it to gunicorn's bind"
            )
            raise self._halt(reason)
        listeners.refuse_until_ready(self.sockets, self.cfg.address)
        self._hold_grpc_port()
        logger.info(
            "mpserve %s: %d worker(s), %s; %g CPU(s), %d native thread(s) each",
            VERSION, self.cfg.workers, devices.describe(self.plan, self.cfg.workers), self.cpus, self._threads(),
        )  # fmt: skip

    def _hold_grpc_port(self) -> None:
        # After USR2 the workers of both servers share the port.
        if listeners.UPGRADE in os.environ or not grpc_front.is_offered(self.core.settings):
            return
        try:
            grpc_front.hold_port(self.core.settings)
        except ConfigurationError as reason:
            raise self._halt(f"{reason}. To serve no gRPC: --enable_grpc=no") from reason

    def _take_row(self) -> None:
        """Reset the slot's row for this worker, but for its counts of restarts and of failed loads."""
        board = shared()
        board.workers_wanted = self.cfg.workers
        row = board.row(self.slot)
        if row.state in (*STARTING, State.READY):  # the last worker in this slot was killed or crashed
            row.restart(Ending.DIED)
        metrics.forget_live(self.slot)
        row.pid = row.in_flight = row.waiting = row.connections = row.models = row.generation = row.is_spent = 0
        board.counters.clear(self.slot, PRESENT)
        row.age, row.ticked = self.age, 0
        row.accelerator = devices.device_for(self.slot, self.plan).number
        row.state = State.LOADING

    @property
    def may_overlap(self) -> bool:
        """In the arbiter: whether the successor of this worker may load before the worker ends."""
        taken = _slots_taken()
        return devices.may_overlap(taken, _free_slot(taken), self.plan)

    def _halt(self, reason: str) -> HaltServer:
        return HaltServer(
            process_exit.last_words(self.core.settings.termination_log, reason), gunicorn_arbiter.BOOT_ERROR
        )

    def _threads(self) -> int:
        return threads.budget(self.cfg.workers, self.core.settings.threads, self.cpus)

    def init_process(self) -> None:
        """Set the slot of this process, then begin as gunicorn's worker. Of the hooks, only ``post_fork`` has run."""
        shared().row(self.slot).pid = os.getpid()
        set_slot(self.slot)
        metrics.set_slot(self.slot)
        super().init_process()

    def init_signals(self) -> None:
        """Until the event loop runs, end at once on SIGTERM, SIGINT and SIGQUIT. Print the stacks on a fatal signal."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        for number in ENDING_SIGNALS:
            signal.signal(number, self._end_before_loading)
        signal.signal(signal.SIGUSR1, self.handle_usr1)
        signal.siginterrupt(signal.SIGUSR1, False)
        # gunicorn aborts a worker whose heartbeat stopped. This prints the stacks.
        faulthandler.enable(all_threads=True)

    def _end_before_loading(self, number: int, frame: object) -> None:
        shared().row(self.slot).state = State.EXITED
        process_exit.exit_with(0)

    def run(self) -> None:
        """Serve, then end by SystemExit, so that gunicorn runs ``worker_exit``."""
        device = devices.bind(devices.device_for(self.slot, self.plan), os.environ)
        budget = threads.release(self._threads(), os.environ)
        memory.keep_freed()
        row = shared().row(self.slot)
        self.core.attach(shared(), row, device, threads.limit_this_thread, _state_directory(), budget)
        begin_observing(self.core)
        children.set_free(
            [*(children.address_of(listener.sock) for listener in self.sockets), grpc_front.port(self.core.settings)]
        )
        try:
            status = self._serve()
        finally:
            children.end_programs()
        process_exit.exit_with(status)

    def _serve(self) -> int:
        loop = _new_loop(self.core.settings.event_loop)
        try:
            asyncio.set_event_loop(loop)
            sockets = [listener.sock for listener in self.sockets]
            grpc = self._grpc() if grpc_front.is_offered(self.core.settings) else None
            http = self._application()
            server = WorkerServer(
                self.core, http, sockets, self._limits(), self._routes(), self._terms(http, grpc), grpc
            )
            loop.run_until_complete(server.run())
        except LoadFailed as failure:
            if shared().ever_ready:
                logger.error("%s. The worker ends; its successor will try again.", failure)
            elif not shared().stopping:  # only the first worker that fails logs the reason
                shared().stopping = True
                logger.error("%s. No worker has ever been ready, so the server ends.", failure)
                process_exit.last_words(self.core.settings.termination_log, str(failure))
            return 1
        finally:
            asyncio.set_event_loop(None)
            loop.close()
        return 0

    def _grpc(self) -> "GrpcServer":
        drain = time_for_requests(self.cfg.graceful_timeout or 0) - self.core.settings.drain_delay
        return grpc_front.grpc_server(self.core, self.cfg, drain)

    def _routes(self) -> "DirectRoutes | None":
        from mpserve.http.app import find_direct

        return find_direct(self.wsgi) if self.core.settings.fast_lane else None

    def _application(self) -> Application:
        make_context = self._tls_context if self.cfg.is_ssl else None
        return Application(self.wsgi, self.cfg.forwarded_allow_ips, self.cfg.ssl_options, make_context)

    def _tls_context(self, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        context: ssl.SSLContext = self.cfg.ssl_context(self.cfg, default)  # gunicorn's hook, which a user may have set
        return context

    def _terms(self, http: Application, grpc: "GrpcServer | None") -> Terms:
        def take_up() -> None:
            tls = grpc_front.tls(self.cfg) if grpc is not None else None  # first, since nothing may change if it fails
            http.renew_tls()
            if grpc is not None:
                grpc.tls = tls

        files = [file for file in (self.cfg.certfile, self.cfg.keyfile, self.cfg.ca_certs) if file]
        return Terms(
            arbiter=self.ppid,
            backlog=self.cfg.backlog,
            max_requests=self.max_requests if self.cfg.max_requests else None,
            graceful_timeout=float(self.cfg.graceful_timeout or 0),
            beat=self.notify,
            certificates=Watch(files, take_up, CERTIFICATE),
            admin=self._admin_socket(),
        )

    def _admin_socket(self) -> socket.socket | None:
        address = self.core.settings.admin_bind
        found = (listener.sock for listener in self.sockets if address and listeners.is_at(listener.sock, address))
        return next(found, None)

    def _limits(self) -> Limits:
        cfg = self.cfg
        return Limits(
            line=cfg.limit_request_line or sys.maxsize,
            fields=cfg.limit_request_fields,
            field_size=cfg.limit_request_field_size or sys.maxsize,
            head_seconds=self.core.settings.header_timeout,
            body_pause=self.core.settings.body_timeout,
            body_rate=self.core.settings.min_body_rate,
            write_seconds=self.core.settings.write_timeout,
            idle_seconds=self.cfg.keepalive,
            body=self.core.settings.max_body_size,
        )


def _core_of(app: Any) -> ServerCore:
    # Imported here, since it imports Starlette.
    from mpserve.http.app import find_core

    core = find_core(app.wsgi())
    if core is None:
        raise HaltServer(
            f"{WORKER_CLASS} serves applications made by mpserve.asgi_app([...]), and {app.wsgi()!r} is none; "
            "middleware around one must keep it as its attribute `app`",
            gunicorn_arbiter.APP_LOAD_ERROR,
        )
    return core


@cache
def _state_directory() -> Path:
    """The directory of the desired state of models, which all workers share. Made before the first fork."""
    return own_directory()


def _free_slot(taken: set[int]) -> int:
    """The smallest free slot."""
    return min(set(range(len(taken) + 1)) - taken)


def _slots_taken() -> set[int]:
    """The slots of the workers that gunicorn knows. Not stored, so that no skipped hook can make it wrong."""
    return {worker.slot for worker in gunicorn_arbiter.workers()}


def _new_loop(name: str) -> asyncio.AbstractEventLoop:
    # nest_asyncio, which a model may have imported, works with asyncio's own loop only.
    if name == "asyncio" or (name == "auto" and "nest_asyncio" in sys.modules):
        return asyncio.new_event_loop()
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop

"""Starts the arbiter: turns options into gunicorn's settings, preloads the user's code and runs gunicorn.

Importing this module imports neither torch nor numpy nor Starlette.
"""

import atexit
import logging
import os
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gunicorn.app.base import Application
from gunicorn.util import is_ipv6

from mpserve.config.settings import Settings, ignored_variables, unused_variables
from mpserve.errors import ConfigurationError, MPServeError
from mpserve.prefork.arbiter import process_exit, torch_cuda
from mpserve.prefork.listener.listeners import are_inherited
from mpserve.telemetry.logging import dict_config, mend

if TYPE_CHECKING:
    from mpserve.serving.repository.loader import ModelSource  # which imports numpy

logger = logging.getLogger(__name__)

Models = Sequence["ModelSource"] | Callable[[Settings], Sequence["ModelSource"]]
"""What to serve: sources, or a function that finds them by the settings. An address in these settings becomes a path before."""
Wrap = Callable[[Any], Any]
"""Wraps an ASGI application in the user's application."""

SHARED_MEMORY = "/dev/shm"
FAILURE, MISTAKE = 1, 2
"""Exit statuses of a server that did not start: its code or its place failed, or what it was told to serve is wrong."""


def gunicorn_options(settings: Settings) -> dict[str, Any]:
    """The gunicorn settings that follow from our options. All others have gunicorn's defaults or the user's values."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    options: dict[str, Any] = {
        "bind": [f"{host}:{settings.http_port}", *_admin_bind(settings)],
        "workers": settings.workers,
        "worker_class": "mpserve.prefork.worker.gunicorn_worker.Worker",
        "preload_app": True,
        "timeout": settings.timeout,
        "graceful_timeout": settings.graceful_timeout,
        "max_requests": settings.max_requests,
        "max_requests_jitter": settings.max_requests_jitter,
        "keepalive": settings.timeout_keep_alive,
        "certfile": settings.ssl_certfile,
        "keyfile": settings.ssl_keyfile,
        "proc_name": "mpserve",
        # By default all servers of a user share one control socket, and it needs a thread in the arbiter.
        "control_socket_disable": True,
        "errorlog": None,  # logconfig_dict says where the lines go
        "loglevel": settings.log_level,
        "logconfig_dict": dict_config(settings),
        "wsgi_app": "mpserve.gunicorn_config:app()",
    }
    if settings.ssl_ca_certs:
        options |= {"ca_certs": settings.ssl_ca_certs, "cert_reqs": ssl.CERT_REQUIRED}
    if os.access(SHARED_MEMORY, os.W_OK):
        options["worker_tmp_dir"] = SHARED_MEMORY  # so that no heartbeat waits for a disk
    return options


def _admin_bind(settings: Settings) -> list[str]:
    """The address of ``--admin_bind`` as gunicorn writes it."""
    address = settings.admin_bind
    if address is None or settings.admin_port is None:
        return [] if address is None else [address]
    host = address.rpartition(":")[0] or settings.host
    return [f"[{host}]:{settings.admin_port}" if ":" in host else f"{host}:{settings.admin_port}"]


class ServerApplication(Application):  # type: ignore[misc]
    """gunicorn, configured by our options instead of its command line. ``GUNICORN_CMD_ARGS`` overrides them."""

    def __init__(self, settings: Settings, models: Models, wrap: Wrap | None) -> None:
        self.settings = settings
        self.models = models
        self.wrap = wrap
        super().__init__(prog="mpserve")

    def load_config(self) -> None:
        for name, value in gunicorn_options(self.settings).items():
            self.cfg.set(name, value)
        arguments = self.cfg.parser().parse_args(self.cfg.get_cmd_args_from_env())
        if arguments.config:
            self.load_config_from_file(arguments.config)
        for name, value in vars(arguments).items():
            if value is not None and name != "args":
                self.cfg.set(name, value)
        # Also if the user's settings have another address for all others.
        self.cfg.set("bind", [*self.cfg.bind, *(own for own in _admin_bind(self.settings) if own not in self.cfg.bind)])

    def load(self) -> Any:
        return make_app_or_end(self.settings, self.models, self.wrap)

    def run(self) -> None:
        """Serve until the arbiter ends without an error.

        A worker does not return from here: it would run the caller's ``finally`` blocks and close the arbiter's files.
        """
        arbiter = os.getpid()
        self._try_addresses()
        self._try_files()
        try:
            super().run()
        except SystemExit as end:
            if os.getpid() != arbiter:
                atexit._run_exitfuncs()
                os._exit(1)
            if end.code not in (0, None):
                raise

    def _try_addresses(self) -> None:
        """End before the preload if the server cannot listen. gunicorn would fail after it, with 11 messages."""
        if are_inherited():
            return
        for host, port in (address for address in self.cfg.address if isinstance(address, tuple)):
            with socket.socket(socket.AF_INET6 if is_ipv6(host) else socket.AF_INET) as candidate:
                candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    candidate.bind((host, port))
                except OSError as error:
                    options = "--admin_bind" if port == self.settings.admin_port else "--host, --http_port"
                    reason = f"cannot listen on {host} port {port} ({options}): {error.strerror}"
                    _end(self.settings, reason)

    def _try_files(self) -> None:
        """End before the preload if a TLS file is missing. gunicorn would fail with a traceback."""
        for name in ("certfile", "keyfile", "ca_certs"):
            path = getattr(self.cfg, name)
            if path and not Path(path).is_file():
                _end(self.settings, f"there is no file {path} (--ssl_{name})")


class _Preload:
    running = False


def make_app(settings: Settings, models: Models, wrap: Wrap | None = None) -> Any:
    """Preload the models, build their ASGI application and wrap it.

    Raises:
        ConfigurationError: gunicorn has a worker class that cannot serve the application, or a package is missing.
        MPServeError: a model could not be fetched, found, constructed or preloaded.
    """
    from mpserve.http.app import build_app
    from mpserve.prefork.arbiter.predictor_front import predictor
    from mpserve.serving.repository.core import ServerCore
    from mpserve.serving.repository.model_directory import taken_as_directory
    from mpserve.serving.storage.fetch import on_this_machine

    _refuse_another_worker()
    for name, value in ignored_variables().items():
        logger.warning("%s=%s is ignored: Kubernetes has set it for a Service; rename the Service,"
                       " or set enableServiceLinks: false in the pod", name, value)  # fmt: skip
    if unused := unused_variables():
        logger.warning("without effect here: %s (docs/coming-from/mlserver.md)", ", ".join(unused))
    if callable(models):
        settings = taken_as_directory(on_this_machine(settings))
    core = ServerCore(settings, partial(_found, models, settings), predictor(settings))
    _Preload.running = True
    try:
        core.preload()
    finally:
        _Preload.running = False
        mend()
    app = build_app(core)
    return app if wrap is None else wrap(app)


def _found(models: Models, settings: Settings) -> Sequence["ModelSource"]:
    return models(settings) if callable(models) else models


def _refuse_another_worker() -> None:
    """Refuse another worker class. gunicorn has loaded its class before it asks for an application.

    Without our configuration, an ASGI worker of another package is allowed: the lifespan loads the models there.
    """
    if "mpserve.prefork.worker.gunicorn_worker" in sys.modules or "gunicorn.workers.base" not in sys.modules:
        return
    if {"mpserve.gunicorn_config", "gunicorn.workers.sync", "gunicorn.workers.gthread"} & sys.modules.keys():
        raise ConfigurationError(
            "gunicorn runs another worker class than mpserve's: set no worker_class (-k) of your own, and let the "
            "configuration begin with `from mpserve.gunicorn_config import *`, or use -c python:mpserve.gunicorn_config"
        )


def make_app_or_end(settings: Settings, models: Models, wrap: Wrap | None = None) -> Any:
    """Call ``make_app``. On an error, log its message and end the process."""
    try:
        return make_app(settings, models, wrap)
    except MPServeError as error:
        if error.__cause__ is not None:  # the user's code raised it, so the log needs the traceback
            logger.error("the model's code failed", exc_info=error.__cause__)
        return _end(settings, str(error), MISTAKE if isinstance(error, ConfigurationError) else FAILURE)


def refuse_during_preload() -> None:
    """Raises ConfigurationError if a file starts a server while it is imported to find its models."""
    if _Preload.running:
        raise ConfigurationError(
            "this file starts a server while it is imported to find a model in it: put ModelServer(...).start([...]) "
            'under `if __name__ == "__main__":`, or run the file as a script'
        )


def serve(settings: Settings, models: Models, wrap: Wrap | None = None) -> None:
    """Preload the models and serve them in ``settings.workers`` workers until the server ends.

    Raises:
        SystemExit: the server ended with an error.
    """
    try:
        ServerApplication(settings, models, wrap).run()
    finally:
        torch_cuda.disarm()


def _end(settings: Settings, reason: str, status: int = FAILURE) -> NoReturn:
    logger.error("%s", process_exit.last_words(settings.termination_log, reason))
    sys.exit(status)

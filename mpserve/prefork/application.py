"""The arbiter's beginning: options become gunicorn's settings, the user's code is preloaded, gunicorn takes over.

Importing this brings neither a numerical framework nor Starlette; what serves is imported when gunicorn asks for the application.
"""

import atexit
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from gunicorn.app.base import Application

from mpserve.errors import MPServeError
from mpserve.logging import dict_config
from mpserve.serving.loader import ModelSource
from mpserve.settings import Settings

logger = logging.getLogger(__name__)

Find = Callable[[], Sequence[ModelSource]]

SHARED_MEMORY = "/dev/shm"


def gunicorn_options(settings: Settings) -> dict[str, Any]:
    """The gunicorn settings that say what our options say. Everything else is left to gunicorn's defaults and the user."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    options: dict[str, Any] = {
        "bind": [f"{host}:{settings.http_port}"],
        "workers": settings.workers,
        "worker_class": "mpserve.prefork.worker.Worker",
        "preload_app": True,
        "timeout": settings.timeout,
        "graceful_timeout": settings.graceful_timeout,
        "keepalive": settings.timeout_keep_alive,
        "certfile": settings.ssl_certfile,
        "keyfile": settings.ssl_keyfile,
        "proc_name": "mpserve",
        # One file per user by default, so that a second server takes it from the first; and a thread in the arbiter.
        "control_socket_disable": True,
        "errorlog": None,  # logconfig_dict says where the lines go
        "loglevel": settings.log_level,
        "logconfig_dict": dict_config(settings),
        "wsgi_app": "mpserve.gunicorn_config:app()",
    }
    if os.access(SHARED_MEMORY, os.W_OK):
        options["worker_tmp_dir"] = SHARED_MEMORY  # a heartbeat must never wait for a disk
    return options


class ServerApplication(Application):  # type: ignore[misc]
    """gunicorn, configured by our options instead of its command line; ``GUNICORN_CMD_ARGS`` still has the last word."""

    def __init__(self, settings: Settings, make_app: Callable[[], Any]) -> None:
        self.settings = settings
        self.make_app = make_app
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

    def load(self) -> Any:
        """The application, made in the arbiter. What fails here ends the server in words."""
        try:
            return self.make_app()
        except MPServeError as error:
            _end(str(error))
        except Exception as error:
            traceback.print_exc()
            _end(f"the model's code could not be imported: {type(error).__name__}: {error}")

    def run(self) -> None:
        """Serve until told to end.

        Returns in the arbiter, once it has ended well. A worker never comes back here: it would run the caller's
        ``finally`` blocks and close what the arbiter has opened.
        """
        arbiter = os.getpid()
        try:
            super().run()
        except SystemExit as end:
            if os.getpid() != arbiter:
                atexit._run_exitfuncs()
                os._exit(1)
            if end.code not in (0, None):
                raise


def make_app(settings: Settings, find: Find) -> Any:
    """Preload the models and build the ASGI application over them.

    Raises:
        MPServeError: a model could not be found, constructed or preloaded.
    """
    from mpserve.http.app import build_app
    from mpserve.serving.core import ServerCore

    core = ServerCore(settings, find)
    core.preload()
    return build_app(core)


def serve(settings: Settings, find: Find) -> None:
    """Preload the models that ``find`` gives and serve them with ``settings.workers`` workers, until told to end."""
    ServerApplication(settings, lambda: make_app(settings, find)).run()


def _end(reason: str) -> None:
    logger.error("%s", reason)
    sys.exit(1)

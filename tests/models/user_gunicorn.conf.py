"""A user's own gunicorn configuration: mpserve's settings, then two of his own, then every hook one may think of."""

import os
from pathlib import Path
from typing import Any

from mpserve.gunicorn_config import *  # noqa: F403

workers = 2
proc_name = "mine"


def _note(hook: str) -> None:
    with Path("hooks").open("a") as file:
        file.write(f"{hook} {os.getpid()}\n")


def on_starting(server: Any) -> None:
    _note("on_starting")


def when_ready(server: Any) -> None:
    _note("when_ready")


def pre_fork(server: Any, worker: Any) -> None:
    _note("pre_fork")


def post_fork(server: Any, worker: Any) -> None:
    _note("post_fork")


def post_worker_init(worker: Any) -> None:
    _note("post_worker_init")


def worker_exit(server: Any, worker: Any) -> None:
    _note("worker_exit")


def child_exit(server: Any, worker: Any) -> None:
    _note("child_exit")


def on_exit(server: Any) -> None:
    _note("on_exit")

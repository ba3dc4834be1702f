"""A user's own gunicorn configuration: mpserve's settings, then two of his own, then every hook one may think of."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpserve.gunicorn_config import *  # noqa: F403

workers = 2
proc_name = "mine"


def _note(hook: str) -> None:
    with Path("hooks").open("a") as file:
        file.write(f"{hook} {os.getpid()}\n")


def _of_one(hook: str) -> Callable[[Any], None]:
    return lambda process: _note(hook)


def _of_two(hook: str) -> Callable[[Any, Any], None]:
    return lambda server, worker: _note(hook)


# gunicorn counts the parameters of a hook.
globals().update({hook: _of_one(hook) for hook in ("on_starting", "when_ready", "post_worker_init", "on_exit")})
globals().update({hook: _of_two(hook) for hook in ("pre_fork", "post_fork", "worker_exit", "child_exit")})

"""How processes end: the arbiter announces a stop, the reason is written for Kubernetes, and workers skip inherited handlers.

A worker that gets SIGTERM cannot tell whether it is replaced (HUP, TTOU) or the whole server stops. gunicorn's arbiter does
not say it, and does not look at its signals while it waits for old workers after a HUP. A SIGINT that it finds together with
a SIGTERM is lost. So the arbiter's signal handlers write a stop, and whether it is urgent, to shared memory first.
"""

import atexit
import contextlib
import logging
import os
import signal
import sys
from functools import cache
from pathlib import Path
from types import FrameType

from mpserve.state.scoreboard import shared

TERMINATION_MESSAGE = 4096  # maximum bytes of a termination log that the kubelet reads


class _Process:
    forks_worker = False
    """Whether the next child of this process is a worker."""
    status = 255
    """The exit status of this worker."""


def exit_with(status: int) -> None:
    """End this worker by SystemExit, so that gunicorn runs ``worker_exit``."""
    _Process.status = status
    sys.exit(status)


def disinherit() -> None:
    """In the arbiter, just before it forks a worker: the worker will not run the exit handlers of the arbiter.

    These would, for example, remove temporary directories that other workers still use.
    """
    _register_handlers()
    _Process.forks_worker = True


@cache
def _register_handlers() -> None:
    os.register_at_fork(after_in_parent=_in_parent, after_in_child=_in_child)


def _in_parent() -> None:
    _Process.forks_worker = False


def _in_child() -> None:
    if _Process.forks_worker:
        _Process.forks_worker = False
        atexit.register(_leave)


def _leave() -> None:
    """End the process after the worker's own exit handlers and before those of the arbiter."""
    try:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(_Process.status)


def announce_stop() -> None:
    """In the arbiter, after gunicorn has set its signal handlers: make them write a stop to shared memory."""
    arbiter = os.getpid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        handle = signal.getsignal(number)

        def announcing(number: int, frame: FrameType | None, handle: object = handle) -> None:
            # A worker has this handler too until it sets its own. Its signals do not stop the server.
            if os.getpid() == arbiter:
                shared().stopping = True
                if number != signal.SIGTERM:
                    shared().hurrying = True
            if callable(handle):
                handle(number, frame)

        signal.signal(number, announcing)


def last_words(termination_log: str, reason: str) -> str:
    """Write ``reason`` where Kubernetes reads the container's termination message. Return it."""
    path = Path(termination_log)
    with contextlib.suppress(OSError):  # it is in the log as well
        if path.exists():
            path.write_bytes(reason.encode()[:TERMINATION_MESSAGE])
    return reason

"""What an end takes besides the worker's own drain: word of a stop, the reason for it, and an exit without inheritance.

A worker that gets SIGTERM cannot tell whether it is being replaced (HUP, TTOU) or the whole server stops, and gunicorn's
arbiter does not say; nor does it look at its signals while it waits for the old workers after a HUP. So the arbiter's
signal handlers leave word in shared memory, at once and before anything else.
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

TERMINATION_MESSAGE = 4096
"""Bytes of its termination log that the kubelet reads."""


class _Process:
    expects_worker = False
    """Whether the next child that this process forks is a worker."""
    status = 255
    """What this worker ends with, unless it comes to know better."""


def exit_with(status: int) -> None:
    """End this worker by SystemExit, so that gunicorn runs ``worker_exit``."""
    _Process.status = status
    sys.exit(status)


def disinherit() -> None:
    """In the arbiter, just before it forks a worker: the worker will not run the exit handlers that it inherits.

    They would remove, say, temporary directories that others still use.
    """
    _register_handlers()
    _Process.expects_worker = True


@cache
def _register_handlers() -> None:
    os.register_at_fork(after_in_parent=_in_parent, after_in_child=_in_child)


def _in_parent() -> None:
    _Process.expects_worker = False


def _in_child() -> None:
    if _Process.expects_worker:
        _Process.expects_worker = False
        atexit.register(_leave)


def _leave() -> None:
    """The last exit handler of a worker: what its own code registered has run by now, what the arbiter's did has not."""
    try:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(_Process.status)


def announce_stop() -> None:
    """In the arbiter, with its signal handlers in place: let them tell the workers when the server is to stop."""
    arbiter = os.getpid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        handle = signal.getsignal(number)

        def announcing(number: int, frame: FrameType | None, handle: object = handle) -> None:
            # A worker has this handler too, between its fork and its own: what it gets there concerns it alone.
            if os.getpid() == arbiter:
                shared().stopping = True
            if callable(handle):
                handle(number, frame)

        signal.signal(number, announcing)


def last_words(termination_log: str, reason: str) -> str:
    """Leave ``reason`` where Kubernetes shows it as the container's termination message; returns it."""
    path = Path(termination_log)
    with contextlib.suppress(OSError):  # it is in the log as well
        if path.exists():
            path.write_bytes(reason.encode()[:TERMINATION_MESSAGE])
    return reason

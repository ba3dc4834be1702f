"""What processes that a model forks have of their worker: default signals, none of the server's sockets, and its end.

A forked child has the worker's signal handlers and shares the descriptor by which signals wake the worker's event loop: a
SIGTERM to the child would end the worker. A child that is left would keep the ports, and the kernel would hand it connections.

A child gets SIGTERM when its worker is gone, however the worker ended. The worker has one end of a pipe, which nobody reads. The
kernel closes it with the worker, and tells the children. (PR_SET_PDEATHSIG counts from the end of the thread that forked.)

multiprocessing's methods ``spawn`` and ``forkserver`` start programs, which are not told. A worker that ends by itself ends them.
Those of a worker that is killed are left, as by any Python program.
"""

import contextlib
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from types import FrameType

from mpserve import descriptors

OURS: dict[signal.Signals, Callable[[int, FrameType | None], None] | signal.Handlers] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGQUIT: signal.SIG_DFL,
    signal.SIGUSR1: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}
"""The signals that a worker handles, and what a child does instead."""


PROGRAMS = b".spawn import spawn_main", b".forkserver import main"
"""Marks in the command lines of the methods ``spawn`` and ``forkserver`` (popen_spawn_posix.py, forkserver.py)."""


class _Worker:
    pid = 0
    addresses: frozenset[object] = frozenset()
    life = -1  # the end of a pipe that is open in this process alone, as long as it lives


_mask = threading.local()  # threads may fork at the same time


def set_free(addresses: Iterable[object]) -> None:
    """In a worker, once: set all processes free that are forked from now on. ``addresses``: ports, and Unix socket paths."""
    _Worker.pid, _Worker.addresses = os.getpid(), frozenset(addresses)
    unread, _Worker.life = os.pipe()
    os.close(unread)
    os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals, after_in_child=_in_child)


def end_programs() -> None:
    """End the processes of this worker that the methods ``spawn`` and ``forkserver`` have started."""
    processes = list(
        _descendants(os.getpid())
    )  # all of them first: the children of an ended process are not found any more
    for process in processes:
        with contextlib.suppress(OSError):  # it has ended
            command = Path(f"/proc/{process}/cmdline").read_bytes()
            if any(mark in command for mark in PROGRAMS):
                os.kill(process, signal.SIGTERM)


def _descendants(process: int) -> Iterator[int]:
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # its thread has ended
            for child in map(int, file.read_text().split()):
                yield child
                yield from _descendants(child)


def _hold_signals() -> None:
    # Else a signal to a child that is a moment old would wake the worker.
    _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, OURS)


def _let_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)


def _in_child() -> None:
    if _Worker.pid:  # not in a child of the child, which may have handlers of its own
        _Worker.pid = 0
        signal.set_wakeup_fd(-1)
        for number, action in OURS.items():
            signal.signal(number, action)
        _close_sockets(_Worker.addresses)
        _end_with_worker()
    _let_signals()


def _end_with_worker() -> None:
    with contextlib.suppress(OSError):  # no /proc, or no descriptor is left
        # An open file of its own, since an open file tells one process. A program that the child becomes does not have it.
        pipe = os.open(f"/proc/self/fd/{_Worker.life}", os.O_RDONLY | os.O_CLOEXEC)
        fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGTERM)
        fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_ASYNC)
    os.close(_Worker.life)  # last: if the worker is gone already, this tells the child


def _close_sockets(addresses: Collection[object]) -> None:
    """Replace the server's listeners and connections. Their numbers stay taken: objects that are left may close them."""
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for sock in descriptors.sockets():
        with contextlib.suppress(OSError):  # a family without addresses
            if address_of(sock) in addresses:
                os.dup2(nothing, sock.fileno(), inheritable=False)
    os.close(nothing)


def address_of(sock: socket.socket) -> object:
    """The port of a socket, or the path of a Unix socket; None if it has none."""
    name = sock.getsockname()
    return (name[1] if isinstance(name, tuple) else name) or None

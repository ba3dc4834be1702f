"""The listening sockets: they refuse connections until a worker is ready. Each worker opens and closes them for itself.

gunicorn listens before any worker exists, and KServe's default readiness probe is a TCP connect, so a server whose models
load after the fork would get traffic minutes too early. After ``shutdown(SHUT_RD)`` the bound listener refuses connections;
``listen()`` opens it again for all processes that share it (tried with gunicorn 27.0.1).

A Unix socket and port 0 cannot be opened again, and other processes share an inherited socket (USR2, systemd). These stay open.
"""

import os
import socket
from collections.abc import Callable, Sequence
from functools import cache

from mpserve.prefork.listener.acceptor import Acceptor

UPGRADE = "GUNICORN_PID"
"""gunicorn sets this variable in an arbiter that was started by USR2, until the old arbiter has ended."""


@cache
def are_systemds() -> bool:
    """Whether systemd has handed its sockets to this server, by the same signs that gunicorn looks for.

    gunicorn removes these variables when it takes the sockets. So the arbiter asks before, and its answer is kept.
    """
    return os.environ.get("LISTEN_FDS", "0") != "0" and os.environ.get("LISTEN_PID") == str(os.getpid())


def are_inherited() -> bool:
    """Whether another process has made the listening sockets: the old arbiter of USR2, or systemd."""
    return UPGRADE in os.environ or are_systemds()


def refuse_until_ready(listeners: Sequence[socket.socket], addresses: Sequence[object]) -> None:
    """In the arbiter, before the first fork: refuse connections.

    ``addresses`` is gunicorn's ``cfg.address``: (host, port) tuples, Unix paths, file descriptors.
    """
    if are_inherited():
        return
    chosen_ports = {address[1] for address in addresses if isinstance(address, tuple)}
    for listener in listeners:
        if listener.family in (socket.AF_INET, socket.AF_INET6) and listener.getsockname()[1] in chosen_ports:
            listener.shutdown(socket.SHUT_RD)


def is_open(listener: socket.socket) -> bool:
    """Whether the kernel accepts connections on this socket."""
    return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def is_at(listener: socket.socket, address: str) -> bool:
    """Whether the socket listens at ``HOST:PORT``, whatever the host, or at ``unix:PATH``."""
    own = listener.getsockname()
    if address.startswith("unix:"):
        return bool(own == address.removeprefix("unix:"))
    return isinstance(own, tuple) and str(own[1]) == address.rpartition(":")[2]


class Listeners:
    """The listening sockets of one worker."""

    def __init__(
        self, listeners: Sequence[socket.socket], make_acceptor: Callable[[socket.socket], Acceptor], backlog: int
    ) -> None:
        self.listeners = listeners
        self._make_acceptor = make_acceptor
        self._backlog = backlog
        self._acceptors: dict[socket.socket, Acceptor] = {}
        self._inherited = are_inherited()

    @property
    def clients_can_connect(self) -> bool:
        """Whether clients can connect although no worker of this server is ready. A loading worker then answers them.

        After USR2 the old server shares the socket and answers, so the new server need not. Clients of systemd's socket wait
        in it until a worker is ready: systemd listens before the server is started, and while the server is started again.
        """
        return not self._inherited and any(is_open(listener) for listener in self.listeners)

    def open(self, early: bool = False) -> None:
        """Accept connections. The first worker that does so opens the sockets for all. ``early``: only those that are open."""
        for listener in self.listeners:
            if listener not in self._acceptors and not (early and not is_open(listener)):
                self._acceptors[listener] = acceptor = self._make_acceptor(listener)
                acceptor.open(self._backlog)

    def pause(self) -> None:
        """Accept the connections that the kernel has queued, then no more until ``open``."""
        for acceptor in self._acceptors.values():
            acceptor.close()
        self._acceptors = {}

    def close(self) -> None:
        """Accept no more. The address is free when every process that shares it has closed it."""
        self.pause()
        for listener in self.listeners:
            listener.close()

"""The listening sockets: shut until the first worker is ready, then opened and shut by each worker for itself.

gunicorn listens before any worker exists, and KServe's default readiness probe is a TCP connect, so a server whose
models load after the fork would get traffic minutes too early. ``shutdown(SHUT_RD)`` on the bound listener makes
connects be refused; ``listen()`` opens it again for all processes that share it (tried with gunicorn 27.0.1).

A Unix socket and port 0 cannot be shut and reopened, and an inherited socket (USR2, systemd) belongs to others too.
These stay open.
"""

import os
import socket
from collections.abc import Callable, Sequence

from mpserve.prefork.listener.acceptor import Acceptor

SYSTEMD = "LISTEN_FDS"
UPGRADE = "GUNICORN_PID"
"""Set by gunicorn in an arbiter that was started by USR2, until the old one has ended."""


def refuse_until_ready(listeners: Sequence[socket.socket], addresses: Sequence[object]) -> None:
    """In the arbiter, before the first fork: refuse connections for now.

    ``addresses`` is gunicorn's ``cfg.address``: (host, port) tuples, Unix paths, file descriptors.
    """
    if UPGRADE in os.environ or SYSTEMD in os.environ:
        return
    chosen_ports = {address[1] for address in addresses if isinstance(address, tuple)}
    for listener in listeners:
        if listener.family in (socket.AF_INET, socket.AF_INET6) and listener.getsockname()[1] in chosen_ports:
            listener.shutdown(socket.SHUT_RD)


def is_open(listener: socket.socket) -> bool:
    """Whether a client that connects now is taken in by the kernel."""
    return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


class Listeners:
    """This worker's side of the listening sockets: whether it accepts."""

    def __init__(
        self, listeners: Sequence[socket.socket], make_gate: Callable[[socket.socket], Acceptor], backlog: int
    ) -> None:
        self.listeners = listeners
        self._make_gate = make_gate
        self._backlog = backlog
        self._gates: list[Acceptor] = []
        self._inherited = UPGRADE in os.environ

    @property
    def lets_clients_wait(self) -> bool:
        """Whether clients can connect although no worker of this server is ready, so that one had better answer them.

        After USR2 the old server shares the socket and answers, so its successor need not.
        """
        return not self._inherited and any(is_open(listener) for listener in self.listeners)

    def open(self) -> None:
        """Accept connections. For the first worker that does, this opens the sockets to the world."""
        if self._gates:
            return
        self._gates = [self._make_gate(listener) for listener in self.listeners]
        for gate in self._gates:
            gate.open(self._backlog)

    def shut(self) -> None:
        """Accept no more, for now. What the kernel has queued by then is taken in first."""
        for gate in self._gates:
            gate.shut()
        self._gates = []

    def leave(self) -> None:
        """Accept no more, for ever. The address is free once every process that shares it has left."""
        self.shut()
        for listener in self.listeners:
            listener.close()

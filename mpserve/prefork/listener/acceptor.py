"""Accepts connections on one listening socket that all workers share, or leaves them to a worker with less load.

asyncio and uvloop accept all queued connections at each wake-up. An ``Acceptor`` accepts one connection at a time, so that each
decision knows the last one. While another READY worker has less load, the acceptor looks again every millisecond, but not
for ever: the other worker may be held up, for example by a model that keeps the GIL.
"""

import asyncio
import errno
import logging
import math
import resource
import socket
import ssl
from collections.abc import Callable
from typing import NamedTuple

from mpserve.prefork.listener.rebalancer import Rebalancer, Turnover, load_of, ready_others
from mpserve.state.scoreboard import Row, Scoreboard

logger = logging.getLogger(__name__)

PAUSE = 0.001  # seconds between two looks at a connection that is left to another worker
MAX_LOOKS = 20  # looks after which the worker accepts the connection itself
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
RESERVED_FILES = 128  # open files that a worker keeps for other things than connections
EXHAUSTED_PAUSE = 1.0
"""Seconds without accepting when the process has no resources for a connection, as in asyncio's own server."""
FULL_PAUSE = 0.1  # seconds between two looks at a connection for which there is no room
TELL_FULL = 10.0  # seconds between two warnings of that: a flood of connections fills each room that is made
MAX_ACCEPTS = 64  # connections that a worker accepts at one wake-up if it is the only READY worker


class ClientTerms(NamedTuple):
    """How an acceptor treats clients.

    Attributes:
        tls: returns the TLS context of a new connection, or None.
        handshake_seconds: seconds in which a TLS handshake must be complete.
        most: maximum connections of the worker.
        make_room: closes some idle connections, if there are any. Called when there are ``most`` connections.
    """

    tls: Callable[[], ssl.SSLContext | None]
    handshake_seconds: float
    most: int
    make_room: Callable[[], object]


def most_connections(wanted: int) -> int:
    """The connections that a worker may have, so that files are left for models, metrics and logs."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files == resource.RLIM_INFINITY else max(min(wanted, files - RESERVED_FILES), 1)


class Acceptor:
    """Accepts on ``listener``, which the caller closes.

    The acceptor counts ``row.connections`` up at the accept, since a TLS connection reaches its protocol only after the
    handshake. From then on the protocol counts.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        terms: ClientTerms,
        board: Scoreboard,
        row: Row,
        rebalancer: Rebalancer,
    ) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self._terms = terms
        self._board = board
        self._row = row
        self._rebalancer = rebalancer
        self._loop = asyncio.get_running_loop()
        self._turnover = Turnover(self._loop.time())
        self._handshakes: set[asyncio.Task[object]] = set()
        self._is_open = False
        self._told_full = -math.inf
        self._looks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._slow: dict[int, tuple[int, int]] = {}
        """By slot: age and connections of workers that accepted nothing in time. Nobody waits for them until these change."""

    def open(self, backlog: int) -> None:
        """Listen. This also opens a listener that refuses connections (see ``listeners``), for all processes."""
        self._listener.setblocking(False)
        self._listener.listen(backlog)
        self._is_open = True
        self._watch()

    def close(self) -> None:
        """Accept all connections that the kernel has queued, then no more."""
        self._is_open = False
        self._unwatch()
        while self._accept():
            pass

    def _watch(self) -> None:
        self._timer = None
        self._loop.add_reader(self._listener.fileno(), self._look)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop.remove_reader(self._listener.fileno())

    def _pause(self, seconds: float) -> None:
        self._unwatch()
        self._timer = self._loop.call_later(seconds, self._watch)

    def _look(self) -> None:
        """Accept a waiting connection, or leave it to another worker for a moment."""
        others = ready_others(self._board, self._row)
        self._turnover.look(self._loop.time(), self._row.connections)
        lighter = [] if self._turnover.is_brisk else self._lighter(others)
        if lighter and self._looks < MAX_LOOKS:
            self._looks += 1
            self._pause(PAUSE)
            return
        if self._is_full():
            return
        self._slow |= {row.slot: (row.age, row.connections) for row in lighter}
        self._looks = 0
        for _ in range(1 if others else min(MAX_ACCEPTS, self._terms.most - self._row.connections)):
            if not self._accept():
                return

    def _is_full(self) -> bool:
        """Whether the worker has all connections that it may have. Then the next one waits, perhaps for another worker."""
        terms, now = self._terms, self._loop.time()
        if self._row.connections < terms.most:
            return False
        if now - self._told_full >= TELL_FULL:
            self._told_full = now
            logger.warning("this worker has all %d connections of --max_connections: it closes idle ones", terms.most)
        terms.make_room()
        self._pause(FULL_PAUSE)
        return True

    def _lighter(self, others: list[Row]) -> list[Row]:
        """The workers with less load. While this worker gives connections up, these are all other workers."""
        own = load_of(self._row)
        return [
            row
            for row in others
            if (self._rebalancer.due or load_of(row) < own)
            and self._slow.get(row.slot) != (row.age, row.connections)
            and row.is_live()
        ]

    def _accept(self) -> bool:
        """Accept a connection. Return whether there was one."""
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            logger.error("cannot accept connections: %s", error)
            if self._is_open:
                self._pause(EXHAUSTED_PAUSE)
            return False
        client.setblocking(False)
        self._row.connections += 1
        self._turnover.count()
        task: asyncio.Task[object] = self._loop.create_task(self._connect(client))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)
        return True

    async def _connect(self, client: socket.socket) -> None:
        tls = self._terms.tls()
        seconds = None if tls is None else self._terms.handshake_seconds
        try:
            await self._loop.connect_accepted_socket(
                self._make_protocol, client, ssl=tls, ssl_handshake_timeout=seconds
            )
        except OSError as error:  # the client is gone, or the TLS handshake failed (ssl.SSLError is an OSError)
            logger.debug("a connection failed before its first byte: %s", error)
        finally:
            self._row.connections -= 1

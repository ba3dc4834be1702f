"""One worker's ear on one listening socket that all workers share: it accepts, or leaves a connection to a lighter worker.

asyncio and uvloop accept all that is queued at each wake-up. Here it is one at a time, so that the next decision knows of
it, and only if no other READY worker holds less. Who leaves a connection looks again a millisecond later, but not for ever:
a lighter worker may be held up, by a model that keeps the GIL for example.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable

from mpserve.prefork.listener.rebalancer import Rebalancer, Turnover, load_of, ready_others
from mpserve.state.scoreboard import Row, Scoreboard

logger = logging.getLogger(__name__)

PAUSE = 0.001
"""Seconds until it looks again for what it has left to a lighter worker."""
PATIENCE = 20
"""Looks after which it takes the connection itself."""
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
EXHAUSTED_PAUSE = 1.0
"""Seconds without accepting when there are no resources for it, as asyncio's own server makes it."""
AT_ONCE = 64
"""Connections that a worker accepts at one wake-up where there is nobody to share them with."""


class Acceptor:
    """Accepts on ``listener``, which stays the caller's. ``open`` before anything else.

    ``row.connections`` is counted up here at the accept, since a TLS connection reaches its protocol only after the
    handshake; the protocol counts for itself from then on.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        board: Scoreboard,
        row: Row,
        rebalancer: Rebalancer,
    ) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self._tls = tls
        self._board = board
        self._row = row
        self._shedding = rebalancer
        self._loop = asyncio.get_running_loop()
        self._turnover = Turnover(self._loop.time())
        self._opening: set[asyncio.Task[object]] = set()
        self._is_open = False
        self._looks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._passed_over: dict[int, tuple[int, int]] = {}
        """Workers that took nothing in all the time that they were given, by slot: age and connections at that moment.
        None waits for them again until they hold something else."""

    def open(self, backlog: int) -> None:
        """Listen. This also opens a listener that was shut (see the module ``door``), for all processes."""
        self._listener.setblocking(False)
        self._listener.listen(backlog)
        self._is_open = True
        self._watch()

    def shut(self) -> None:
        """Take in all that the kernel has queued, then accept no more."""
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
        """A connection waits: take it, or leave it to another for a moment."""
        others = ready_others(self._board, self._row)
        self._turnover.look(self._loop.time(), self._row.connections)
        lighter = [] if self._turnover.is_brisk else self._lighter(others)
        if lighter and self._looks < PATIENCE:
            self._looks += 1
            return self._pause(PAUSE)
        self._passed_over |= {row.slot: (row.age, row.connections) for row in lighter}
        self._looks = 0
        for _ in range(1 if others else AT_ONCE):
            if not self._accept():
                return None
        return None

    def _lighter(self, others: list[Row]) -> list[Row]:
        """Those to whom this worker leaves a connection; while it gives connections up, to everyone."""
        mine = load_of(self._row)
        return [
            row
            for row in others
            if (self._shedding.due or load_of(row) < mine)
            and self._passed_over.get(row.slot) != (row.age, row.connections)
            and row.is_live()
        ]

    def _accept(self) -> bool:
        """Whether a connection was there and has been taken."""
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
        self._turnover.take()
        task: asyncio.Task[object] = self._loop.create_task(self._connect(client))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return True

    async def _connect(self, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, client, ssl=self._tls)
        except OSError as error:  # the client has gone, or its handshake failed (ssl.SSLError is one)
            logger.debug("a connection failed before its first byte: %s", error)
        finally:
            self._row.connections -= 1

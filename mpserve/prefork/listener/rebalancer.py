"""How connections are spread over the workers: decisions that see only the numbers on the scoreboard.

The kernel wakes every idle worker for a new connection, and the first worker would accept all that are queued. So a worker
leaves a new connection to a worker with less load. A worker that has had far more load for a while makes clients connect
again; otherwise the successor of a dead worker would stay idle, since the others keep all connections.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from mpserve.state.scoreboard import Row, Scoreboard, State

TOLERANCE = 4
"""A worker keeps its connections if it has at most this many more connections, or requests, than another worker."""
MIN_LOOKS = 10
"""Looks, ten each second, that must find a surplus before connections are given up. A short burst evens out by itself."""
MAX_DUE = 16
"""Maximum connections given up between two looks: each costs its client a connect, and with TLS a handshake."""
WINDOW = 0.1  # seconds over which a worker counts the connections that come and go
MIN_ENDED = 10
"""If more connections than this end in a window, and more than are open, connections are too short to be spread."""


class Load(NamedTuple):
    """The load of a worker. Loads are compared by connections, then by requests in flight."""

    connections: int
    in_flight: int


def load_of(row: Row) -> Load:
    return Load(row.connections, row.in_flight)


def ready_others(board: Scoreboard, own: Row) -> list[Row]:
    """The rows of the other workers that say READY. The row of a killed worker says so until its slot is given again."""
    return [row for row in board.used() if row.state == State.READY and row is not own]


def surplus(own: Load, others: Sequence[Load], begun: bool) -> int:
    """How many connections a worker has above the mean, if it has far more than another worker or has ``begun``.

    Requests in flight decide first, since clients differ in how much they ask. By connections, a worker gives way only to
    workers that do not have far more requests; otherwise the two rules would move the same clients to and fro.
    """
    if not others:
        return 0
    everyone = (own, *others)
    requests = _excess([load.in_flight for load in everyone], [load.in_flight for load in others], begun)
    takers = [load.connections for load in others if load.in_flight - own.in_flight <= TOLERANCE]
    return requests or _excess([load.connections for load in everyone], takers, begun)


def _excess(everyone: Sequence[int], takers: Sequence[int], begun: bool) -> int:
    """How far the first of ``everyone`` is above the mean. 0 if none of ``takers`` has far less."""
    own, mean = everyone[0], sum(everyone) / len(everyone)
    far = 1.0 if begun else max(TOLERANCE, mean / 2)
    return max(0, math.floor(own - mean)) if takers and own - min(takers) > far else 0


class Rebalancer:
    """Gives up connections of one worker, a few at a time, until the worker has about the mean."""

    def __init__(self) -> None:
        self.due = 0  # how many of the next requests are to be the last on their connections
        self._begun = False
        self._looks = 0  # looks that found a surplus, less looks that found none

    def look(self, own: Load, others: Sequence[Load]) -> None:
        """Decide how many connections are due. Call this ten times a second."""
        excess = surplus(own, others, self._begun)
        self._looks = min(self._looks + 1, MIN_LOOKS) if excess else max(self._looks - 1, 0)
        self._begun = self._looks == MIN_LOOKS or (self._begun and self._looks > 0)
        self.due = min(MAX_DUE, math.ceil(excess / 8)) if self._begun else 0

    def takes_one(self) -> bool:
        """Whether the next request is to be the last on its connection."""
        if not self.due:
            return False
        self.due -= 1
        return True


class Turnover:
    """Measures how fast connections end. The kernel spreads short connections: a busy worker does not accept."""

    def __init__(self, now: float) -> None:
        self.is_brisk = False  # whether connections end so fast that spreading them costs more than it gains
        self._since = now
        self._open = 0
        self._accepted = 0

    def count(self) -> None:
        """Count a connection that was accepted."""
        self._accepted += 1

    def look(self, now: float, open: int) -> None:
        """Update ``is_brisk`` once a window has passed. ``open``: number of open connections."""
        elapsed = now - self._since
        if elapsed < WINDOW:
            return
        ended = (self._accepted - (open - self._open)) * WINDOW / elapsed
        self.is_brisk = ended > max(MIN_ENDED, open)
        self._since, self._open, self._accepted = now, open, 0

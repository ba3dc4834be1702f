"""How connections are spread over the workers: the decisions, which see only the numbers on the scoreboard.

The kernel wakes every idle worker for a new connection, and the first one takes all that are queued. So a worker leaves a
new connection to one that holds less, and one that has held far more for a while makes clients connect anew. Without
the latter, the successor of a dead worker would stay idle, since the others keep all connections.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from mpserve.state.scoreboard import Row, Scoreboard, State

FEW = 4
"""Who exceeds another by no more connections, or requests, than these keeps them."""

LASTING = 10
"""Looks, one each tenth of a second, that must find far too many: a short burst evens out by itself."""

AT_ONCE = 16
"""Connections given up between two looks, at most: each costs its client a connect, with TLS a handshake."""


WINDOW = 0.1
"""Seconds over which a worker counts the connections that come and go."""

BRIEF = 10
"""Connections that end within a window, at least, and more than are open: then they are too short-lived to be spread."""


class Load(NamedTuple):
    """What a worker holds. The lighter of two has fewer connections, or as many and fewer requests to answer."""

    connections: int
    in_flight: int


def load_of(row: Row) -> Load:
    return Load(row.connections, row.in_flight)


def ready_others(board: Scoreboard, own: Row) -> list[Row]:
    """The other workers that say that they are READY; one that was killed says so until its slot is given again."""
    return [row for row in board.used() if row.state == State.READY and row is not own]


def surplus(mine: Load, others: Sequence[Load], begun: bool) -> int:
    """How many connections a worker has above the mean, if it has far more than another, or if it has ``begun``.

    Requests in flight decide first, since clients differ in how much they ask. Connections are given up only for the
    sake of a worker that does not answer far more requests than this one; else the two reasons would move the same
    clients to and fro.
    """
    if not others:
        return 0
    everyone = (mine, *others)
    requests = _excess([load.in_flight for load in everyone], [load.in_flight for load in others], begun)
    takers = [load.connections for load in others if load.in_flight - mine.in_flight <= FEW]
    return requests or _excess([load.connections for load in everyone], takers, begun)


def _excess(everyone: Sequence[int], takers: Sequence[int], begun: bool) -> int:
    """By how much the first of ``everyone`` is above the mean; 0 if none of ``takers`` has far less."""
    mine, mean = everyone[0], sum(everyone) / len(everyone)
    far = 1.0 if begun else max(FEW, mean / 2)
    return max(0, math.floor(mine - mean)) if takers and mine - min(takers) > far else 0


class Rebalancer:
    """The connections that one worker gives up, a few at a time, until it holds about the mean."""

    def __init__(self) -> None:
        self.due = 0
        """How many of the next requests are to be the last on their connections."""
        self._begun = False
        self._found = 0
        """Looks that found too many, less those that did not."""

    def look(self, mine: Load, others: Sequence[Load]) -> None:
        """Decide anew; to be called ten times a second."""
        over = surplus(mine, others, self._begun)
        self._found = min(self._found + 1, LASTING) if over else max(self._found - 1, 0)
        self._begun = self._found == LASTING or (self._begun and self._found > 0)
        self.due = min(AT_ONCE, math.ceil(over / 8)) if self._begun else 0

    def takes_one(self) -> bool:
        """Whether the request that has come is to be the last on its connection."""
        if not self.due:
            return False
        self.due -= 1
        return True


class Turnover:
    """Whether connections end so soon that to spread them would cost more than it gains.

    Clients that open one for each request are spread by the kernel: a worker that is busy does not accept.
    """

    def __init__(self, now: float) -> None:
        self.is_brisk = False
        self._since = now
        self._held = 0
        self._taken = 0

    def take(self) -> None:
        self._taken += 1

    def look(self, now: float, held: int) -> None:
        """Decide anew once a window has passed; ``held`` connections are open."""
        elapsed = now - self._since
        if elapsed < WINDOW:
            return
        ended = (self._taken - (held - self._held)) * WINDOW / elapsed
        self.is_brisk = ended > max(BRIEF, held)
        self._since, self._held, self._taken = now, held, 0

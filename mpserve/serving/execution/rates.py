"""Limits of requests in flight and of requests a second, for each caller and each version of a model, over all workers together.

A rate is kept by one moment in shared memory, at which the next request is due (the generic cell rate algorithm, ITU-T I.371).
Each request moves it on by the time that the rate allows for one. It may be one second ahead, so a second's requests may come at
once.

A server without these limits has no ``Quota``, and its requests never come here.
"""

import hashlib
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from mpserve.config.settings import Settings
from mpserve.errors import TooManyRequests, shown
from mpserve.serving.models.declared_number import declared_count, declared_number
from mpserve.serving.models.model import Model
from mpserve.state.scoreboard import Row, Scoreboard
from mpserve.state.usage import DUE, IN_FLIGHT, KEY, USED

SECOND = 1_000_000_000
KEPT = 1024  # quotas of callers that a worker remembers


class Limit(NamedTuple):
    """The most requests in flight, and a second; infinite: any number."""

    in_flight: float
    rate: float

    @property
    def is_set(self) -> bool:
        return self != UNLIMITED


UNLIMITED = Limit(math.inf, math.inf)


def limit_of(model: Model, settings: Settings) -> Limit:
    """The limit that the model declares, or else the options. Raises ConfigurationError for an impossible limit."""
    most = declared_count(model, settings, "max_in_flight")
    rate = declared_number(model, settings, "max_rate", "requests a second, 0 or more")
    return Limit(most or math.inf, rate or math.inf)


class Quota:
    """The limit of one subject. ``words`` names it in errors, and ``kind`` in metrics."""

    def __init__(self, kind: str, name: str, words: str, limit: Limit, board: Scoreboard, row: Row) -> None:
        digest = hashlib.blake2b(f"{kind} {name}".encode(errors="replace"), digest_size=8).digest()
        self.kind = kind
        self._key = int.from_bytes(digest, "big") >> 1 or 1
        self._words = words
        self._limit = limit
        self._board, self._row = board, row
        self._usage = board.usage
        self._at = self._usage.place_of(self._key)
        self._step = int(SECOND / limit.rate) if limit.rate < math.inf else 0
        self._ahead = max(SECOND - self._step, 0)

    def check(self) -> None:
        """Raise TooManyRequests if one more request would be too many."""
        cells, limit = self._usage.cells, self._limit
        if cells[self._at + KEY] != self._key:  # not used for long, so that another subject has got the place
            self._at = self._usage.place_of(self._key)
        if limit.in_flight < math.inf and self._in_flight() >= limit.in_flight:
            message = f"{self._words} has reached its limit of requests in flight: {limit.in_flight:g}"
            raise TooManyRequests(message, 1, f"{self.kind}_in_flight")
        early = cells[self._at + DUE] - self._ahead - time.monotonic_ns() if self._step else 0
        if early > 0:
            message = f"{self._words} has reached its limit of requests a second: {limit.rate:g}"
            raise TooManyRequests(message, math.ceil(early / SECOND), f"{self.kind}_rate")

    def take(self) -> int:
        """Count a request that begins. Returns where ``leave`` is to count its end."""
        cells, at, now = self._usage.cells, self._at, time.monotonic_ns()
        cells[at + USED] = now
        if self._step:
            cells[at + DUE] = max(cells[at + DUE], now) + self._step
        own = at + IN_FLIGHT + self._row.slot
        cells[own] += 1
        return own

    def _in_flight(self) -> int:
        cells, first = self._usage.cells, self._at + IN_FLIGHT
        others = (row for row in self._board.used() if cells[first + row.slot] and row is not self._row)
        # A worker that was killed has no requests any more.
        return cells[first + self._row.slot] + sum(cells[first + row.slot] for row in others if row.is_live())


class Rates:
    """The quotas of callers and models, as one worker sees them."""

    def __init__(self, settings: Settings, board: Scoreboard, row: Row) -> None:
        self._settings = settings
        self._board, self._row = board, row
        of_callers = settings.max_in_flight_per_caller or math.inf, settings.max_rate_per_caller or math.inf
        self.of_callers = Limit(*of_callers)
        self._callers: dict[str, Quota] = {}
        board.usage.begin(row.slot)

    def of_model(self, model: Model, label: str) -> Quota | None:
        """The quota of this version of a model, if it has a limit. Raises ConfigurationError as ``limit_of``."""
        limit = limit_of(model, self._settings)
        name = f"{model.name}@{model.version}"
        return Quota("model", name, f"Model {label}", limit, self._board, self._row) if limit.is_set else None

    def of_caller(self, caller: str) -> Quota:
        """The quota of a caller, all of which have the same limit."""
        quota = self._callers.get(caller)
        if quota is None:
            if len(self._callers) >= KEPT:
                self._callers.clear()  # what they use is in shared memory
            words = f"the caller {shown(caller)}"
            quota = Quota("caller", caller, words, self.of_callers, self._board, self._row)
            self._callers[caller] = quota
        return quota

    def leave(self, places: Sequence[int]) -> None:
        """Count the end of a request, by what ``Quota.take`` has returned."""
        for place in places:
            self._board.usage.cells[place] -= 1

"""Finds clients that are too slow: that send a body, or take an answer, at less than a least rate. How long a close lingers."""

import math

from mpserve.http.server.interface import Limits

LINGER = 1.0
"""Seconds for which bytes after the last answer are awaited, read and dropped. Closing at once would reset the connection, and
the client would lose the answer."""
MAX_LINGER = 30.0  # seconds after which bytes are no longer dropped, whether the client has ended its upload or not
NOT_YET = -math.inf  # the deadline of a connection that is idle since the last ``expire``, which sets its deadline


class BodyPace:
    """The time that a body may take: it may pause for ``body_pause``, and comes at ``body_rate`` on the whole."""

    __slots__ = ("_limits", "end", "is_slow")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.end = math.inf  # the time at which the bytes so far have taken too long
        self.is_slow = False  # whether the body is late by its rate, not by a pause

    def begin(self, now: float) -> None:
        """Give the body ``body_pause`` seconds, from now on, before its rate counts."""
        self.end = now + self._limits.body_pause if self._limits.body_rate else math.inf

    def deadline(self, now: float, size: int) -> float:
        """The time of the next bytes, after so many have come. They give the body as long as they take at the least rate."""
        pause_ends = now + self._limits.body_pause
        self.end += size / (self._limits.body_rate or 1)
        self.is_slow = self.end < pause_ends
        return min(pause_ends, self.end)

    def postpone(self, now: float) -> None:
        """Begin again, since nothing was read."""
        self.end = max(self.end, now + self._limits.body_pause)


class AnswerPace:
    """Watches the bytes that a client has still to take. Further answers are no progress."""

    __slots__ = ("_end", "_seconds", "_unsent")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._unsent = 0
        self._end = math.inf

    def took_all(self) -> None:
        self._unsent = 0

    def is_late(self, unsent: int, now: float) -> bool:
        """Whether the client has taken nothing for ``seconds``, of ``unsent`` bytes now."""
        if not self._unsent or unsent < self._unsent:
            self._end = now + self._seconds
        self._unsent = unsent
        return unsent > 0 and now >= self._end

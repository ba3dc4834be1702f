"""Who is let in to a model, and for how long: its bounded queue, the deadline of each request, and what is shed at the door.

A request that cannot be answered in time is refused before work is done for it, since under overload the time that such ones
take is missing for those that could be answered. It knows no front end, and asks nothing of a request that has no deadline.
"""

import asyncio
import math
from typing import Any, NamedTuple

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError, DeadlineExceeded, InvalidInput, MPServeError, Overloaded
from mpserve.serving.execution.deadline import Deadline, Expiring
from mpserve.serving.models.model import Model
from mpserve.serving.models.spans import INFER, INPUT, NANO, OUTPUT
from mpserve.telemetry.metrics import metrics

MICRO = 1e-6
KNOWN = 16
"""Requests that must have been answered before any is refused for what they took: the first ones of a model are slow. They are
the weight of the past in the mean too, which follows a change within some tens of requests."""

HEADROOM = 0.8
"""Of a request's time that may be spoken for when it comes, since some of those before it take longer than the mean."""
LAST_CALL = 1.5
"""Times the mean that a request must still have when the model begins with it. Under overload every request that is begun has
waited for almost all its time, and one that is late when it is done has taken the place of one that would not have been:
without this, and without headroom, 58 % of the capacity were answered in time (benchmarks/overload.py)."""

TIMEOUT = "timeout"  # the request parameter, in microseconds (Triton, ``extension_schedule_policy.md``)


class Policy(NamedTuple):
    """Requests that may wait for a model in a worker, and seconds in which each must be answered; infinite: no limit."""

    queue: float
    seconds: float


def policy(model: Model, settings: Settings) -> Policy:
    """What a model declares, or else the options. Raises ConfigurationError if the model declares what cannot be."""
    queue: Any = settings.max_queue_size if model.max_queue_size is None else model.max_queue_size
    seconds: Any = settings.request_timeout if model.request_timeout is None else model.request_timeout
    if type(queue) is not int or queue < 0:
        raise ConfigurationError(f"model {model.name}: max_queue_size is {queue!r}, expected a number of 0 or more")
    if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
        raise ConfigurationError(f"model {model.name}: request_timeout is {seconds!r}, expected seconds of 0 or more")
    return Policy(queue or math.inf, seconds or math.inf)


class InFlight:
    """Counts those who are within it, at the same time or one in another.

    Who comes adds one to ``count``, and who leaves takes it away, and sets ``idle``, if it is there and nobody is left.
    """

    __slots__ = ("_given_up", "count", "idle")

    def __init__(self) -> None:
        self.count = 0
        self.idle: asyncio.Event | None = None
        self._given_up = False

    async def until_idle(self) -> None:
        """Wait until there is nobody within, or ``give_up``."""
        if self.count and not self._given_up:
            if self.idle is None or self.idle.is_set():
                self.idle = asyncio.Event()
            await self.idle.wait()

    def give_up(self) -> None:
        """Let nobody wait any longer."""
        self._given_up = True
        if self.idle is not None:
            self.idle.set()


class Mean:
    """A mean that forgets. ``known`` is 0 as long as it is of fewer than ``KNOWN`` values."""

    __slots__ = ("_count", "_value", "known")

    def __init__(self) -> None:
        self.known = 0.0
        self._value = 0.0
        self._count = 0

    def add(self, value: float) -> None:
        if self._count < KNOWN:
            self._count += 1
        self._value += (value - self._value) / self._count
        if self._count == KNOWN:
            self.known = self._value


class Admission:
    """The door of one model in a worker.

    Args:
        model: its name, for what is counted.
        label: what it is called in errors.
        slots: requests that it can answer at once; infinite for one that has no queue.
        policy: what it is held to.
        hold: counts those who are within.
    """

    def __init__(self, model: str, label: str, slots: float, policy: Policy, hold: InFlight) -> None:
        self.model = model
        self.label = label
        self.slots = slots
        self.policy = policy
        self.service = Mean()
        """Seconds of the model's own time that a request takes, one of those that are answered at once."""
        self._passage = Mean()  # seconds that a request takes for each that is before it, whatever they are spent on
        self.is_limited = policy != Policy(math.inf, math.inf)  # whether there is a queue or a time for every request
        self.learns = self.is_limited  # whether anybody wants to know how long requests take
        self._hold = hold
        self._deadlines: set[Deadline] = set()

    @property
    def waiting(self) -> int:
        """Requests that are in the queue."""
        return int(max(self._hold.count - self.slots, 0))

    @property
    def pace(self) -> float:
        """Seconds per request in which a model that is never idle gets through its queue; 0: not known yet."""
        return max(self.service.known / self.slots, self._passage.known)

    def admit(self, within: float, others: int) -> float:
        """The seconds that a request has, the least of what the policy and ``within`` say; infinite: any number.

        ``others``: the requests that are with the model besides this one.
        Raises Overloaded if the queue is full, or too long for the request to be answered in time.
        """
        seconds = min(self.policy.seconds, within)
        if seconds != math.inf:
            self.learns = True
        obstacle = self._obstacle(seconds, others)
        if obstacle is None:
            return seconds
        reason, words = obstacle
        metrics().count_refusal(self.model, reason)
        # By then the model will have got through what it has now.
        retry_after = max(math.ceil(others * self.pace), 1)
        raise Overloaded(f"Model {self.label} is overloaded: {words}.", retry_after)

    def _obstacle(self, seconds: float, inside: int) -> tuple[str, str] | None:
        """Why a request with so much time cannot be admitted: as it is counted, and in words."""
        if inside < self.slots:
            return None
        if inside - self.slots >= self.policy.queue:
            return "queue_full", f"{self.waiting} requests wait already"
        # At worst those that run have just begun, and this one takes as long as they.
        expected = (inside + self.slots) * self.pace
        if expected > seconds * HEADROOM:
            return "deadline", f"it would take {expected:.3g} s, and the request has {seconds:.3g} s"
        return None

    def deadline(self, request: Expiring, seconds: float) -> Deadline:
        """The deadline of a request, to be closed when the request is over."""
        return Deadline(seconds, self.service.known * LAST_CALL, request, self.late, self._deadlines)

    def late(self, seconds: float) -> DeadlineExceeded:
        """What a request is told, and counted, that was not answered in its ``seconds``."""
        metrics().count_refusal(self.model, "expired")
        return DeadlineExceeded(f"Model {self.label} did not answer within {seconds:.3g} s.")

    def abandon(self, error: MPServeError) -> None:
        """End all requests that have a deadline with ``error``: the model will not answer any more."""
        for deadline in list(self._deadlines):
            deadline.end(error)

    def note(self, request: Expiring, place: int) -> None:
        """Learn from a request that was answered, and was in this place among those within when it came."""
        durations = request.durations
        self.service.add((durations[INPUT] + durations[INFER] + durations[OUTPUT]) * NANO)
        self._passage.add((request.mark - request.arrived) * NANO / (place - 1 + self.slots))


def asked_seconds(timeout: object) -> float:
    """The seconds that the request parameter ``timeout`` gives; infinite: any number.
    Raises InvalidInput if the parameter is no time.
    """
    if type(timeout) is not int or timeout < 0:
        raise InvalidInput(f"parameter timeout is {timeout!r}, expected a whole number of microseconds, 0 or more")
    return timeout * MICRO or math.inf  # 0 is "not given" (Triton)

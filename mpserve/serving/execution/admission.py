"""Admission to a model: its bounded queue, the deadline of each request, and the requests that are refused at once.

A request that cannot be answered in time is refused before any work is done for it: under overload it would take the time of
requests that can be answered. This module knows no front end. A request without a deadline costs nothing.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from mpserve.config.settings import Settings
from mpserve.errors import DeadlineExceeded, InvalidInput, MPServeError, Overloaded, TooManyRequests
from mpserve.serving.execution.rates import Quota, Rates
from mpserve.serving.execution.scheduled import Scheduled
from mpserve.serving.models.declared_number import declared_count, declared_number
from mpserve.serving.models.model import Model
from mpserve.serving.models.spans import INFER, INPUT, NANO, OUTPUT, Timed
from mpserve.telemetry.metrics import metrics

MICRO = 1e-6
KNOWN = 16
"""Answered requests before the mean is used: the first requests of a model are slow. Also the weight of the past in the mean."""

HEADROOM = 0.8
"""The share of a request's time that the queue before the request may take, since some requests take longer than the mean."""
LAST_CALL = 1.5
"""A request that has less than this many means left is not begun. Without this limit and the headroom, an overloaded model
answers late requests, and 58 % of its capacity are answered in time (benchmarks/overload.py)."""

TIMEOUT = "timeout"  # the request parameter, in microseconds (Triton, ``extension_schedule_policy.md``)


class Policy(NamedTuple):
    """Requests that may wait for a model in a worker, and seconds in which each must be answered; infinite: no limit."""

    queue: float
    seconds: float


def policy(model: Model, settings: Settings) -> Policy:
    """The policy that the model declares, or else the options. Raises ConfigurationError for an impossible policy."""
    queue = declared_count(model, settings, "max_queue_size")
    seconds = declared_number(model, settings, "request_timeout", "seconds of 0 or more")
    return Policy(queue or math.inf, seconds or math.inf)


class InFlight:
    """Counts the requests that a model is answering.
    A request that enters adds one to ``count``. A request that leaves subtracts one, and sets ``idle`` if no request is left.
    """

    __slots__ = ("_given_up", "count", "idle")

    def __init__(self) -> None:
        self.count = 0
        self.idle: asyncio.Event | None = None
        self._given_up = False

    async def until_idle(self) -> None:
        """Wait until no request is left, or until ``give_up``."""
        if self.count and not self._given_up:
            if self.idle is None or self.idle.is_set():
                self.idle = asyncio.Event()
            await self.idle.wait()

    def give_up(self) -> None:
        """End every wait."""
        self._given_up = True
        if self.idle is not None:
            self.idle.set()


class Mean:
    """A mean in which old values fade. ``known`` is 0 until ``KNOWN`` values were added."""

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


class Deadline:
    """The time limit of a request, from its construction until ``close``. A timer costs a fifth of a task.

    Args:
        seconds: the time limit.
        needed: seconds that must be left when the model begins; ignored if ``seconds`` is less. A request that has not
            begun by then ends as late.
        request: the request to end.
        late: makes the error of a late request from ``seconds``.
    """

    __slots__ = ("_late", "_left", "_request", "_seconds", "_timer")

    def __init__(
        self,
        seconds: float,
        needed: float,
        request: Scheduled,
        late: Callable[[float], MPServeError],
    ) -> None:
        self._seconds = seconds
        self._left = needed if needed < seconds else 0.0
        self._request = request
        self._late = late
        self._timer = asyncio.get_running_loop().call_later(seconds - self._left, self._expire)

    def _expire(self) -> None:
        if self._left and self._request.begun:
            self._timer = asyncio.get_running_loop().call_later(self._left, self._expire)
            self._left = 0.0
        else:
            self.close()
            self._request.expire(self._late(self._seconds))

    def close(self) -> None:
        """Stop the timer: the request is over. May be called again."""
        self._timer.cancel()


class Waiting(Protocol):
    """The queue before a model whose requests have priorities (``priority``)."""

    def leave(self, request: Any) -> None: ...


class Admission:
    """The admission to one model in a worker.

    Args:
        model, version: the name and the version of the model, for metrics.
        label: the name of the model in errors.
        slots: requests that the model can answer at once; infinite for a model without a queue.
        policy: the limits of queue and time.
        in_flight: counts the requests of the model.
    """

    def __init__(self, model: str, version: str, label: str, slots: float, policy: Policy, in_flight: InFlight) -> None:
        self.model = model
        self.version = version
        self.label = label
        self.slots = slots
        self.policy = policy
        self.service = Mean()  # seconds of the model's own time per request
        self._passage = Mean()  # seconds in the queue, for each request before
        self.is_limited = policy != Policy(math.inf, math.inf)
        self.learns = self.is_limited  # whether the means are needed
        self.priority_queue: Waiting | None = None
        """Decides for which requests there is room, once it knows their priorities."""
        self._in_flight = in_flight
        self._rates: Rates | None = None
        self._quota: Quota | None = None

    def limit(self, rates: Rates | None, quota: Quota | None, priority_queue: Waiting | None) -> None:
        """Keep to the limits of callers and of the model, and let the requests wait in this queue; None: there is none."""
        if rates is not None or priority_queue is not None:
            self.is_limited = self.learns = True
        self._rates, self._quota, self.priority_queue = rates, quota, priority_queue

    @property
    def waiting(self) -> int:
        """The number of requests in the queue."""
        return int(max(self._in_flight.count - self.slots, 0))

    @property
    def pace(self) -> float:
        """Seconds per request in which a busy model works off its queue; 0: not known yet."""
        return max(self.service.known / self.slots, self._passage.known)

    def enter(self, request: Scheduled, within: float, others: int) -> float:
        """As ``admit``, for a request that comes. If it is admitted, ``leave`` must be called at its end.
        Raises TooManyRequests, too: its caller, or the model, has as many as it may have.
        """
        quotas = [] if self._rates is None else self._quotas(self._rates, request.head.caller)
        try:
            for quota in quotas:
                quota.check()
        except TooManyRequests as refusal:
            metrics().count_refusal(self.model, self.version, refusal.reason)
            raise
        seconds = self.admit(within, others)
        request.places = [quota.take() for quota in quotas]
        return seconds

    def _quotas(self, rates: Rates, caller: str | None) -> list[Quota]:
        of_caller = [rates.of_caller(caller)] if caller and rates.of_callers.is_set else []
        return of_caller if self._quota is None else [*of_caller, self._quota]

    def leave(self, request: Any) -> None:
        """Count the end of a request. Called while ``learns``."""
        if self._rates is not None:
            self._rates.leave(request.places)
        if self.priority_queue is not None:
            self.priority_queue.leave(request)

    def admit(self, within: float, others: int) -> float:
        """Return the time limit of a request: the least of the policy and ``within``, in seconds; infinite: no limit.
        ``others``: the number of other requests of the model.
        Raises Overloaded if the queue is full, or too long for the request to be answered in time.
        """
        seconds = min(self.policy.seconds, within)
        if seconds != math.inf:
            self.learns = True
        if self.priority_queue is None and others >= self.slots:
            if others - self.slots >= self.policy.queue:
                raise self.full(f"{self.waiting} requests wait already", others)
            self.refuse_late(seconds, others)
        return seconds

    def full(self, words: str, others: int) -> Overloaded:
        """Count a request for which the queue has no room beside so many others, and return the error for its client."""
        return self._refusal("queue_full", words, others)

    def refuse_late(self, seconds: float, inside: int) -> None:
        """Raise Overloaded if a request with this time limit would be late behind so many others."""
        # At worst the running requests have just begun, and this request takes as long as they do.
        expected = (inside + self.slots) * self.pace
        if expected > seconds * HEADROOM:
            words = f"it would take {expected:.3g} s, and the request has {seconds:.3g} s"
            raise self._refusal("deadline", words, inside)

    def _refusal(self, reason: str, words: str, others: int) -> Overloaded:
        metrics().count_refusal(self.model, self.version, reason)
        # After this time the model will have worked off its present queue.
        retry_after = max(math.ceil(others * self.pace), 1)
        return Overloaded(f"Model {self.label} is overloaded: {words}.", retry_after)

    def deadline(self, request: Scheduled, seconds: float) -> Deadline:
        """Start the deadline of a request. The caller closes the deadline when the request is over."""
        return Deadline(seconds, self.service.known * LAST_CALL, request, self.late)

    def late(self, seconds: float) -> DeadlineExceeded:
        """Count a late request, and return the error for its client."""
        metrics().count_refusal(self.model, self.version, "expired")
        return DeadlineExceeded(f"Model {self.label} did not answer within {seconds:.3g} s.")

    def note(self, request: Timed, place: int) -> None:
        """Learn from an answered request, which was number ``place`` of the model's requests when it was admitted."""
        durations = request.durations
        self.service.add((durations[INPUT] + durations[INFER] + durations[OUTPUT]) * NANO)
        self._passage.add((request.mark - request.arrived) * NANO / (place - 1 + self.slots))

    def note_stream(self, durations: Sequence[int], step: float) -> None:
        """Learn from an answer in parts. ``durations``: its spans until it began. ``step``: seconds for each part.

        Each part waits in the queue anew, so a request waits for a part of each request before, not for the whole answers.
        """
        self.service.add((durations[INPUT] + durations[INFER] + durations[OUTPUT]) * NANO + step)


def asked_seconds(timeout: object) -> float:
    """The request parameter ``timeout`` in seconds; infinite: no limit. Raises InvalidInput if the parameter is no time."""
    if type(timeout) is not int or timeout < 0:
        raise InvalidInput(f"parameter timeout is {timeout!r}, expected a whole number of microseconds, 0 or more")
    return timeout * MICRO or math.inf  # 0 is "not given" (Triton)

"""The queue before a model whose requests have priorities: the most important is next, and the least important gives way.

It stands before the scheduler of any kind, and lets in as many requests as the model can answer at once, of a model with batches
as many rows, so that those behind can still be put in order. A priority is known once the body is read. A model without priority
levels has no such queue.

Source: Triton, ``extension_schedule_policy.md``, and ``priority_levels`` of model_config.proto.
"""

from collections import OrderedDict
from typing import Any, NamedTuple

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError, InvalidInput
from mpserve.protocol.tensors import Parameters
from mpserve.serving.execution.admission import Admission
from mpserve.serving.execution.scheduled import Scheduled
from mpserve.serving.execution.schedulers import Scheduler
from mpserve.serving.models.declared_number import declared_count
from mpserve.serving.models.model import Model

PRIORITY = "priority"


class Levels(NamedTuple):
    """The levels of a model, from 1, the most important, to ``number``, and the level of requests that name none."""

    number: int
    default: int

    def of(self, parameters: Parameters | None) -> int:
        """The level that a request asks for. One that the model does not have counts as the default, as in Triton.
        Raises InvalidInput if the parameter is no level.
        """
        asked = (parameters or {}).get(PRIORITY, 0)
        if type(asked) is not int or asked < 0:
            raise InvalidInput(f"parameter priority is {asked!r}, expected a whole number, 0 or more")
        return asked if 0 < asked <= self.number else self.default


def levels_of(model: Model, settings: Settings) -> Levels | None:
    """The levels that the model declares, or else the options; None: it has none.
    Raises ConfigurationError for impossible levels.
    """
    number = declared_count(model, settings, "priority_levels")
    if not number:
        return None
    default: Any = model.default_priority_level
    default = settings.default_priority_level if default is None else default
    if type(default) is not int or not 0 < default <= number:
        raise ConfigurationError(
            f"model {model.name}: default_priority_level is {default!r}, expected a number from 1 to {number} (priority_levels)"
        )
    return Levels(number, default)


class PriorityQueue:
    """The requests of one model that wait, by level, in their order. The event loop alone uses it.
    ``size``: the most rows of a batch; a request of as many takes the places of a whole batch. 1: a model without batches.
    """

    def __init__(self, levels: Levels, admission: Admission, size: int = 1) -> None:
        self._levels = levels
        self._admission = admission
        self._size = size
        self._inside: dict[Scheduled, int] = {}  # with the number of places that each takes
        self._taken = 0
        self._waiting: dict[int, OrderedDict[Scheduled, Scheduler]] = {}  # a level without requests has no entry
        self._is_letting_in = False

    def enter(self, request: Scheduled, scheduler: Scheduler) -> None:
        """Let a request in whose body was read, or let it wait.
        Raises InvalidInput if it asks for no level; Overloaded if it would be late, or the queue is full of no less important
        ones. Else the least important one, of these the last, is refused in its place.
        """
        inputs = request.inputs
        level = self._levels.of(None if inputs is None else inputs.parameters)
        if self._taken < self._admission.slots:
            self._let_in(request, scheduler)
            return
        before = sum(len(queue) for other, queue in self._waiting.items() if other <= level)
        self._admission.refuse_late(request.seconds, len(self._inside) + before)
        waiting = sum(map(len, self._waiting.values()))
        if waiting >= self._admission.policy.queue:
            self._make_room(level, waiting)
        self._waiting.setdefault(level, OrderedDict())[request] = scheduler

    def leave(self, request: Scheduled) -> None:
        """Let the next one in after a request that is over, or whose place is free. May be called again."""
        if request in self._inside:
            self._taken -= self._inside.pop(request)
            self._let_in_next()
            return
        for level, queue in self._waiting.items():
            if queue.pop(request, None) is not None:
                self._forget_if_empty(level)
                return

    def _make_room(self, level: int, waiting: int) -> None:
        least, others = max(self._waiting), len(self._inside) + waiting
        if least <= level:
            raise self._admission.full(f"{waiting} requests wait already", others)
        given_up, _ = self._waiting[least].popitem()
        self._forget_if_empty(least)
        given_up.fail(self._admission.full("a more important request has taken its place in the queue", others))

    def _let_in_next(self) -> None:
        if self._is_letting_in:  # a request has failed at once: the loop below goes on
            return
        self._is_letting_in = True
        try:
            while self._waiting and self._taken < self._admission.slots:
                level = min(self._waiting)
                request, scheduler = self._waiting[level].popitem(last=False)
                self._forget_if_empty(level)
                self._let_in(request, scheduler)
        finally:
            self._is_letting_in = False

    def _let_in(self, request: Scheduled, scheduler: Scheduler) -> None:
        places = self._inside[request] = max(min(request.rows, self._size), 1)
        self._taken += places
        scheduler.submit(request)

    def _forget_if_empty(self, level: int) -> None:
        if not self._waiting[level]:
            del self._waiting[level]


class PriorityScheduler:
    """Puts requests in the queue before another scheduler."""

    def __init__(self, queue: PriorityQueue, scheduler: Scheduler) -> None:
        self._queue = queue
        self._scheduler = scheduler

    def submit(self, request: Scheduled) -> None:
        try:
            request.prepare()
            self._queue.enter(request, self._scheduler)
        except Exception as error:
            request.fail(error)

"""Run to completion: a request to a synchronous model is decoded, answered and encoded in the model's thread, in one go.

What decodes and encodes is the same coroutine as everywhere; here it has nothing to wait for, so that it ends at its first
step, without a task of its own. For a small request tasks, futures and hand-overs are half of what it costs, and data that
stays in one thread stays in its cache. It knows no front end.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

from mpserve.errors import MPServeError
from mpserve.logging import model as model_in_log
from mpserve.serving.core import ServerCore
from mpserve.serving.dataplane import (
    Dataplane,
    InParts,
    Plane,
    completed,
    declared_inputs,
    is_stream,
    prepared,
    stream,
)
from mpserve.serving.deadline import Deadline
from mpserve.serving.executor import as_failure
from mpserve.serving.pipeline import Headers
from mpserve.serving.served import Served
from mpserve.serving.stream import ModelStream, blamed
from mpserve.serving.tally import INPUT, QUEUE
from mpserve.serving.tensors import Tensor
from mpserve.serving.visit import Visit

T = TypeVar("T")

SMALL = 4096
"""Bytes of a body that are always decoded in the model's thread, in tens of microseconds."""
LARGE = 262144
"""Bytes of a body that are decoded there while the model takes less than ``BRIEF``. Another one, which may release the GIL for
all that time, goes on with one request while the loop decodes the next."""
BRIEF = 1_000_000
"""Nanoseconds."""


def fits(served: Served, verb: str, length: int) -> bool:
    """Whether a request with a body of this length is one to run to completion."""
    if served.pipeline.waits(verb) or not served.model.ready:
        return False
    if served.admission.is_limited and not served.admission.is_open:
        return False
    return length <= SMALL or (length <= LARGE and served.last_infer < BRIEF)


class InThread:
    """The dataplane as it is for a request that has begun its visit, in the model's thread."""

    __slots__ = ("core", "visit")

    def __init__(self, core: ServerCore, visit: Visit) -> None:
        self.core = core
        self.visit = visit

    def declared_inputs(self, name: str, version: str | None) -> Sequence[Tensor]:
        return declared_inputs(self.visit.served)

    def refuse_early(self, name: str, version: str | None) -> None:
        """It has been let in already."""

    def takes_numbers(self, verb: str, name: str, version: str | None) -> bool:
        return verb == "predict" and self.visit.served.pipeline.begins_with_arrays

    async def run(
        self, verb: str, name: str, version: str | None, payload: Any, headers: Headers
    ) -> tuple[Any, Headers]:
        """As ``Dataplane.run``, without ending the visit.

        Raises:
            InParts: the answer is one in parts.
        """
        visit = self.visit
        try:
            deliveries = prepared(visit, payload, self.core)
            visit.lap(INPUT)  # the body was decoded in this thread, which is no stage of the model
            result, response_headers = visit.served.pipeline.run_here(verb, payload, headers, visit)
            if is_stream(result):
                raise InParts(payload, result, response_headers, deliveries)
            result = completed(result, payload, deliveries, verb)
        except (MPServeError, InParts):
            raise
        except BaseException as error:
            raise blamed(as_failure(error), name, verb) from error
        visit.is_answered = True
        return result, response_headers

    async def offload(self, function: Callable[..., T], *args: object) -> T:
        return function(*args)


class Resumed:
    """The dataplane as it is, back on the event loop, for a request whose answer turned out to be one in parts."""

    def __init__(self, dataplane: Dataplane, visit: Visit, found: InParts) -> None:
        self.dataplane = dataplane
        self.core = dataplane.core
        self.visit = visit
        self.found = found

    def declared_inputs(self, name: str, version: str | None) -> Sequence[Tensor]:
        return declared_inputs(self.visit.served)

    def refuse_early(self, name: str, version: str | None) -> None:
        """It has been let in already."""

    def takes_numbers(self, verb: str, name: str, version: str | None) -> bool:
        return False

    async def run(
        self, verb: str, name: str, version: str | None, payload: Any, headers: Headers
    ) -> tuple[ModelStream, Headers]:
        found = self.found
        model_in_log.set(self.visit.served.label)
        within = self.visit.served.admission.policy.seconds
        return stream(self.visit, verb, found.payload, found.parts, found.deliveries, within), found.headers

    async def offload(self, function: Callable[..., T], *args: object) -> T:
        return await self.dataplane.offload(function, *args)


class Ticket(Visit, ABC, Generic[T]):
    """A request that is answered without a task: who answers it settles it as it would the future of its outcome.

    ``served`` has been found to be ready and open.
    """

    _deadline: Deadline | None

    def __init__(self, dataplane: Dataplane, served: Served) -> None:
        self.is_over = False  # not of the class, where it would be looked for last
        """Whether it has been settled, given up or cancelled."""
        self._dataplane = dataplane
        Visit.__init__(self, served, dataplane.tally(served), dataplane.core.row.cells)
        self._deadline = served.admission.limit(self, self._give_up) if served.admission.is_limited else None

    @abstractmethod
    def told(self, outcome: T) -> None:
        """Take the answer, on the event loop."""

    @abstractmethod
    def failed(self, error: BaseException) -> T:
        """The answer to a request that could not be answered as it asked."""

    def done(self) -> bool:
        """As of a future."""
        return self.is_over

    cancelled = done

    def cancel(self) -> bool:
        """Take it out of the queue, if it is still there: nobody wants its answer. Whether that was so."""
        if self.is_over or self.spent[QUEUE]:
            return False
        self._over()
        self.end()
        return True

    def set_exception(self, error: BaseException) -> None:
        """It could not be answered."""
        self._over()
        self.end()
        self.told(self.failed(error))

    _give_up = set_exception
    """Tell an error at once, whatever the model is at; what that comes to is dropped."""

    def _over(self) -> None:
        self.is_over = True
        if self._deadline is not None:
            self._deadline.close()

    def _answer(self, outcome: T) -> None:
        self.end(self.is_read)  # what cannot be read is not counted elsewhere either
        admission = self.served.admission
        if admission.learns and self.is_answered:
            admission.note(self, self.place)
        self.told(outcome)


class Completion(Ticket[T]):
    """A request that is run to completion."""

    def submit(self) -> None:
        """Go to the model's thread."""
        served = self.served
        served.executor.submit(served.context.copy(), self._run, self)

    @abstractmethod
    def at_once(self) -> T | None:
        """The answer, where there is a shorter way to it than ``road``."""

    @abstractmethod
    async def road(self, plane: Plane) -> T:
        """From the request to its answer, which may well be that of an error; waits for nothing but ``plane``."""

    def _run(self) -> T | InParts:
        self.lap(QUEUE)
        try:
            answer = self.at_once()
            if answer is not None:
                return answer
            self.road(InThread(self._dataplane.core, self)).send(None)
        except StopIteration as end:
            return cast("T", end.value)
        except InParts as found:
            return found
        raise RuntimeError("a request that was run to completion waited for something")

    def set_result(self, outcome: T | InParts) -> None:
        """The road has ended."""
        self._over()
        if isinstance(outcome, InParts):
            resumed = Resumed(self._dataplane, self, outcome)
            self._road = asyncio.get_running_loop().create_task(self.road(resumed))
            self._road.add_done_callback(self._end)
        else:
            self._answer(outcome)

    def _end(self, done: "asyncio.Task[T]") -> None:
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        self.told(done.result() if error is None else self.failed(error))

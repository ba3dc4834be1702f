"""Dynamic batching: the requests to one model that wait at the same moment are predicted together.

A request whose arrays are known enters the queue, on the event loop. Whenever the model may run, the requests that can be
joined go to it as one batch, up to ``max_batch_size`` rows; while it runs the next batch gathers. So the size adapts to the
load, and an idle server adds no delay unless ``max_batch_delay`` asks for one. It knows no front end and no format.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from functools import partial
from time import perf_counter_ns
from typing import Any, NamedTuple

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError, InvalidInput
from mpserve.protocol.codec import Inputs
from mpserve.protocol.datatypes import Array
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.tensors import NamedArray
from mpserve.serving.execution.batch import Batch, awaited
from mpserve.serving.execution.executor import Executor, as_failure
from mpserve.serving.execution.scheduled import Batched
from mpserve.serving.fitting.table import Columns
from mpserve.serving.models.model import Model
from mpserve.serving.models.spans import INFER, INPUT, NANO, QUEUE, Timed
from mpserve.serving.models.tensor_model import TensorModel, answers_in_parts, is_async
from mpserve.telemetry.metrics import ModelMetrics


class Limits(NamedTuple):
    """The limits of a batch: its most rows, the seconds to wait for more rows, and sizes that need no more waiting.
    ``refuses``: whether a request of more rows is refused; otherwise it runs alone.
    """

    size: int
    refuses: bool
    delay: float
    preferred: frozenset[int]
    pad_value: float | None


def limits(model: Model, settings: Settings) -> Limits | None:
    """The limits that the model declares, or else the options; None for a model without batches.
    Raises ConfigurationError if the model declares impossible limits.
    """
    declared: int | None = getattr(model, "max_batch_size", None)
    by_default = declared is None and settings.max_batch_size is None
    if declared is None:
        wanted = getattr(model, "rows_joined", 0) if settings.max_batch_size is None else settings.max_batch_size
        size = wanted if wanted and _obstacle(model) is None else 0
    elif type(declared) is not int or declared < 0:
        raise ConfigurationError(f"model {model.name}: max_batch_size is {declared!r}, expected a number of 0 or more")
    elif declared and (obstacle := _obstacle(model)) is not None:
        raise ConfigurationError(f"model {model.name} cannot have max_batch_size {declared}: {obstacle}")
    else:
        size = declared
    if not size or not isinstance(model, TensorModel):
        return None
    delay = settings.max_batch_delay if model.max_batch_delay is None else model.max_batch_delay
    if delay < 0:
        raise ConfigurationError(f"model {model.name}: max_batch_delay is {delay}, expected seconds of 0 or more")
    if any(not 0 < preferred <= size for preferred in model.preferred_batch_sizes):
        raise ConfigurationError(
            f"model {model.name}: preferred_batch_sizes are {list(model.preferred_batch_sizes)}, expected numbers from 1"
            f" to max_batch_size, {size}"
        )
    return Limits(size, not by_default, delay, frozenset(model.preferred_batch_sizes), model.pad_value)


def _obstacle(model: Model) -> str | None:
    """The reason why the model cannot be batched."""
    if not isinstance(model, TensorModel):
        return "only a TensorModel, a TorchModel or a pair of functions can, since they speak arrays"
    if answers_in_parts(model):
        return "its predict is a generator, which answers one request at a time"
    for tensor in (*model.inputs, *model.outputs):
        if list(tensor.shape[:1]) != [-1]:
            return f"{tensor.name!r} is declared with shape {list(tensor.shape)}, expected -1 as its first dimension"
    return None


class Joined(asyncio.Future[Any]):
    """A request of a model with other stages beside predict, while it waits for its batch.
    The request gets a copy of its arrays: a model may use its arrays again in its next predict.
    """

    def __init__(self, arrays: list[Array], request: Any) -> None:
        super().__init__()
        self.value = arrays
        self.rows = 1
        self.kind: object = None
        self.begun = False
        self.context = contextvars.copy_context()
        self.lap: Callable[[int], int] = request.lap
        self.follow: Callable[[Timed, int], None] = request.follow
        self.request = request

    @property
    def mark(self) -> int:
        return int(self.request.mark)

    def asked(self) -> tuple[str, ...]:
        inputs: Inputs | None = self.request.inputs
        return () if inputs is None else inputs.asked()

    def complete(self, tensors: list[NamedArray]) -> dict[str, Array]:
        return {name: array.copy() for name, _, array in tensors}


class Batcher:
    """The queue of one model in a worker. Only ``Batch.run`` leaves the event loop, so nothing needs a lock."""

    def __init__(self, model: TensorModel, executor: Executor, limits: Limits, observed: ModelMetrics | None) -> None:
        self.model = model
        self.limits = limits
        self.outputs: tuple[Tensor, ...] = ()  # what the model declares of its outputs
        self._executor = executor
        self._observed = observed
        self._is_async = is_async(model)
        self._idle = model.concurrency or 1  # how many more batches may run at the same time
        self._running: dict[asyncio.Future[Batch], Batch] = {}  # the batches that run on the event loop
        self._queues: dict[object, deque[Batched]] = {}
        self._is_called = False
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """The number of requests in the queue, including those that were cancelled a moment ago."""
        return sum(map(len, self._queues.values()))

    async def join(self, arrays: list[Array], request: Any) -> Any:
        """The predict stage of a request that has other stages: returns the model's answer for these arrays.
        Raises InvalidInput as ``enter``, and any error of the model.
        """
        joined = Joined(arrays, request)
        self.enter(joined)
        return await joined

    def enter(self, member: Batched) -> None:
        """Put a request into the queue. The batch runs in the context of its first request.
        Raises InvalidInput if the arrays have no common first dimension, or too many rows.
        """
        arrays = member.value
        if len(arrays) != 1 or not (shape := arrays[0].shape) or shape[0] > self.limits.size:
            self._check(arrays)
        member.rows = arrays[0].shape[0]
        member.lap(INPUT)
        kind = self._kind(arrays)
        if self.model.chooses_outputs:
            kind = kind, member.asked()
        if not member.rows:  # alone it may be refused, and beside rows the model would not see it
            kind = kind, 0
        member.kind = kind
        queue = self._queues.get(kind)
        if queue is None:
            queue = self._queues[kind] = deque()
        queue.append(member)
        if self._idle and not self._is_called:
            self._call()

    def _check(self, arrays: list[Array]) -> None:
        sizes = {array.shape[:1] for array in arrays}
        if len(sizes) != 1 or () in sizes:
            shapes = ", ".join(str(list(array.shape)) for array in arrays) or "none"
            raise InvalidInput(
                f"model {self.model.name} takes batches: expected inputs with one and the same first dimension, got {shapes}"
            )
        [[rows]] = sizes
        if rows > self.limits.size and self.limits.refuses:
            raise InvalidInput(
                f"model {self.model.name}: the batch has {rows} rows, expected at most {self.limits.size} (max_batch_size)"
            )

    def _kind(self, arrays: list[Array]) -> object:
        """A key that is equal for requests that can be joined."""
        if self.limits.pad_value is None:
            if len(arrays) == 1:
                return arrays[0].dtype, arrays[0].shape[1:]
            return tuple([(array.dtype, array.shape[1:]) for array in arrays])
        return tuple([(a.dtype, a.shape[1:] if type(a) is Columns or a.dtype.kind == "O" else a.ndim) for a in arrays])

    def _call(self) -> None:
        """Form batches at the end of this turn of the loop, when all its requests are in the queue."""
        self._is_called = True
        asyncio.get_running_loop().call_soon(self._form)

    def _form(self) -> None:
        self._is_called = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._idle and (members := self._due()):
            self._begin(members)

    def _due(self) -> list[Batched]:
        """Take the next batch from the queues: of the batches that are due, the oldest."""
        due: list[Batched] = []
        begun = None
        for kind, queue in list(self._queues.items()):
            members, full = self._candidates(queue)
            if not members:
                del self._queues[kind]
            elif full or not self.limits.delay or self._wait(members[0]) <= 0:
                if not due or members[0].mark < due[0].mark:
                    due = members
            elif begun is None or members[0].mark < begun.mark:
                begun = members[0]
        if due:
            queue = self._queues[due[0].kind]
            for _ in due:
                queue.popleft()
        elif begun is not None:
            self._timer = asyncio.get_running_loop().call_later(self._wait(begun), self._form)
        return due

    def _wait(self, first: Batched) -> float:
        """Seconds for which a batch may still wait for more requests after this first request."""
        return self.limits.delay - (perf_counter_ns() - first.mark) * NANO

    def _candidates(self, queue: deque[Batched]) -> tuple[list[Batched], bool]:
        """The next batch of this queue, and whether waiting cannot make it larger.
        Removes cancelled requests. The first request that does not fit ends the batch, so no request overtakes another.
        """
        size, preferred = self.limits.size, self.limits.preferred
        members: list[Batched] = []
        rows = best = number = 0
        full = False
        gone = 0
        for member in queue:
            if member.done():
                gone += 1
                continue
            if rows + member.rows > size and members:
                full = True
                break
            members.append(member)
            rows += member.rows
            if rows in preferred:
                best, number = rows, len(members)
        if gone:
            waiting = [member for member in queue if not member.done()]
            queue.clear()
            queue.extend(waiting)
        if rows >= size:
            return members, True
        return (members[:number], True) if best else (members, full)

    def _begin(self, members: list[Batched]) -> None:
        for member in members:
            member.lap(QUEUE)
            member.begun = True
        batch = Batch(self.model, members, self.limits.pad_value, self.outputs)
        self._idle -= 1
        # The context of the first request: a line that the model logs names a request of the batch.
        if self._is_async:
            task = members[0].context.copy().run(asyncio.get_running_loop().create_task, batch.run_async())
            self._running[task] = batch
            task.add_done_callback(partial(self._settle, batch))
        else:
            future: asyncio.Future[Batch] = asyncio.get_running_loop().create_future()
            future.add_done_callback(partial(self._settle, batch))
            self._executor.submit(members[0].context, batch.run, future)

    def _settle(self, batch: Batch, done: "asyncio.Future[Batch]") -> None:
        """Give each request its outcome, unless it was cancelled, and let the next batch begin."""
        self._running.pop(done, None)
        self._idle += 1
        if not self._is_called:
            self._call()
        seconds = batch.durations[INFER] * NANO
        for members, outcomes in batch.outcomes:
            if self._observed is not None:
                self._observed.batch_rows.note(sum([member.rows for member in members]))
            executions = 1
            for member, outcome in zip(members, outcomes, strict=True):
                if member.done():  # cancelled: nobody waits for it
                    continue
                if self._observed is not None:
                    self._observed.stages["predict"].note(seconds)
                member.follow(batch, executions)
                if isinstance(outcome, Exception):
                    member.set_exception(outcome)
                else:
                    member.set_result(outcome)
                    executions = 0
        if done.cancelled() or done.exception() is not None:
            self._abandon(batch, done)

    async def settle(self) -> None:
        """End the batches on the event loop whose members have all gone."""
        gone = [task for task, batch in self._running.items() if not awaited(batch.members)]
        for task in gone:
            task.cancel()
        if gone:
            await asyncio.wait(gone)

    def _abandon(self, batch: Batch, done: "asyncio.Future[Batch]") -> None:
        """Fail every request that has no outcome, whatever ended the batch."""
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        for member in batch.members:
            if not member.done():
                member.set_exception(as_failure(error or RuntimeError("the batch was not completed")))

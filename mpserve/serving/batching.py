"""Dynamic batching: the requests to one model that wait at the same moment are predicted together.

A request whose arrays are checked becomes a member of the queue, on the event loop. Whenever the model may run, the members
that can be joined go to it as one batch, up to ``max_batch_size`` rows; while it runs the next batch gathers. So the size adapts
to the load, and an idle server adds no delay unless ``max_batch_delay`` asks for one. It knows no front end.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from mpserve.errors import ConfigurationError, InvalidInput
from mpserve.protocol.datatypes import Array
from mpserve.protocol.messages import InferOutput, InferRequest, InferResponse
from mpserve.serving.batch import Batch, Member, Parts
from mpserve.serving.conversion import to_arrays
from mpserve.serving.executor import Executor, as_failure
from mpserve.serving.executor import Outcome as Settled
from mpserve.serving.model import Model
from mpserve.serving.tally import INPUT, QUEUE, Stopwatch
from mpserve.serving.tensors import TensorModel, answers_in_parts, is_async
from mpserve.settings import Settings

NANO = 1e-9


class Limits(NamedTuple):
    """How a model's batches are formed: rows at most, seconds to wait for more, sizes that are not waited beyond."""

    size: int
    delay: float
    preferred: frozenset[int]
    pad_value: float | None


def limits(model: Model, settings: Settings) -> Limits | None:
    """What a model declares, or else the options where it can be batched; None: it is not.

    Raises:
        ConfigurationError: the model declares batches that cannot be.
    """
    declared: int | None = getattr(model, "max_batch_size", None)
    if declared is None:
        size = settings.max_batch_size if _obstacle(model) is None else 0
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
    return Limits(size, delay, frozenset(model.preferred_batch_sizes), model.pad_value)


def _obstacle(model: Model) -> str | None:
    """Why the model cannot be batched, in words."""
    if not isinstance(model, TensorModel):
        return "only a TensorModel, a TorchModel or a pair of functions can, since they speak arrays"
    if answers_in_parts(model):
        return "its predict is a generator, which answers one request at a time"
    for tensor in (*model.inputs, *model.outputs):
        if list(tensor.shape[:1]) != [-1]:
            return f"{tensor.name!r} is declared with shape {list(tensor.shape)}, expected -1 as its first dimension"
    return None


class Batcher:
    """The queue of one model in a worker. All but ``Batch.run`` is on the event loop, so there is nothing to lock."""

    def __init__(
        self, model: TensorModel, executor: Executor, limits: Limits, observe: Callable[[float], None]
    ) -> None:
        self.model = model
        self.limits = limits
        self._executor = executor
        self._observe = observe
        self._is_async = is_async(model)
        self._idle = model.concurrency or 1
        """How many more batches may run at the same time."""
        self._alike = bool(model.inputs) and all(-1 not in tensor.shape[1:] for tensor in model.inputs)
        self._queues: dict[object, deque[Member]] = {}
        self._is_called = False
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Requests that wait, those included that were cancelled a moment ago."""
        return sum(map(len, self._queues.values()))

    async def predict(self, payload: Any, headers: object, response_headers: object, watch: Stopwatch) -> InferResponse:
        """The predict stage of one request.

        Raises:
            InvalidInput: it does not fit what the model declares, or is no batch, or one that is too large.
            Exception: whatever the model raised for it.
        """
        future: asyncio.Future[Parts] = asyncio.get_running_loop().create_future()
        arrays = to_arrays(self.model, payload)
        self.check(arrays)
        self.enter(arrays, watch, future, contextvars.copy_context().copy)
        outputs = [InferOutput(name, array.shape, datatype, array) for name, datatype, array in await future]
        return InferResponse(payload.id if isinstance(payload, InferRequest) else None, self.model.name, outputs)

    def enter(
        self,
        arrays: list[Array],
        watch: Stopwatch,
        future: "Settled[Parts]",
        context: Callable[[], contextvars.Context],
    ) -> None:
        """Let a request whose arrays have been checked join the queue, and settle the future with its outputs.

        The model is run in the context of a batch's first member, so only that one's has to be made.
        """
        watch.lap(INPUT)
        kind = None if self._alike else self._kind(arrays)
        queue = self._queues.get(kind)
        if queue is None:
            queue = self._queues[kind] = deque()
        queue.append(Member(arrays, kind, watch, future, context))
        self._call()

    def check(self, arrays: list[Array]) -> None:
        """See that the arrays are ones for a batch.

        Raises:
            InvalidInput: they are no batch, or one that is too large.
        """
        if len(arrays) == 1 and (shape := arrays[0].shape) and shape[0] <= self.limits.size:
            return
        sizes = {array.shape[:1] for array in arrays}
        if len(sizes) != 1 or () in sizes:
            shapes = ", ".join(str(list(array.shape)) for array in arrays) or "none"
            raise InvalidInput(
                f"model {self.model.name} takes batches: expected inputs with one and the same first dimension, got {shapes}"
            )
        [[rows]] = sizes
        if rows > self.limits.size:
            raise InvalidInput(
                f"model {self.model.name}: the batch has {rows} rows, expected at most {self.limits.size} (max_batch_size)"
            )

    def _kind(self, arrays: list[Array]) -> object:
        if self.limits.pad_value is None:
            if len(arrays) == 1:
                return arrays[0].dtype, arrays[0].shape[1:]
            return tuple([(array.dtype, array.shape[1:]) for array in arrays])
        return tuple([(a.dtype, a.shape[1:] if a.dtype.kind == "O" else a.ndim) for a in arrays])

    def _call(self) -> None:
        """Look at the queue once what arrives in this turn of the loop is there, if the model may run."""
        if self._idle and not self._is_called:
            self._is_called = True
            asyncio.get_running_loop().call_soon(self._form)

    def _form(self) -> None:
        self._is_called = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._idle and (members := self._due()):
            self._begin(members)

    def _due(self) -> list[Member]:
        """The next batch, taken from the queue: of those that wait for nothing more the one that has waited longest."""
        due: list[Member] = []
        begun = None
        for kind, queue in list(self._queues.items()):
            members, full = self._candidates(queue)
            if not members:
                del self._queues[kind]
            elif full or self._wait(members[0]) <= 0:
                if not due or members[0].watch.now < due[0].watch.now:
                    due = members
            elif begun is None or members[0].watch.now < begun.watch.now:
                begun = members[0]
        if due:
            queue = self._queues[due[0].kind]
            for _ in due:
                queue.popleft()
        elif begun is not None:
            self._timer = asyncio.get_running_loop().call_later(self._wait(begun), self._form)
        return due

    def _wait(self, first: Member) -> float:
        """Seconds for which a batch that begins with this member may still wait for others."""
        if not self.limits.delay:
            return 0.0
        return self.limits.delay - (Stopwatch().now - first.watch.now) * NANO

    def _candidates(self, queue: deque[Member]) -> tuple[list[Member], bool]:
        """What would be the next batch of this queue, and whether there is no sense in waiting for more.

        Those that were cancelled leave the queue here. The first that does not fit ends it, so that none is overtaken.
        """
        size, preferred = self.limits.size, self.limits.preferred
        members: list[Member] = []
        rows = best = number = 0
        full = False
        if any(member.future.done() for member in queue):
            waiting = [member for member in queue if not member.future.done()]
            queue.clear()
            queue.extend(waiting)
        for member in queue:
            if rows + member.rows > size:
                full = True
                break
            members.append(member)
            rows += member.rows
            if rows in preferred:
                best, number = rows, len(members)
        if rows == size:
            return members, True
        return (members[:number], True) if best else (members, full)

    def _begin(self, members: list[Member]) -> None:
        for member in members:
            member.watch.lap(QUEUE)  # which says that it waits no more
        batch = Batch(self.model, members, self.limits.pad_value)
        self._idle -= 1
        # In the context of its first member, not of whoever made room for it: what the model logs names a request that it has.
        future = members[0].context().run(self._start, batch)
        future.add_done_callback(lambda done: self._settle(batch, done))

    def _start(self, batch: Batch) -> "asyncio.Future[Batch]":
        running = batch.run_async() if self._is_async else self._executor.run(Batch.run, batch)
        return asyncio.get_running_loop().create_task(running)

    def _settle(self, batch: Batch, done: "asyncio.Future[Batch]") -> None:
        """Give each member its own outcome, unless it has gone, and let the next batch begin."""
        self._idle += 1
        self._call()
        seconds = (batch.watch.now - batch.watch.begun) * NANO
        for members, outcomes in batch.outcomes:
            executions = 1
            for member, outcome in zip(members, outcomes, strict=True):
                if member.future.done():  # cancelled: nobody waits for it
                    continue
                self._observe(seconds)
                member.watch.follow(batch.watch, executions)
                if isinstance(outcome, Exception):
                    member.future.set_exception(outcome)
                else:
                    member.future.set_result(outcome)
                    executions = 0
        self._abandon(batch, done)

    def _abandon(self, batch: Batch, done: "asyncio.Future[Batch]") -> None:
        """Whatever cut the batch short, nobody may wait for ever."""
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        for member in batch.members:
            if not member.future.done():
                member.future.set_exception(as_failure(error or RuntimeError("the batch was not completed")))

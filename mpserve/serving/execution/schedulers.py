"""Who runs a request when: the scheduler of a model, chosen once for each verb, when the model is added.

``ThreadScheduler`` runs a request to completion in the model's thread, ``LoopScheduler`` on the event loop, for models with an
asynchronous stage, and ``BatchScheduler`` together with others. Each knows of a request only what ``Scheduled`` says.
"""

import asyncio
import contextvars
from collections.abc import Callable
from itertools import groupby
from typing import Any, Protocol

from mpserve.protocol.codec import Encoded, Inputs
from mpserve.serving.execution.batcher import Batched, Batcher
from mpserve.serving.execution.coroutine_runner import CoroutineRunner, Job
from mpserve.serving.execution.executor import Executor, Outcome
from mpserve.serving.models.spans import QUEUE
from mpserve.serving.models.stages import Stage, Stages, detached

SMALL = 4096  # bytes of a body that is decoded in the model's thread, in tens of microseconds, whatever the model takes
BRIEF = 1_000_000
"""Nanoseconds. A model that takes longer may release the GIL for all that time, and goes on with one request while the event
loop decodes the next."""

INLINE = 65536  # bytes of an answer that are compressed on the event loop; more cost milliseconds

TIMEOUT = b"timeout"
LETTER, BACKSLASH = b"o\\"  # most bodies are numbers, in which one letter is found to be missing at a tenth of the cost


class Scheduled(Batched, Outcome[Any], Job, Protocol):
    """A request as its scheduler sees it."""

    head: Any
    body: bytes
    infer_before: int  # nanoseconds that the model took for the request before this one
    inputs: Inputs | None  # what the body holds, once the request is decoded

    def prepare(self) -> None:
        """Decode the request, unless that is done, and limit its time as it asks; on the event loop."""

    def run(self) -> Any:
        """Decode, run all stages and encode, in the model's thread."""

    def run_stages(self, stages: tuple[Stage, ...], value: Any) -> Any:
        """Run synchronous stages one after the other, in the model's thread."""

    def spend(self, span: int, note: Callable[[float], object] | None) -> None:
        """Account the time since the last lap to a stage of this span, whose histogram ``note`` takes its seconds."""

    def lap(self, span: int) -> int:
        """Account the time since the last lap to a span. Gives this moment."""

    def encode(self, result: Any) -> Any:
        """What the codec makes of the model's answer."""

    def compress(self, outcome: Any) -> Any:
        """The answer in a content coding that the client takes."""

    def fail(self, error: BaseException) -> None:
        """End with this error."""


class Scheduler(Protocol):
    """Runs requests, and tells each its outcome."""

    def submit(self, request: Any) -> None:
        """Take a request that has been admitted; on the event loop."""


class ThreadScheduler:
    """Runs each request to completion in the model's thread: decoded, answered and encoded in one go.

    For a small request tasks, futures and hand-overs are half of the cost, and data that stays in one thread stays in its cache.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, request: Scheduled) -> None:
        body = request.body
        # The loop decodes a request whose body may hold a timeout, or where the thread has better things to do.
        if (
            (len(body) > SMALL and request.infer_before >= BRIEF)
            or BACKSLASH in body
            or (LETTER in body and TIMEOUT in body)
            or request.head.content_encoding is not None
        ):
            try:
                request.prepare()
            except Exception as error:
                request.fail(error)
                return
        self._executor.submit(request.context, request.run, request)


class LoopScheduler:
    """Runs the asynchronous stages of requests on the event loop, and the others in the model's thread.

    Args:
        executor: runs the synchronous stages.
        stages: of the verb.
        gate: lets in as many requests at the same time as the model allows; None: any number.
    """

    def __init__(self, executor: Executor, stages: Stages, gate: asyncio.Semaphore | None) -> None:
        self._executor = executor
        self._groups = [(is_async, tuple(group)) for is_async, group in groupby(stages.stages, lambda s: s.is_async)]
        self._only = stages.stages[0] if stages.waits and len(stages.stages) == 1 else None
        """The stage, if there is but one."""
        self._gate = gate
        self._runner: CoroutineRunner[Scheduled] = CoroutineRunner(self._run if gate is None else self._run_gated)

    def submit(self, request: Scheduled) -> None:
        try:
            request.prepare()  # which may limit the time that it waits at the gate
        except Exception as error:
            request.fail(error)
        else:
            self._runner.start(request)

    async def _run_gated(self, request: Scheduled) -> Any:
        assert self._gate is not None
        async with self._gate:
            return await self._run(request)

    async def _run(self, request: Scheduled) -> Any:
        request.lap(QUEUE)
        if self._only is not None:  # nearly always
            request.begun = True
            call, _, note, span = self._only
            try:
                value = await call(request.value, request)
            finally:
                request.spend(span, note)
            value = request.encode(value)
        else:
            value = await self._through(request)
        if request.head.accept_encoding is None or type(value) is not Encoded:
            return value
        if len(value.body) <= INLINE:
            return request.compress(value)
        return await self._executor.run(request.compress, value)

    async def _through(self, request: Scheduled) -> Any:
        """Run all stages, and encode."""
        value = request.value
        request.begun = self._groups[0][0]  # else it waits for the thread
        for is_async, stages in self._groups[:-1]:
            if is_async:
                value = await self._await(request, stages, value)
            else:
                value = await self._in_thread(request, stages, value, are_last=False)
        is_async, stages = self._groups[-1]
        if not is_async:
            return await self._in_thread(request, stages, value, are_last=True)
        return request.encode(await self._await(request, stages, value))

    async def _await(self, request: Scheduled, stages: tuple[Stage, ...], value: Any) -> Any:
        for call, _, note, span in stages:
            try:
                value = await call(value, request)
            finally:
                request.spend(span, note)
        return value

    async def _in_thread(self, request: Scheduled, stages: tuple[Stage, ...], value: Any, are_last: bool) -> Any:
        """Run stages in the model's thread. What they leave in context variables is there for the stages behind them."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()
        self._executor.submit(context, _run_stages, future, request, stages, value, are_last)
        result = await future
        for variable, held in context.items():
            if variable.get(None) is not held:
                variable.set(held)
        return result


def _run_stages(request: Scheduled, stages: tuple[Stage, ...], value: Any, are_last: bool) -> Any:
    request.lap(QUEUE)
    request.begun = True
    value = request.run_stages(stages, value)
    # Before the thread takes its next request, in which the model may use its arrays again.
    return request.encode(value) if are_last else detached(value)


class BatchScheduler:
    """Lets requests that are nothing but arrays join the batches of a model."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    def submit(self, request: Scheduled) -> None:
        try:
            request.prepare()
            self._batcher.enter(request)
        except Exception as error:
            request.fail(error)

"""The schedulers, which decide when and where a request runs. A scheduler is chosen for each verb when a model is added.

``ThreadScheduler`` runs a request to completion in the model's thread. ``LoopScheduler`` runs a request on the event loop, for
models with an asynchronous stage. ``BatchScheduler`` runs a request together with others.
"""

import asyncio
import contextvars
from itertools import groupby
from typing import Any, Protocol

from mpserve.protocol.codec import Encoded
from mpserve.serving.execution.batcher import Batcher
from mpserve.serving.execution.coroutine_runner import CoroutineRunner
from mpserve.serving.execution.executor import Executor
from mpserve.serving.execution.scheduled import Scheduled
from mpserve.serving.models.spans import QUEUE
from mpserve.serving.models.stages import Stage, Stages, detached

SMALL = 4096  # bytes of a body that is always decoded in the model's thread
BRIEF = 1_000_000
"""Nanoseconds. A model that takes longer may release the GIL meanwhile, so the event loop decodes the next request."""

LARGE = 262144  # bytes of a body that the loop always decodes: a search for a timeout would take too long
INLINE = 65536  # bytes of an answer that are compressed on the event loop; more bytes cost milliseconds
TIMEOUT = b"timeout"
LETTER, BACKSLASH = b"o\\"  # most bodies are numbers: to find that one letter is missing costs a tenth


class Scheduler(Protocol):
    """Runs requests, and gives each its outcome."""

    def submit(self, request: Any) -> None:
        """Take a request that has been admitted; on the event loop."""


class ThreadScheduler:
    """Runs each request to completion in the model's thread: decodes, runs the stages, encodes.
    Tasks, futures and hand-overs would be half of the cost of a small request, and the data stays in the thread's cache.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, request: Scheduled) -> None:
        body = request.body
        # The loop decodes a request whose body may hold a timeout, and a large body while the thread is busy.
        if (
            (len(body) > SMALL and (request.infer_before >= BRIEF or len(body) > LARGE))
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
    """Runs the asynchronous stages of requests on the event loop, and the other stages in the model's thread.

    Args:
        executor: runs the synchronous stages.
        stages: the stages of the verb.
        gate: limits the requests that run at the same time; None: no limit.
    """

    def __init__(self, executor: Executor, stages: Stages, gate: asyncio.Semaphore | None) -> None:
        self._executor = executor
        self._groups = [(is_async, tuple(group)) for is_async, group in groupby(stages.stages, lambda s: s.is_async)]
        self._only = stages.stages[0] if stages.waits and len(stages.stages) == 1 else None  # of a single stage
        self._gate = gate
        self._runner = CoroutineRunner(self._run if gate is None else self._run_gated)

    def submit(self, request: Scheduled) -> None:
        try:
            request.prepare()  # may limit the time at the gate
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
            stage = self._only
            try:
                value = await stage.call(request.value, request)
            finally:
                request.spend(stage.span, stage.note)
            value = request.encode(value)
        else:
            value = await self._through(request)
        if request.head.accept_encoding is None or type(value) is not Encoded:
            return value
        if len(value.body) <= INLINE:
            return request.compress(value)
        return await self._executor.run(request.compress, value)

    async def _through(self, request: Scheduled) -> Any:
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
        for stage in stages:
            try:
                value = await stage.call(value, request)
            finally:
                request.spend(stage.span, stage.note)
        return value

    async def _in_thread(self, request: Scheduled, stages: tuple[Stage, ...], value: Any, are_last: bool) -> Any:
        """Run stages in the model's thread. Later stages see the context variables that these stages set."""
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
    """Puts requests whose only stage is predict on arrays into the batches of a model."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    def submit(self, request: Scheduled) -> None:
        try:
            request.prepare()
            self._batcher.enter(request)
        except Exception as error:
            request.fail(error)

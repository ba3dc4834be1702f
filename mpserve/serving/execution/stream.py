"""An answer in parts: the model returns a generator, asynchronous or not, or any other iterator.

Each step of a synchronous iterator is a job for the model's threads, so other requests are answered between two steps. A step
of an asynchronous iterator runs on the event loop. Both count as a call for ``concurrency``. A part is encoded within its
step: a model may use its arrays again in its next step. The model is held until the end or ``aclose``.
"""

import asyncio
import contextvars
import logging
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from time import perf_counter
from typing import Any, Protocol

from mpserve.errors import DeadlineExceeded, ServerNotReady
from mpserve.serving.execution.executor import Executor, as_failure

logger = logging.getLogger(__name__)
Source = Iterator[Any] | AsyncIterator[Any]
END = object()  # the result of a step after the last part


def cut_short() -> ServerNotReady:
    """What is said of an answer that was closed before its end."""
    return ServerNotReady("the answer was cut short: its generator was closed")


class Streaming(Protocol):
    """The request that is answered in parts.
    ``late`` makes the error for a first part that is not there in time. ``stream_ended`` lets go of the model.
    """

    context: contextvars.Context
    label: str

    def encode_part(self, part: Any) -> bytes: ...
    def blame(self, error: BaseException) -> Exception: ...
    def late(self, seconds: float) -> DeadlineExceeded: ...
    def stream_ended(self, is_whole: bool) -> None: ...


class ModelStream(AsyncIterator[bytes]):
    """The parts of one answer. The reader reads to the end or to the first error, or calls ``aclose``.

    Args:
        request: the request to answer.
        source: the iterator that the model returned.
        executor: runs the steps of a synchronous source.
        gate: limits the steps of asynchronous sources; None: no limit.
        within: seconds in which the first part must be there; infinite: no limit.
    """

    def __init__(
        self,
        request: Streaming,
        source: Source,
        executor: Executor,
        gate: asyncio.Semaphore | None,
        within: float = math.inf,
    ) -> None:
        self.request = request
        self._within = within
        self._late = False
        self._steps: Steps = (
            OnLoop(source, gate, request.encode_part)
            if isinstance(source, AsyncIterator)
            else InThread(source, executor, request)
        )
        self._first: Any = None  # the first part, if ``prime`` has read it
        self._step: asyncio.Future[Any] | None = None
        self._exhausted = False
        self._closing: asyncio.Future[None] | None = None

    @property
    def mean_step(self) -> float:
        """Seconds of the model's own time for each part that was made."""
        return self._steps.seconds / max(self._steps.count, 1)

    async def prime(self) -> None:
        """Read the first part ahead, so that a failure of the first part can be answered.

        Raises as ``__anext__``; ServerNotReady also if the stream was closed meanwhile.
        """
        self._first = await anext(self, END)
        if self._first is not END and self._closing is not None:
            raise cut_short()

    async def __anext__(self) -> bytes:
        """The next part. An error and the end close the stream.

        Raises:
            MPServeError: the model failed, and the log has the details.
            DeadlineExceeded: the first part is late.
            ServerNotReady: the worker ended before the answer did.
        """
        first, self._first = self._first, None
        if first is END or self._exhausted:
            raise StopAsyncIteration
        if first is not None:
            return bytes(first)
        try:
            part: Any = await self._next()
        except Exception as error:
            fault = self.request.blame(error)
            await self.aclose()
            raise fault from fault.__cause__
        if part is not END:
            return bytes(part)
        self._exhausted = True
        await self.aclose()
        raise StopAsyncIteration

    async def _next(self) -> Any:
        if self._closing is None:
            self._step = self.request.context.copy().run(asyncio.ensure_future, self._steps.step())
            # Not awaited directly: a cancelled reader differs from a cancelled step.
            within, self._within = self._within, math.inf
            await asyncio.wait({self._step}, timeout=None if within == math.inf else within)
            if not self._step.done():
                self._late = True
                raise self.request.late(within)
            if not self._step.cancelled():
                return self._step.result()
        raise cut_short()

    async def aclose(self) -> None:
        """Stop the model's iterator, run the ``finally`` blocks of its generator, and let go of the model."""
        closing = self.close()
        if not self._late:  # else the client would wait for the step that is late
            await asyncio.shield(closing)

    def close(self) -> "asyncio.Future[None]":
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        return self._closing

    async def _close(self) -> None:
        try:
            if self._step is not None:
                self._steps.closing = True
                self._step.cancel()
                await asyncio.gather(self._step, return_exceptions=True)
            await self._steps.close()
        except Exception:
            logger.exception("a generator of model %s could not be closed", self.request.label)
        finally:
            self.request.stream_ended(self._exhausted)


class Steps(Protocol):
    """The steps of an iterator of either kind. ``closing``: a cancelled step was cancelled by ``ModelStream``.
    ``count``: the steps that were taken. ``seconds``: their time, without the time in the queue or at the gate.
    """

    closing: bool
    count: int
    seconds: float

    async def step(self) -> Any:
        """The next part, encoded, or END. Raises whatever the iterator raises, as an ``Exception``."""

    async def close(self) -> None:
        """Close the iterator after the present step, if the iterator can be closed."""


class InThread:
    """A synchronous iterator: each step, and the close, is a job for the model's threads.
    Steps run in the context of the request: the next step sees the context variables that a step sets.
    """

    closing = False
    count = 0
    seconds = 0.0

    def __init__(self, source: Iterator[Any], executor: Executor, request: Streaming) -> None:
        self._source = source
        self._executor = executor
        self._request = request
        self._alone = threading.Lock()  # with several threads the close could come during a step

    async def step(self) -> Any:
        return await self._run(self._advance, self._request.context)

    def _advance(self) -> Any:
        begin = perf_counter()
        part = next(self._source, END)
        if part is not END:
            part = self._request.encode_part(part)
        self.count += 1
        self.seconds += perf_counter() - begin
        return part

    async def close(self) -> None:
        close = getattr(self._source, "close", None)
        if close is not None:
            await self._run(close, self._request.context.copy())  # a step may still be in the other one

    async def _run(self, function: Callable[[], Any], context: contextvars.Context) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._executor.submit(context, self._run_alone, future, function)
        return await future

    def _run_alone(self, function: Callable[[], Any]) -> Any:
        with self._alone:
            return function()


class OnLoop:
    """An asynchronous iterator: each step passes the gate of the model's asynchronous calls."""

    count = 0
    seconds = 0.0

    def __init__(
        self, source: AsyncIterator[Any], gate: asyncio.Semaphore | None, encode: Callable[[Any], bytes]
    ) -> None:
        self.closing = False
        self._source = source
        self._gate = gate
        self._encode = encode

    async def step(self) -> Any:
        if self._gate is None:
            return await self._advance()
        async with self._gate:
            return await self._advance()

    async def _advance(self) -> Any:
        begin = perf_counter()
        try:
            part = await anext(self._source, END)
        except Exception:
            raise
        except BaseException as error:  # some would end the loop, and with it the worker
            if self.closing and isinstance(error, asyncio.CancelledError):
                raise
            raise as_failure(error) from error  # the model's own
        if part is not END:
            part = self._encode(part)
        self.count += 1
        self.seconds += perf_counter() - begin
        return part

    async def close(self) -> None:
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()

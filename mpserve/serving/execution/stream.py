"""An answer that a model gives in parts: a generator, asynchronous or not, or any other iterator.

Each step of a synchronous iterator is a job of its own for the model's threads, so other requests are answered between two
steps; a step of an asynchronous one runs on the event loop, and both count as one call for ``concurrency``. A part is encoded
within its step: a model may use its arrays again in its next step. The model is held until the end or ``aclose``.
"""

import asyncio
import contextvars
import logging
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

from mpserve.errors import DeadlineExceeded, ServerNotReady
from mpserve.serving.execution.executor import Executor, as_failure

logger = logging.getLogger(__name__)

Source = Iterator[Any] | AsyncIterator[Any]

END = object()
"""What a step gives when there is nothing more."""


def cut_short() -> ServerNotReady:
    """What is said of an answer that was closed before its end."""
    return ServerNotReady("the answer was cut short: its generator was closed")


class Streaming(Protocol):
    """The request that is answered in parts."""

    context: contextvars.Context

    @property
    def label(self) -> str:
        """The name of the model in logs."""

    def encode_part(self, part: Any) -> bytes:
        """The bytes of a part."""

    def blame(self, error: BaseException) -> Exception:
        """What the client is told of a failure, which is logged."""

    def late(self, seconds: float) -> DeadlineExceeded:
        """What the client is told where the first part was not there in time."""

    def stream_ended(self, is_whole: bool) -> None:
        """The model is held no longer."""


class ModelStream(AsyncIterator[bytes]):
    """The parts of one answer. Whoever is given one reads it to its end or its first error, or calls ``aclose``.

    Args:
        request: is answered.
        source: what the model returned.
        executor: runs the steps of a synchronous source.
        gate: lets in as many steps of asynchronous sources as the model allows; None: any number.
        within: seconds in which the first part must be there; infinite: any number.
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
        self._first: Any = None
        """The first part, where it was read ahead."""
        self._step: asyncio.Future[Any] | None = None
        self._exhausted = False
        self._closing: asyncio.Future[None] | None = None

    async def prime(self) -> None:
        """Read the first part ahead, so that a failure until then is no part of the answer.

        Raises:
            MPServeError: as ``__anext__``; ServerNotReady also if the stream was closed meanwhile.
        """
        self._first = await anext(self, END)
        if self._first is not END and self._closing is not None:
            raise cut_short()

    async def __anext__(self) -> bytes:
        """The next part. At an error and at the end the stream is closed.

        Raises:
            MPServeError: the model has failed, and the log says how; DeadlineExceeded if it is the first part and late;
                ServerNotReady if the worker had to end before the answer did.
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
            # Not awaited itself, since a reader that is cancelled is something else than a step that is.
            within, self._within = self._within, math.inf
            await asyncio.wait({self._step}, timeout=None if within == math.inf else within)
            if not self._step.done():
                self._late = True
                raise self.request.late(within)
            if not self._step.cancelled():
                return self._step.result()
        raise cut_short()

    async def aclose(self) -> None:
        """Advance the model no further, run the ``finally`` blocks of its generator, and let it go."""
        closing = self.close()
        if not self._late:  # else the client would wait for the step that is late
            await asyncio.shield(closing)

    def close(self) -> "asyncio.Future[None]":
        """Begin with what ``aclose`` does; gives the end of that."""
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
    """An iterator of either kind."""

    closing: bool
    """Whether a step that is cancelled is cancelled from here."""

    async def step(self) -> Any:
        """The next part, encoded, or END. Whatever the iterator raises comes through as an ``Exception``."""

    async def close(self) -> None:
        """Close the iterator, if it is of a kind that can be closed; after the step that is under way."""


class InThread:
    """A synchronous iterator: each step, and its end, is a job for the model's threads.

    Steps run in the context of the request: what one step leaves in a context variable is there for the next.
    """

    closing = False

    def __init__(self, source: Iterator[Any], executor: Executor, request: Streaming) -> None:
        self._source = source
        self._executor = executor
        self._request = request
        self._alone = threading.Lock()
        """With several threads the end could come in the midst of a step, for which nobody waits any more."""

    async def step(self) -> Any:
        return await self._run(self._advance, self._request.context)

    def _advance(self) -> Any:
        part = next(self._source, END)
        return part if part is END else self._request.encode_part(part)

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
        try:
            part = await anext(self._source, END)
        except Exception:
            raise
        except BaseException as error:  # some would end the loop, and with it the worker
            if self.closing and isinstance(error, asyncio.CancelledError):
                raise
            raise as_failure(error) from error  # the model's own
        return part if part is END else self._encode(part)

    async def close(self) -> None:
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()

"""An answer that a model gives in parts: a generator, asynchronous or not, or any other iterator.

Each step of a synchronous one is a job of its own for the model's threads, so other requests are answered between two
steps; a step of an asynchronous one runs on the event loop, and both count as one call for ``concurrency``. The model is
held until the end or ``aclose``.
"""

import asyncio
import logging
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any, NoReturn, Protocol

from mpserve.errors import InferenceError, MPServeError, NotSupported, ServerNotReady
from mpserve.serving.executor import Executor, as_failure
from mpserve.serving.pipeline import Gate
from mpserve.serving.served import Served

logger = logging.getLogger(__name__)

Source = Iterator[Any] | AsyncIterator[Any]

END = object()
"""What a step gives when there is nothing more."""


def blamed(error: Exception, model: str, verb: str) -> MPServeError:
    """What the client is told of ``error``, which a model raised; MPServeErrors say it themselves."""
    if isinstance(error, NotImplementedError):
        return NotSupported(str(error) or f"Model {model} does not implement {verb}.")
    return InferenceError(f"{type(error).__name__} : {error}")


class ModelStream(AsyncIterator[Any]):
    """The parts of one answer. Whoever is given one reads it to its end or its first error, or calls ``aclose``.

    Args:
        served: the model, whose pipeline has given ``source``.
        verb: "predict" or "explain".
        source: what the model returned.
        complete: makes what is handed out of a part.
        ended: told when it has ended, and whether with a whole answer.
        within: seconds in which its first part must be there; infinite: any number.
    """

    def __init__(
        self,
        served: Served,
        verb: str,
        source: Source,
        complete: Callable[[Any], Any],
        ended: Callable[[bool], None],
        within: float = math.inf,
    ) -> None:
        self.served = served
        self.verb = verb
        self._complete = complete
        self._ended = ended
        self._within = within
        self._late = False
        self._steps: Steps = (
            OnLoop(source, served.pipeline.gate)
            if isinstance(source, AsyncIterator)
            else InThread(source, served.executor)
        )
        self._step: asyncio.Future[Any] | None = None
        self._hold = ExitStack()
        self._exhausted = False
        self._closing: asyncio.Future[None] | None = None

    def begin(self) -> "ModelStream":
        """Hold the model."""
        self._hold.enter_context(self.served.streaming(self))
        return self

    async def __anext__(self) -> Any:
        """The next part. At an error and at the end the stream is closed.

        Raises:
            MPServeError: as ``Dataplane.run``; DeadlineExceeded if it is the first and
                late; ServerNotReady if the worker had to end before the answer did.
        """
        if self._exhausted:
            raise StopAsyncIteration
        try:
            part = await self._next()
            if part is not END:
                return self._complete(part)
        except Exception as error:
            await self.aclose()
            if isinstance(error, MPServeError):
                raise
            raise blamed(error, self.served.model.name, self.verb) from error
        self._exhausted = True
        await self.aclose()
        raise StopAsyncIteration

    async def _next(self) -> Any:
        if self._closing is None:
            self._step = asyncio.ensure_future(self._steps.step())
            # Not awaited itself, since a reader that is cancelled is something else than a step that is.
            within, self._within = self._within, math.inf
            await asyncio.wait({self._step}, timeout=None if within == math.inf else within)
            if not self._step.done():
                self._late = True
                raise self.served.admission.late(within)
            if not self._step.cancelled():
                return self._step.result()
        raise ServerNotReady("the answer was cut short: its generator was closed")

    async def aclose(self) -> None:
        """Advance the model no further, run the ``finally`` blocks of its generator, and let it go."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        if not self._late:  # else the client would wait for the step that is late
            await asyncio.shield(self._closing)

    async def refuse(self, words: str) -> NoReturn:
        """Close it, and raise NotSupported."""
        await self.aclose()
        raise NotSupported(words)

    async def _close(self) -> None:
        try:
            if self._step is not None:
                self._step.cancel()
                await asyncio.gather(self._step, return_exceptions=True)
            await self._steps.close()
        except Exception:
            logger.exception("a generator of model %s could not be closed", self.served.label)
        finally:
            self._hold.close()
            self._ended(self._exhausted)


class Steps(Protocol):
    """An iterator of either kind."""

    async def step(self) -> Any:
        """The next item, or END. Whatever the iterator raises comes through."""

    async def close(self) -> None:
        """Close it, if it is of a kind that can be closed; after the step that is under way."""


class InThread:
    """A synchronous iterator: each step, and its end, is a job for the model's threads."""

    def __init__(self, source: Iterator[Any], executor: Executor) -> None:
        self.source = source
        self.executor = executor
        self._alone = threading.Lock()
        """With several threads the end could come in the midst of a step, for which nobody waits any more."""

    async def step(self) -> Any:
        return await self.executor.run(self._run, next, self.source, END)

    async def close(self) -> None:
        close = getattr(self.source, "close", None)
        if close is not None:
            await self.executor.run(self._run, close)

    def _run(self, function: Callable[..., Any], *args: object) -> Any:
        with self._alone:
            return function(*args)


class OnLoop:
    """An asynchronous iterator: each step passes the gate of the model's asynchronous calls."""

    def __init__(self, source: AsyncIterator[Any], gate: Gate) -> None:
        self.source = source
        self.gate = gate

    async def step(self) -> Any:
        async with self.gate:
            try:
                return await anext(self.source, END)
            except SystemExit as error:  # it would end the loop, and with it the worker
                raise as_failure(error) from error

    async def close(self) -> None:
        close = getattr(self.source, "aclose", None)
        if close is not None:
            await close()

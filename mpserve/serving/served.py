"""A model as one worker serves it: its versions, and of each its threads, its pipeline, its requests in flight, its end.

Nothing here knows how a model comes to be loaded, or that there are other workers.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from mpserve.errors import ConfigurationError
from mpserve.metrics import metrics
from mpserve.serving.batching import limits
from mpserve.serving.controlplane import Wanted
from mpserve.serving.executor import Executor
from mpserve.serving.model import Model
from mpserve.serving.pipeline import Pipeline, absent_stages
from mpserve.serving.tally import Tally
from mpserve.serving.versions import SEPARATOR, age
from mpserve.settings import Settings

logger = logging.getLogger(__name__)


class Closing(Protocol):
    """What can be closed before its end."""

    async def aclose(self) -> None: ...


class Hold:
    """Counts those who are within it, at the same time or one in another."""

    __slots__ = ("_count", "_given_up", "_idle")

    def __init__(self) -> None:
        self._count = 0
        self._idle: asyncio.Event | None = None
        self._given_up = False

    def enter(self) -> None:
        self._count += 1

    def leave(self) -> None:
        self._count -= 1
        if self._idle is not None and not self._count:
            self._idle.set()

    async def until_idle(self) -> None:
        """Wait until there is nobody within, or ``give_up``."""
        if self._count and not self._given_up:
            if self._idle is None or self._idle.is_set():
                self._idle = asyncio.Event()
            await self._idle.wait()

    def give_up(self) -> None:
        """Let nobody wait any longer."""
        self._given_up = True
        if self._idle is not None:
            self._idle.set()


class Served:
    """One version of a model in a worker: its threads and its pipeline.

    ``one_of_several`` says that the model has other versions, so that logs and answers have to tell them apart.

    Raises:
        ConfigurationError: the model declares what cannot be: its concurrency, its batches, or a tensor's datatype.
    """

    def __init__(self, model: Model, on_thread: Callable[[], object], one_of_several: bool, settings: Settings) -> None:
        if model.concurrency is not None and model.concurrency < 1:
            raise ConfigurationError(
                f"model {model.name}: concurrency is {model.concurrency}, expected None or a number of 1 or more"
            )
        self.model = model
        self.one_of_several = one_of_several
        self.label = f"{model.name}{SEPARATOR}{model.version}" if one_of_several else model.name
        """What it is called in logs and errors."""
        self.limits = limits(model, settings)
        """Of its batches, if it has any."""
        self.executor = Executor(self.label, model.concurrency or 1, on_thread)
        self.pipeline = Pipeline(
            model, self.executor, metrics().stage_observers(model.name, absent_stages(model)), self.limits
        )
        self.express = None if one_of_several else self.pipeline.only_tensors
        """The model, if a plain request can be answered without a message being made of it."""
        self.tally: Tally | None = None
        """Its counts in this worker, from its first request on."""
        self.last_infer = 0
        """Nanoseconds that it took for the last request."""
        self.held = Hold()
        """Keeps the model from being stopped, while a request is being answered by it."""
        self._streams: set[Closing] = set()

    async def call(self, method: Callable[[], Any]) -> Any:
        """A method of the model: in its thread if it is synchronous, on the loop if it is not."""
        return await call(method, self.executor)

    @contextmanager
    def streaming(self, stream: "Closing") -> Iterator[None]:
        """Know that it answers in parts, so that ``stop`` closes the stream if it has not ended by then."""
        self._streams.add(stream)
        try:
            yield
        finally:
            self._streams.discard(stream)

    def abandon_requests(self) -> None:
        """Wait for requests in flight no longer: the worker ends."""
        self.held.give_up()

    async def retire(self) -> None:
        """Stop it once its requests in flight are done."""
        await self.held.until_idle()
        await self.stop()

    async def stop(self) -> None:
        """Run the model's ``stop`` in its own thread, and let its threads go. A failing one is logged."""
        await asyncio.gather(*(stream.aclose() for stream in self._streams))
        try:
            await self.call(self.model.stop)
            if self.model.engine:
                await self.call(self.model.stop_engine)
        except Exception:
            logger.exception("stop() of model %s failed", self.label)
        self.executor.close()


class Group:
    """A wanted model in a worker: all its versions, which are brought up, served and ended together.

    Iterates over them from the oldest to the newest, which is the one that answers when none is named.
    """

    def __init__(self, wanted: Wanted, versions: Iterable[Served]) -> None:
        self.wanted = wanted
        self._versions = sorted(versions, key=lambda served: age(served.model.version))
        self.newest = self._versions[-1]

    def __iter__(self) -> Iterator[Served]:
        return iter(self._versions)

    @property
    def versions(self) -> list[str]:
        """From the oldest to the newest."""
        return [served.model.version for served in self]

    def find(self, version: str) -> Served | None:
        """The version of this name."""
        for served in self._versions:
            if served.model.version == version:  # asked of the model: its load() may have set it
                return served
        return None


async def call(method: Callable[[], Any], executor: Executor) -> Any:
    """A method: in a thread of ``executor`` if it is synchronous, on the loop if it is not."""
    if inspect.iscoroutinefunction(method):
        return await method()
    result = await executor.run(method)
    return await result if inspect.isawaitable(result) else result

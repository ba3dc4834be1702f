"""A model as one worker serves it: its threads, its pipeline, its requests in flight, and its end.

Nothing here knows how a model comes to be loaded, or that there are other workers.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mpserve.errors import ConfigurationError
from mpserve.metrics import metrics
from mpserve.serving.controlplane import Wanted
from mpserve.serving.executor import Executor
from mpserve.serving.model import Model
from mpserve.serving.pipeline import Pipeline

logger = logging.getLogger(__name__)


class Served:
    """A model in a worker: its threads, its pipeline, its place in the wanted set.

    Raises:
        ConfigurationError: the model declares what cannot be: its concurrency, or a tensor's datatype.
    """

    def __init__(self, model: Model, wanted: Wanted, on_thread: Callable[[], object]) -> None:
        if model.concurrency is not None and model.concurrency < 1:
            raise ConfigurationError(
                f"model {model.name}: concurrency is {model.concurrency}, expected None or a number of 1 or more"
            )
        self.model = model
        self.wanted = wanted
        self.executor = Executor(model.name, model.concurrency or 1, on_thread)
        self.pipeline = Pipeline(model, self.executor, metrics().stage_observers(model.name))
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def call(self, method: Callable[[], Any]) -> Any:
        """A method of the model: in its thread if it is synchronous, on the loop if it is not."""
        return await call(method, self.executor)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the model from being stopped, while a request is being answered by it."""
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    def abandon_requests(self) -> None:
        """Wait for requests in flight no longer: the worker ends."""
        self._idle.set()

    async def retire(self) -> None:
        """Stop it once its requests in flight are done."""
        await self._idle.wait()
        await self.stop()

    async def stop(self) -> None:
        """Run the model's ``stop`` in its own thread, and let its threads go. A failing one is logged."""
        try:
            await self.call(self.model.stop)
            if self.model.engine:
                await self.call(self.model.stop_engine)
        except Exception:
            logger.exception("stop() of model %s failed", self.model.name)
        self.executor.close()


async def call(method: Callable[[], Any], executor: Executor) -> Any:
    """A method: in a thread of ``executor`` if it is synchronous, on the loop if it is not."""
    if inspect.iscoroutinefunction(method):
        return await method()
    result = await executor.run(method)
    return await result if inspect.isawaitable(result) else result

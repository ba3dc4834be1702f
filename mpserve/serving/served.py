"""A model as one worker serves it: its versions, and of each its threads, its pipeline, its requests in flight, its end.

Nothing here knows how a model comes to be loaded, or that there are other workers.
"""

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from mpserve.errors import ConfigurationError, ServerNotReady
from mpserve.logging import model as model_in_log
from mpserve.metrics import metrics
from mpserve.serving.admission import Admission, Hold, policy
from mpserve.serving.batching import limits
from mpserve.serving.controlplane import Wanted
from mpserve.serving.executor import Executor
from mpserve.serving.model import Model
from mpserve.serving.pipeline import Pipeline, absent_stages
from mpserve.serving.stuck import Watchdog
from mpserve.serving.tally import Tally
from mpserve.serving.versions import SEPARATOR, age
from mpserve.settings import Settings

logger = logging.getLogger(__name__)


class Closing(Protocol):
    """What can be closed before its end."""

    async def aclose(self) -> None: ...


class Served:
    """One version of a model in a worker: its threads and its pipeline.

    ``one_of_several`` says that the model has other versions, so that logs and answers have to tell them apart.

    Raises:
        ConfigurationError: the model declares what cannot be: its concurrency, its batches, its
            queue or deadline, or a tensor's datatype.
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
        rules = policy(model, settings)
        self.admission = Admission(model.name, self.label, self.pipeline.slots, rules, self.held)
        """Its door."""
        is_free = model.concurrency is None and self.pipeline.batcher is None and not self.admission.is_limited
        self.here = self.express if is_free and self.pipeline.waits("predict") else None
        """The model, if a plain request can be answered on the event loop without more ado."""
        self.context = contextvars.copy_context()
        """What a request has a copy of: lines that are logged in it name the model."""
        self.context.run(model_in_log.set, self.label)
        self.stuck = False
        """Whether all its threads are in calls that do not come back."""
        self._watchdog = Watchdog(self.executor, rules.seconds + settings.stuck_grace)
        self._own_calls = 0
        self._streams: set[Closing] = set()

    async def call(self, method: Callable[[], Any]) -> Any:
        """A method of the model: in its thread if it is synchronous, on the loop if it is not."""
        self._own_calls += 1
        try:
            return await call(method, self.executor)
        finally:
            self._own_calls -= 1

    def find_stuck(self, now: float) -> bool:
        """Whether one of its threads, at ``now``, has been in one request for so long that it will not come back.

        The model is out of service from then on, and what waits for its last thread is refused. To be called often.
        """
        stuck = self._watchdog.look(now)
        if not stuck or self._own_calls:  # a load may take its time
            return False
        if self.model.ready:
            self.model.ready = False
            logger.error(
                "model %s: a call has run for more than %g s (request_timeout and stuck_grace); it is given up and the"
                " model is out of service. Its thread is at:\n%s",
                self.label, self._watchdog.patience, self._watchdog.stacks(stuck),
            )  # fmt: skip
        self.stuck = len(stuck) == self.executor.threads
        if self.stuck:
            words = f"Model {self.label} is stuck in an earlier request; this worker is being replaced."
            self.admission.abandon(ServerNotReady(words))
        return True

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
            if self.stuck:
                logger.error("stop() of model %s is left out, since no thread is free for it", self.label)
                return
            await self.call(self.model.stop)
            if self.model.engine:
                await self.call(self.model.stop_engine)
        except Exception:
            logger.exception("stop() of model %s failed", self.label)
        finally:
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

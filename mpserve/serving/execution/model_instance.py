"""A model as one worker serves it: its versions, and of each its threads, its pipeline, its requests in flight, its end.

Nothing here knows how a model comes to be loaded, or that there are other workers.
"""

import asyncio
import contextvars
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError, ServerNotReady
from mpserve.protocol.declaration import Tensor, declared_of
from mpserve.serving.execution.admission import Admission, InFlight, policy
from mpserve.serving.execution.batcher import Batcher, limits
from mpserve.serving.execution.executor import Executor
from mpserve.serving.execution.model_counters import ModelCounters
from mpserve.serving.execution.schedulers import BatchScheduler, LoopScheduler, Scheduler, ThreadScheduler
from mpserve.serving.execution.watchdog import Watchdog
from mpserve.serving.models.model import Model
from mpserve.serving.models.stages import VERBS, Stages, absent_stages, stages_of
from mpserve.serving.models.tensors import TensorModel
from mpserve.serving.models.versions import SEPARATOR
from mpserve.telemetry.logging import model as model_in_log
from mpserve.telemetry.metrics import metrics

logger = logging.getLogger(__name__)


class Closing(Protocol):
    """What can be closed before its end."""

    async def aclose(self) -> None: ...


class ModelInstance:
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
        self.durations = metrics().stage_durations(model.name, absent_stages(model))
        """The histogram of each stage."""
        self.batcher = (
            Batcher(model, self.executor, self.limits, self.durations["predict"])
            if self.limits is not None and isinstance(model, TensorModel)
            else None
        )
        join = None if self.batcher is None else self.batcher.join
        self.stages = {verb: stages_of(model, verb, self.durations, join) for verb in VERBS}
        """By verb."""
        gated = model.concurrency is not None and self.batcher is None  # the batcher keeps to the concurrency itself
        self.gate = asyncio.Semaphore(model.concurrency or 1) if gated else None
        """Lets in as many asynchronous calls as the model allows; None: any number."""
        self.schedulers = {verb: self._scheduler(stages) for verb, stages in self.stages.items()}
        """By verb: who runs a request when."""
        self.counters: ModelCounters | None = None
        """Its counts in this worker, from its first request on."""
        self.last_infer = 0
        """Nanoseconds that it took for the last request."""
        self.in_flight = InFlight()
        """Keeps the model from being stopped, while a request is being answered by it."""
        rules = policy(model, settings)
        self.admission = Admission(model.name, self.label, self._slots(), rules, self.in_flight)
        self.context = contextvars.copy_context()
        """What a request has a copy of: lines that are logged in it name the model."""
        self.context.run(model_in_log.set, self.label)
        self.declare(())
        self._stuck_threads = 0
        """How many of its threads are in calls that do not come back."""
        self._watchdog = Watchdog(self.executor, rules.seconds + settings.stuck_grace)
        self._own_calls = 0
        self.streams: set[Closing] = set()
        """Answers in parts that have not come to their end, which ``stop`` closes."""
        self._ending: set[asyncio.Task[None]] = set()
        """Tasks of requests that were cancelled, until their ends, for which ``stop`` waits."""

    def declare(self, inputs: Sequence[Tensor]) -> None:
        """Keep what the model declares, which its ``load`` may have set; ``inputs`` of a model that speaks no arrays."""
        model = self.model
        speaks_arrays = isinstance(model, TensorModel)
        self.declared = declared_of(model.inputs if isinstance(model, TensorModel) else inputs)
        self.model_outputs = declared_of(model.outputs if isinstance(model, TensorModel) else ())
        self.is_batched = speaks_arrays and all(list(tensor.shape[:1]) == [-1] for tensor in self.declared)
        """Whether the first dimension of the inputs is the batch."""
        if self.batcher is not None:
            self.batcher.outputs = self.model_outputs

    def _scheduler(self, stages: Stages) -> Scheduler:
        if self.batcher is not None and stages.only_arrays:
            return BatchScheduler(self.batcher)
        return LoopScheduler(self.executor, stages, self.gate) if stages.waits else ThreadScheduler(self.executor)

    def _slots(self) -> float:
        """Requests that can be answered at once; infinite where none ever waits."""
        if self.batcher is None and self.model.concurrency is None:
            return math.inf if all(stage.is_async for stage in self.stages["predict"].stages) else 1
        size = self.limits.size if self.limits is not None and self.batcher is not None else 1
        return size * (self.model.concurrency or 1)

    async def call(self, method: Callable[[], Any]) -> Any:
        """A method of the model: in its thread if it is synchronous, on the loop if it is not."""
        self._own_calls += 1
        try:
            return await call(method, self.executor)
        finally:
            self._own_calls -= 1

    @property
    def stuck(self) -> bool:
        """Whether all its threads are in calls that do not come back."""
        return self._stuck_threads == self.executor.threads

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
        self._stuck_threads = len(stuck)
        if self.stuck:
            words = f"Model {self.label} is stuck in an earlier request; this worker is being replaced."
            self.admission.abandon(ServerNotReady(words))
        return True

    def abandon_requests(self) -> None:
        """Wait for requests in flight no longer: the worker ends."""
        self.in_flight.give_up()

    async def retire(self) -> None:
        """Stop it once its requests in flight are done."""
        await self.in_flight.until_idle()
        await self.stop()

    def end(self, task: "asyncio.Task[None]") -> None:
        """Cancel the task of a request, which may take its time to end."""
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.cancel()

    async def _settle(self) -> None:
        """Wait for the calls whose clients have gone: their requests are not in flight any more."""
        if self._ending:
            await asyncio.wait(self._ending)
        if self.batcher is not None:
            await self.batcher.settle()
        await self.executor.settle(self._stuck_threads)

    async def stop(self) -> None:
        """Run the model's ``stop`` in its own thread, after its last call, and let its threads go. A failing one is logged."""
        await asyncio.gather(*(stream.aclose() for stream in self.streams))
        try:
            if self.stuck:
                logger.error("stop() of model %s is left out, since no thread is free for it", self.label)
                return
            await self._settle()
            await self.call(self.model.stop)
            if self.model.engine:
                await self.call(self.model.stop_engine)
        except Exception:
            logger.exception("stop() of model %s failed", self.label)
        finally:
            self.executor.close()


async def call(method: Callable[[], Any], executor: Executor) -> Any:
    """A method: in a thread of ``executor`` if it is synchronous, on the loop if it is not."""
    if inspect.iscoroutinefunction(method):
        return await method()
    result = await executor.run(method)
    return await result if inspect.isawaitable(result) else result

"""A model as one worker serves it: its threads, its pipeline, its requests in flight, and its end.

This module does not know how a model comes to be loaded, or that there are other workers.
"""

import asyncio
import contextvars
import gc
import inspect
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mpserve.config.settings import Settings
from mpserve.errors import (
    AcceleratorFailed,
    AcceleratorOutOfMemory,
    ConfigurationError,
    DeadlineExceeded,
    ServerNotReady,
)
from mpserve.protocol.declaration import Declared, Tensor, declared_of
from mpserve.serving.execution.admission import Admission, InFlight, Policy, policy
from mpserve.serving.execution.batcher import Batcher, limits
from mpserve.serving.execution.executor import Executor, Watchdog
from mpserve.serving.execution.model_counters import ModelCounters
from mpserve.serving.execution.priority import PriorityQueue, PriorityScheduler, levels_of
from mpserve.serving.execution.rates import Rates
from mpserve.serving.execution.schedulers import BatchScheduler, LoopScheduler, Scheduler, ThreadScheduler
from mpserve.serving.execution.stream import ModelStream
from mpserve.serving.fitting.binding import Bind
from mpserve.serving.fitting.fit import fit_inputs
from mpserve.serving.models.model import Model
from mpserve.serving.models.stages import VERBS, Stages, absent_stages, stages_of
from mpserve.serving.models.tensor_model import TensorModel
from mpserve.serving.models.versions import SEPARATOR
from mpserve.telemetry import tracing
from mpserve.telemetry.logging import model as model_in_log
from mpserve.telemetry.metrics import metrics

logger = logging.getLogger(__name__)

ALONE = 2  # references to an object that only a list holds, with the argument of getrefcount
LINGER, PAUSE = 2.0, 0.02  # seconds to wait for the last other holder of a model, and between two looks
SHORTAGES = 5
"""Requests in a row for which the accelerator had too little memory, after which the worker is replaced."""


class ModelInstance:
    """One version of a model in a worker: its threads and its pipeline.
    ``one_of_several``: the model has other versions, so logs and answers name the version.
    Raises ConfigurationError if the model declares an impossible concurrency, batch, queue, deadline or datatype.
    """

    def __init__(
        self, model: Model, on_thread: Callable[[], object], one_of_several: bool, settings: Settings, rates: Rates
    ) -> None:
        if model.concurrency is not None and model.concurrency < 1:
            raise ConfigurationError(
                f"model {model.name}: concurrency is {model.concurrency}, expected None or a number of 1 or more"
            )
        self.model = model
        self.one_of_several = one_of_several
        self.label = f"{model.name}{SEPARATOR}{model.version}" if one_of_several else model.name
        self.limits = limits(model, settings)
        self.executor = Executor(self.label, model.concurrency or 1, on_thread)
        self.observed = metrics().of_model(model.name, model.version, absent_stages(model))
        self.batcher = (
            Batcher(model, self.executor, self.limits, self.observed)
            if self.limits is not None and isinstance(model, TensorModel)
            else None
        )
        join = None if self.batcher is None else self.batcher.join
        self.stages = {verb: stages_of(model, verb, self.observed.stages, self._binding, join) for verb in VERBS}
        gated = model.concurrency is not None and self.batcher is None  # the batcher keeps to the concurrency itself
        self.gate = asyncio.Semaphore(model.concurrency or 1) if gated else None  # limits asynchronous calls
        self.counters: ModelCounters | None = None  # set by the first request
        self.last_infer = 0  # nanoseconds that the model took for the last request
        self.in_flight = InFlight()  # delays the stop of the model
        rules = policy(model, settings)
        self.admission = Admission(model.name, model.version, self.label, self._slots(), rules, self.in_flight)
        self.schedulers = self._scheduled(model, settings, rates)
        self.context = contextvars.copy_context()  # each request gets a copy, so its log lines name the model
        self.context.run(model_in_log.set, self.label)
        tracing.leave_out(self.context)
        self._declare(declared_of(()), partial(fit_inputs, ()))
        self._stuck_threads = 0  # how many threads of the model are in calls that do not come back
        self._watchdog = Watchdog(self.executor, _patience(rules, settings))
        self._own_calls = 0
        self._shortages = 0  # requests in a row for which the accelerator had too little memory
        self._answered_before = 0  # requests that were answered before the last of them
        self.streams: set[ModelStream] = set()  # answers in parts that have not ended; ``stop`` closes them
        self._ending: set[asyncio.Task[None]] = set()  # tasks of cancelled requests; ``stop`` waits for their ends

    def declare(self, inputs: Sequence[Tensor]) -> None:
        """Keep the declared tensors, which ``load`` may have set; ``inputs`` are those of a model that is no TensorModel."""
        model = self.model
        if isinstance(model, TensorModel):
            declared = declared_of(model.inputs, model.takes_missing(), model.wants_table())
            self._declare(declared, model.binding())
        else:
            self._declare(declared_of(inputs, model.takes_missing()), self.bind)

    def _declare(self, declared: Declared, bind: Bind) -> None:
        model = self.model
        speaks_arrays = isinstance(model, TensorModel)
        self.declared, self.bind = declared, bind
        self.model_outputs = declared_of(model.outputs if isinstance(model, TensorModel) else ())
        self.is_batched = speaks_arrays and all(list(tensor.shape[:1]) == [-1] for tensor in self.declared)
        """Whether the first dimension of the inputs is the batch."""
        if self.batcher is not None:
            self.batcher.outputs = self.model_outputs

    def _binding(self) -> tuple[Declared, Bind]:
        return self.declared, self.bind

    def _scheduled(self, model: Model, settings: Settings, rates: Rates) -> dict[str, Scheduler]:
        """The scheduler of each verb, behind the limits and the priority queue of the model, if it has any."""
        schedulers = {verb: self._scheduler(stages) for verb, stages in self.stages.items()}
        levels, quota = levels_of(model, settings), rates.of_model(model, self.label)
        is_bounded = self.admission.slots != math.inf  # else the model can answer any number at once, and has no queue
        queue = PriorityQueue(levels, self.admission, self._size) if levels is not None and is_bounded else None
        self.admission.limit(rates if quota is not None or rates.of_callers.is_set else None, quota, queue)
        if queue is None:
            return schedulers
        return {verb: PriorityScheduler(queue, scheduler) for verb, scheduler in schedulers.items()}

    def _scheduler(self, stages: Stages) -> Scheduler:
        if self.batcher is not None and stages.only_arrays:
            return BatchScheduler(self.batcher)
        return LoopScheduler(self.executor, stages, self.gate) if stages.waits else ThreadScheduler(self.executor)

    def _slots(self) -> float:
        """The number of requests that can be answered at once; infinite if no request ever waits."""
        if self.batcher is None and self.model.concurrency is None:
            return math.inf if all(stage.is_async for stage in self.stages["predict"].stages) else 1
        return self._size * (self.model.concurrency or 1)

    @property
    def _size(self) -> int:
        """The most rows of a batch; 1: the model has no batches."""
        return self.limits.size if self.limits is not None and self.batcher is not None else 1

    async def call(self, method: Callable[[], Any]) -> Any:
        """Call a method of the model: in its thread if the method is synchronous, else on the loop."""
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
        """Whether a thread of the model has been in one call for too long at ``now``. To be called often.
        A stuck thread takes the model out of service, and its request is late. If every thread is stuck, waiting requests are
        refused.
        """
        patience = self._watchdog.patience
        stuck = self._watchdog.look(now)
        if not stuck or self._own_calls:  # a load may take its time
            return False
        if self.model.ready:
            self.model.ready = False
            logger.error(
                "model %s: a call has run for more than %g s (request_timeout and stuck_grace, or stuck_timeout); it is given"
                " up and the model is out of service. Its thread is at:\n%s",
                self.label, patience, self._watchdog.stacks(stuck),
            )  # fmt: skip
        self._stuck_threads = len(stuck)
        self.executor.give_up(
            stuck,
            DeadlineExceeded(f"Model {self.label} did not answer within {patience:g} s; it is stuck."),
            ServerNotReady(f"Model {self.label} is stuck in an earlier request; this worker is being replaced."),
        )
        return True

    def note_accelerator(self, fault: AcceleratorFailed, answered: int) -> bool:
        """Whether only a new worker can serve the model after this failure; the model is out of service then.
        ``answered``: the requests to the model that have been answered, from which a row of failures is told.
        """
        if isinstance(fault, AcceleratorOutOfMemory):
            self._shortages = self._shortages + 1 if answered == self._answered_before else 1
            self._answered_before = answered
            if self._shortages < SHORTAGES:
                return False
        self.model.ready = False
        return True

    def abandon_requests(self) -> None:
        """End the wait for requests in flight: the worker ends."""
        self.in_flight.give_up()

    async def retire(self) -> None:
        """Stop the model after its requests, and let go of it."""
        await self.in_flight.until_idle()
        await self._stop()
        self.let_go()

    def let_go(self) -> None:
        """End the model's threads. One of them lets go of the model last, so that its destructors run there, not on the loop."""
        if not self.stuck:
            done = asyncio.get_running_loop().create_future()
            self.executor.submit(contextvars.copy_context(), _outlive, done, [self.model])
        self.executor.close()

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
        """Run the model's ``stop`` in its own thread, after its last call, and end its threads. A failure is logged."""
        try:
            await self._stop()
        finally:
            self.executor.close()

    async def _stop(self) -> None:
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


def _outlive(models: list[Model]) -> None:
    """Wait until nobody else holds the only model of the list, then let go of it."""
    until = time.monotonic() + LINGER
    while sys.getrefcount(models[0]) > ALONE and time.monotonic() < until:
        time.sleep(PAUSE)
    models.clear()
    gc.collect()  # for a model that refers to itself; otherwise any thread might collect it


def _patience(rules: Policy, settings: Settings) -> float:
    """Seconds after which a call is stuck. Without a deadline nobody has said how long a request may take."""
    if rules.seconds == math.inf:
        return settings.stuck_timeout or math.inf
    return rules.seconds + settings.stuck_grace


async def call(method: Callable[[], Any], executor: Executor) -> Any:
    """Call a method: in a thread of ``executor`` if the method is synchronous, else on the loop."""
    if inspect.iscoroutinefunction(method):
        return await method()
    result = await executor.run(method)
    return await result if inspect.isawaitable(result) else result

"""One model's stages: preprocess, validate, predict or explain, postprocess, sync or async, timed and off the loop.

Which method is asynchronous, which takes headers, and which the model has not overridden at all is found out once, when
the model is added. A wholly synchronous model costs one hop to its executor per request, whatever the number of stages.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from inspect import Parameter, iscoroutinefunction, signature
from typing import Any, NamedTuple

from mpserve.serving.batching import Batcher, Limits
from mpserve.serving.conversion import tensor_stage
from mpserve.serving.executor import Executor, as_failure
from mpserve.serving.model import Model
from mpserve.serving.tally import INFER, INPUT, OUTPUT, QUEUE, Stopwatch
from mpserve.serving.tensors import TensorModel

Headers = dict[str, str]
StageCall = Callable[[Any, Headers, Headers, Stopwatch], Any]
Observers = Mapping[str, Callable[[float], None]]
Gate = AbstractAsyncContextManager[Any]

BEFORE = ("preprocess", "validate")
VERBS = ("predict", "explain")
NANO = 1e-9


class Stage(NamedTuple):
    """A method of the model as ``call(payload, headers, response_headers, watch)``.

    ``observe`` takes its seconds; ``part`` is what its time, or the end of it that it does not account for, is spent on.
    """

    call: StageCall
    is_async: bool
    observe: Callable[[float], None]
    part: int


def unobserved(seconds: float) -> None:
    """``validate`` has no histogram in the SDK; a batch observes its members' predict itself, without their waiting."""


class Pipeline:
    """Runs a model's stages. ``run`` is the only way to a model's predict. With ``limits`` that is in batches."""

    def __init__(self, model: Model, executor: Executor, observers: Observers, limits: Limits | None = None) -> None:
        self.model = model
        self.executor = executor
        self.batcher: Batcher | None = None
        if limits is not None and isinstance(model, TensorModel):
            self.batcher = Batcher(model, executor, limits, observers.get("predict", unobserved))
        self._stages = {verb: _stages(model, verb, observers, self.batcher) for verb in VERBS}
        self.observe_predict = observers.get("predict", unobserved)
        """Notes the seconds of a predict that did not come this way."""
        self._waits = {verb for verb, stages in self._stages.items() if any(stage.is_async for stage in stages)}
        # Members of a batch must be let in together, and the batcher keeps to the concurrency itself.
        gated = model.concurrency is not None and self.batcher is None
        self.gate: Gate = asyncio.Semaphore(model.concurrency or 1) if gated else nullcontext()
        self.slots = self._slots(limits)
        """Requests that can be answered at once; infinite where none ever waits."""

    def _slots(self, limits: Limits | None) -> float:
        if self.batcher is None and self.model.concurrency is None:
            return math.inf if all(stage.is_async for stage in self._stages["predict"]) else 1
        size = limits.size if limits is not None and self.batcher is not None else 1
        return size * (self.model.concurrency or 1)

    async def run(self, verb: str, payload: Any, headers: Headers, watch: Stopwatch) -> tuple[Any, Headers]:
        """The model's answer and the response headers it set. Whatever the model raises comes through.

        The model is given a copy of the headers, since some change them, and other requests may share them.
        """
        headers = headers.copy()
        response_headers: Headers = {}
        if verb not in self._waits:
            result = await self.executor.run(
                _run_in_turn, self._stages[verb], payload, headers, response_headers, watch
            )
            return result, response_headers
        async with self.gate:
            result = await self._run_mixed(self._stages[verb], payload, headers, response_headers, watch)
        return result, response_headers

    def waits(self, verb: str) -> bool:
        """Whether a stage of it is asynchronous, or the batch of others: it cannot ``run_here``."""
        return verb in self._waits

    def run_here(self, verb: str, payload: Any, headers: Headers, watch: Stopwatch) -> tuple[Any, Headers]:
        """As ``run``, in the model's thread."""
        response_headers: Headers = {}
        return _run_sync(self._stages[verb], payload, headers.copy(), response_headers, watch), response_headers

    @property
    def begins_with_arrays(self) -> bool:
        """Whether nothing sees a predict's payload before it is made arrays."""
        return isinstance(self.model, TensorModel) and not any(_overrides(self.model, name) for name in BEFORE)

    @property
    def only_tensors(self) -> TensorModel | None:
        """The model, if there is nothing to a predict but its arrays, whether it joins a batch with them or not."""
        is_alone = len(self._stages["predict"]) == 1
        return self.model if is_alone and isinstance(self.model, TensorModel) else None

    async def _run_mixed(
        self, stages: list[Stage], payload: Any, headers: Headers, response_headers: Headers, watch: Stopwatch
    ) -> Any:
        for stage in stages:
            if not stage.is_async:
                payload = await self.executor.run(_run_in_turn, [stage], payload, headers, response_headers, watch)
                continue
            watch.lap(QUEUE)
            start = watch.now
            try:
                payload = await stage.call(payload, headers, response_headers, watch)
            except SystemExit as error:  # it would end the loop, and with it the worker
                raise as_failure(error) from error
            finally:
                watch.lap(stage.part)
                stage.observe((watch.now - start) * NANO)
        return payload


def _run_in_turn(
    stages: list[Stage], payload: Any, headers: Headers, response_headers: Headers, watch: Stopwatch
) -> Any:
    watch.lap(QUEUE)
    return _run_sync(stages, payload, headers, response_headers, watch)


def _run_sync(stages: list[Stage], payload: Any, headers: Headers, response_headers: Headers, watch: Stopwatch) -> Any:
    for call, _, observe, part in stages:
        start = watch.now
        try:
            payload = call(payload, headers, response_headers, watch)
        finally:
            watch.lap(part)
            observe((watch.now - start) * NANO)
    return payload


def absent_stages(model: Model) -> frozenset[str]:
    """The stages around its verb that the model does not have."""
    return frozenset(name for name in ("preprocess", "postprocess") if not _overrides(model, name))


def _overrides(model: Model, name: str) -> bool:
    return getattr(type(model), name) is not getattr(Model, name) or name in vars(model)


def _stages(model: Model, verb: str, observers: Observers, batcher: Batcher | None) -> list[Stage]:
    stages = []
    for name, part in (("preprocess", INPUT), ("validate", INPUT), (verb, INFER), ("postprocess", OUTPUT)):
        observe = observers.get(name, unobserved)
        if name == "predict" and isinstance(model, TensorModel):
            stage = Stage(*tensor_stage(model), observe, OUTPUT)
            stages.append(stage if batcher is None else Stage(batcher.predict, True, unobserved, OUTPUT))
        elif name == verb or _overrides(model, name):
            method = getattr(model, name)
            waits = is_async(method) or not _overrides(model, name)  # Model's own predict waits for a predictor
            stages.append(Stage(_adapt(method, model.required_response_headers), waits, observe, part))
    return stages


def is_async(method: Callable[..., Any]) -> bool:
    """Whether calling ``method`` gives an awaitable; also for objects whose ``__call__`` is ``async def``."""
    return iscoroutinefunction(method) or iscoroutinefunction(
        getattr(type(method), "__call__", None)  # noqa: B004 (the question is not whether it is callable)
    )


def _adapt(method: Callable[..., Any], wants_response_headers: bool) -> StageCall:
    """``method`` called with as many of (payload, headers, response_headers) as it takes, as the SDK's models vary.

    A third argument is passed as the SDK does, if the model was constructed with ``return_response_headers=True``, and
    if it cannot be anything else: it has no default, or is called ``response_headers``.
    """
    try:
        parameters = signature(method).parameters.values()
    except ValueError:  # of compiled code; it takes what the SDK would give it
        return _with_response_headers(method) if wants_response_headers else _without_response_headers(method)
    if any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters):
        return _with_response_headers(method) if wants_response_headers else _without_response_headers(method)
    positional = [p for p in parameters if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2:
        return lambda payload, headers, response_headers, watch: method(payload)
    third = positional[2] if len(positional) > 2 else None
    if third and (wants_response_headers or third.default is Parameter.empty or third.name == "response_headers"):
        return _with_response_headers(method)
    return _without_response_headers(method)


def _with_response_headers(method: Callable[..., Any]) -> StageCall:
    return lambda payload, headers, response_headers, watch: method(payload, headers, response_headers)


def _without_response_headers(method: Callable[..., Any]) -> StageCall:
    return lambda payload, headers, response_headers, watch: method(payload, headers)

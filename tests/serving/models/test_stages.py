"""The stages of a model in their order, each where it belongs: synchronous ones in the model's thread, others on the loop.

What a stage leaves in a context variable is there for the stages behind it, and for no other request.
"""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest

from mpserve.errors import ConfigurationError, MPServeError, NotSupported
from mpserve.serving.models.model import Model
from mpserve.serving.models.stages import absent_stages
from mpserve.serving.models.tensor_model import Tensor, TensorModel
from tests.asgi import loaded
from tests.asking import Asker, ask
from tests.cases import each
from tests.running import PATIENCE

HEADERS = {"host": "test"}
trace: ContextVar[tuple[str, ...]] = ContextVar("trace", default=())


async def run(model: Model, payload: Any = None, verb: str = "predict") -> Any:
    """The model's answer and the response headers that it set."""
    async with loaded(model) as core:
        return await Asker(core).run(verb, model.name, None, payload, HEADERS)


def place() -> str:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return threading.current_thread().name
    return "loop"


def traced(stage: str, number: int) -> tuple[str, ...]:
    """Add to the trace, which is that of the request with this number."""
    trace.set((*trace.get(), f"{stage} {number}"))
    return trace.get()


def stage_of(name: str, is_async: bool) -> Any:
    """A stage that adds itself and its place to its payload, which begins with a number, and to the trace."""

    def stage(self: Model, payload: list[Any], headers: Any = None) -> list[Any]:
        return [*payload, (name, place(), traced(name, payload[0]))]

    async def async_stage(self: Model, payload: list[Any], headers: Any = None) -> list[Any]:
        await asyncio.sleep(0)
        return stage(self, payload)

    return async_stage if is_async else stage


def model_of(**stages: bool) -> Model:
    """A model that has these stages, asynchronous or not."""
    return type("Traced", (Model,), {name: stage_of(name, is_async) for name, is_async in stages.items()})()


class PredictOnly(Model):
    def __init__(self, method: Callable[..., Any], **options: Any) -> None:
        super().__init__(**options)
        self.predict = method  # type: ignore[method-assign]


STAGES = ("preprocess", "validate", "predict", "postprocess")
MIXES = [dict(zip(STAGES, mix, strict=True)) for mix in itertools.product([False, True], repeat=4)]


@each("mix", MIXES)
async def test_stages_run_in_order_where_they_belong_in_the_context_of_their_request(mix: dict[str, bool]) -> None:
    async with loaded(model_of(**mix)) as core:
        answers = await asyncio.gather(*(ask(core, "model", [number]) for number in (1, 2, 3)))
    for number, answer in enumerate(answers, 1):
        traces = itertools.accumulate((f"{name} {number}",) for name in STAGES)
        places = ("loop" if is_async else "mpserve-model-0" for is_async in mix.values())
        assert answer == [number, *zip(STAGES, places, traces, strict=True)]
    assert trace.get() == ()


def steps(self: Model, payload: Any, headers: Any = None) -> Any:
    yield traced("a", payload[0])
    yield traced("b", payload[0])


async def async_steps(self: Model, payload: Any, headers: Any = None) -> Any:
    yield traced("a", payload[0])
    yield traced("b", payload[0])


@each("is_async", [False, True])
@each("predict", [steps, async_steps])
async def test_the_steps_of_a_generator_have_the_context_of_their_request(is_async: bool, predict: Any) -> None:
    kind = type("Traced", (Model,), {"preprocess": stage_of("preprocess", is_async), "predict": predict})
    async with loaded(kind()) as core:
        streams = [await ask(core, "model", [number]) for number in (1, 2)]
        for number, stream in enumerate(streams, 1):
            first, second = [part async for part in stream]
            assert first == (f"preprocess {number}", f"a {number}")
            # An asynchronous step has a task of its own.
            assert second in ((*first, f"b {number}"), (first[0], f"b {number}"))


def test_the_stages_that_a_model_does_not_have_are_absent() -> None:
    assert absent_stages(PredictOnly(lambda payload: payload)) == {"preprocess", "postprocess"}
    assert absent_stages(model_of(preprocess=False, predict=True, postprocess=True)) == set()


@each("verb, words", [("predict", ", and there is no predictor to ask"), ("explain", r"\.$")])
async def test_a_verb_that_the_model_does_not_override_is_not_supported(verb: str, words: str) -> None:
    with pytest.raises(NotSupported, match=f"Model bare does not implement {verb}{words}"):
        await run(Model("bare"), {}, verb)


class Callee:
    def __call__(self, payload: Any, headers: Any) -> Any:
        return (payload, headers)

    @staticmethod
    def forwarded(*args: Any) -> Any:
        return args


class AsyncCallee:
    async def __call__(self, payload: Any) -> Any:
        return (payload,)


@each("method, asks, given", [
    (lambda payload: (payload,), False, 1), (lambda payload, headers: (payload, headers), False, 2),
    (lambda payload, headers=None: (payload, headers), False, 2),
    (lambda payload, headers, response_headers: (payload, headers, response_headers), False, 3),
    (lambda payload, headers=None, response_headers=None: (payload, headers, response_headers), False, 3),
    (lambda payload, headers, out: (payload, headers, out), False, 3),
    (lambda payload, headers=None, debug=False: (payload, headers), False, 2),
    (lambda payload, headers=None, out=None: (payload, headers, out), True, 3),
    (lambda payload, *, headers=None: (payload,), False, 1), (lambda payload, **others: (payload,), False, 1),
    (lambda *args: args, False, 2), (lambda *args: args, True, 3), (Callee(), False, 2), (Callee.forwarded, False, 2),
    (AsyncCallee(), False, 1),    (partial(lambda first, payload: (payload,), 0), False, 1),
])  # fmt: skip
async def test_a_stage_is_given_as_many_arguments_as_it_takes_and_response_headers_if_it_asks_for_them(
    method: Callable[..., Any], asks: bool, given: int
) -> None:
    result, _ = await run(PredictOnly(method, return_response_headers=asks), "payload")
    assert result == ("payload", HEADERS, {})[:given]


async def test_compiled_code_that_does_not_tell_its_signature_is_given_what_the_sdk_gives() -> None:
    result, _ = await run(PredictOnly({}.pop), "missing")
    assert result == HEADERS


async def test_response_headers_that_stages_set_come_back() -> None:
    class Setting(Model):
        def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            response_headers["a"] = "1"

        async def postprocess(self, result: Any, headers: Any = None, response_headers: Any = None) -> Any:
            response_headers["b"] = "2"

    assert await run(Setting()) == (None, {"a": "1", "b": "2"})


def fail(payload: Any) -> None:
    raise ValueError("bad")


async def fail_async(payload: Any) -> None:
    raise ValueError("bad")


@each("model, stages", [
    *((model_of(**mix), ["preprocess", "predict", "postprocess"]) for mix in MIXES),
    (PredictOnly(fail), ["predict"]), (PredictOnly(fail_async), ["predict"]),
])  # fmt: skip
async def test_each_stage_is_observed_once_also_if_it_fails(model: Model, stages: list[str]) -> None:
    async with loaded(model) as core:
        durations = core.find(model.name).observed.stages
        for each_stage in durations.values():
            each_stage.noted.clear()
        with contextlib.suppress(MPServeError):
            await ask(core, model.name, [1])
        assert {name: len(stage.noted) for name, stage in durations.items() if stage.noted} == dict.fromkeys(stages, 1)


async def ask_many(model: Model, count: int) -> None:
    async with loaded(model) as core:
        await asyncio.gather(*(ask(core, model.name, {}) for _ in range(count)))


async def test_synchronous_predicts_run_as_many_at_once_as_the_model_allows() -> None:
    """The barrier breaks, and the test fails, unless three are inside together."""
    together = threading.Barrier(3)
    model = PredictOnly(lambda payload: together.wait(PATIENCE))
    model.concurrency = 3
    await ask_many(model, 6)


@each("concurrency, expected", [(None, 50), (2, 2), (1, 1)])
@each("in_parts", [False, True])
async def test_asynchronous_predicts_and_steps_are_limited_only_if_the_model_says_so(
    concurrency: int | None, expected: int, in_parts: bool
) -> None:
    running = most = 0
    full = asyncio.Event()

    async def predict(payload: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == expected:
            full.set()
        await asyncio.wait_for(full.wait(), PATIENCE)
        for _ in range(100):  # turns of the loop in which others could enter
            await asyncio.sleep(0)
        running -= 1

    async def steps(payload: Any) -> AsyncIterator[None]:
        yield await predict(payload)

    model = PredictOnly(steps if in_parts else predict)
    model.concurrency = concurrency
    await ask_many(model, 50)
    assert most == expected


@each("declared", ["inputs", "outputs"])
async def test_a_datatype_that_does_not_exist_is_found_before_serving(declared: str) -> None:
    model = TensorModel("m")
    setattr(model, declared, [Tensor("t", "float32", (-1,))])
    with pytest.raises(ConfigurationError, match="model m declares 't': unknown datatype 'float32', expected one of"):
        await run(model)

"""The stages of a model in their order, each where it belongs: synchronous ones in the model's thread, others on the loop."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
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


async def run(model: Model, payload: Any = None, verb: str = "predict") -> Any:
    """The model's answer and the response headers that it set."""
    async with loaded(model) as core:
        return await Asker(core).run(verb, model.name, None, payload, HEADERS)


def passed(stage: str, payload: Any) -> Any:
    """What a stage was given, and the stage and where it runs."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return [*payload, (stage, threading.current_thread().name)]
    return [*payload, (stage, "loop")]


class Sync(Model):
    def preprocess(self, payload: Any, headers: Any = None) -> Any:
        return passed("preprocess", payload)

    def validate(self, payload: Any) -> Any:
        return passed("validate", payload)

    def predict(self, payload: Any, headers: Any = None) -> Any:
        return passed("predict", payload)

    def postprocess(self, result: Any, headers: Any = None) -> Any:
        return passed("postprocess", result)


class AsyncPredict(Sync):
    async def predict(self, payload: Any, headers: Any = None) -> Any:
        return super().predict(payload)


class AsyncEnds(Sync):
    async def preprocess(self, payload: Any, headers: Any = None) -> Any:
        return super().preprocess(payload)

    async def postprocess(self, result: Any, headers: Any = None) -> Any:
        return super().postprocess(result)


class Predict:
    async def __call__(self, payload: Any) -> Any:
        return passed("predict", payload)


class AsyncCall(Sync):
    predict = Predict()  # type: ignore[assignment]


class PredictOnly(Model):
    def __init__(self, method: Callable[..., Any], **options: Any) -> None:
        super().__init__(**options)
        self.predict = method  # type: ignore[method-assign]


THREAD = "mpserve-model-0"


@each("kind, places", [
    (Sync, [THREAD, THREAD, THREAD, THREAD]), (AsyncPredict, [THREAD, THREAD, "loop", THREAD]),
    (AsyncEnds, ["loop", THREAD, THREAD, "loop"]), (AsyncCall, [THREAD, THREAD, "loop", THREAD]),
])  # fmt: skip
async def test_stages_run_in_order_synchronous_ones_in_the_models_thread(kind: type[Model], places: list[str]) -> None:
    result, _ = await run(kind(), [])
    assert result == list(zip(("preprocess", "validate", "predict", "postprocess"), places, strict=True))


def test_the_stages_that_a_model_does_not_have_are_absent() -> None:
    assert absent_stages(PredictOnly(lambda payload: payload)) == {"preprocess", "postprocess"}
    assert absent_stages(Sync()) == set()


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
    (partial(lambda first, payload: (payload,), 0), False, 1),
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
    *((kind(), ["preprocess", "predict", "postprocess"]) for kind in (Sync, AsyncPredict, AsyncEnds)),
    (PredictOnly(fail), ["predict"]), (PredictOnly(fail_async), ["predict"]),
])  # fmt: skip
async def test_each_stage_is_observed_once_also_if_it_fails(model: Model, stages: list[str]) -> None:
    async with loaded(model) as core:
        durations = core.find(model.name).durations
        for each_stage in durations.values():
            each_stage.noted.clear()
        with contextlib.suppress(MPServeError):
            await ask(core, model.name, [])
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

    async def predict(payload: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
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

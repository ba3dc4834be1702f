"""The stages of a model in their order, each where it belongs: synchronous ones in the model's thread, others on the loop."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
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

PATIENCE = 30.0


async def answer(model: Model, payload: Any = None, verb: str = "predict") -> Any:
    """The model's answer and the response headers that it set."""
    async with loaded(model) as core:
        return await Asker(core).run(verb, model.name, None, payload, {"host": "test"})


def run(model: Model, payload: Any = None, verb: str = "predict") -> Any:
    return asyncio.run(answer(model, payload, verb))


def place() -> str:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return threading.current_thread().name
    return "loop"


class Sync(Model):
    def preprocess(self, payload: Any, headers: Any = None) -> Any:
        return [*payload, ("preprocess", place())]

    def validate(self, payload: Any) -> Any:
        return [*payload, ("validate", place())]

    def predict(self, payload: Any, headers: Any = None) -> Any:
        return [*payload, ("predict", place())]

    def explain(self, payload: Any, headers: Any = None) -> Any:
        return [*payload, ("explain", place())]

    def postprocess(self, result: Any, headers: Any = None) -> Any:
        return [*result, ("postprocess", place())]


class AsyncPredict(Sync):
    async def predict(self, payload: Any, headers: Any = None) -> Any:
        await asyncio.sleep(0)
        return super().predict(payload, headers)


class AsyncEnds(Sync):
    async def preprocess(self, payload: Any, headers: Any = None) -> Any:
        return super().preprocess(payload, headers)

    async def postprocess(self, result: Any, headers: Any = None) -> Any:
        return super().postprocess(result, headers)


THREAD = "mpserve-model-0"


@each("model, places", [
    (Sync(), [THREAD, THREAD, THREAD, THREAD]), (AsyncPredict(), [THREAD, THREAD, "loop", THREAD]),
    (AsyncEnds(), ["loop", THREAD, THREAD, "loop"]),
])  # fmt: skip
def test_stages_run_in_order_synchronous_ones_in_the_models_thread(model: Model, places: list[str]) -> None:
    result, _ = run(model, [])
    assert result == list(zip(("preprocess", "validate", "predict", "postprocess"), places, strict=True))


@each("verb", ["predict", "explain"])
def test_a_verb_that_the_model_does_not_override_is_not_supported(verb: str) -> None:
    with pytest.raises(NotSupported, match=f"Model bare does not implement {verb}"):
        run(Model("bare"), {}, verb)


class ReturnsArguments(Model):
    def __init__(self, method: Callable[..., Any], **options: Any) -> None:
        super().__init__(**options)
        self.predict = method  # type: ignore[method-assign]


class Callee:
    def __call__(self, payload: Any, headers: Any) -> Any:
        return (payload, headers)

    @staticmethod
    def forwarded(*args: Any) -> Any:
        return args


HEADERS = {"host": "test"}


@each("method, given", [
    (lambda payload: (payload,), 1), (lambda payload, headers: (payload, headers), 2),
    (lambda payload, headers=None: (payload, headers), 2),
    (lambda payload, headers, response_headers: (payload, headers, response_headers), 3),
    (lambda payload, headers=None, response_headers=None: (payload, headers, response_headers), 3),
    (lambda payload, headers, out: (payload, headers, out), 3),
    (lambda payload, headers=None, debug=False: (payload, headers), 2),
    (lambda payload, *, headers=None: (payload,), 1), (lambda payload, **others: (payload,), 1),
    (lambda *args: args, 2), (Callee(), 2), (Callee.forwarded, 2), (partial(lambda first, payload: (payload,), 0), 1),
])  # fmt: skip
def test_a_stage_is_given_as_many_arguments_as_it_takes(method: Callable[..., Any], given: int) -> None:
    result, _ = run(ReturnsArguments(method), "payload")
    assert result == ("payload", HEADERS, {})[:given]


def test_compiled_code_that_does_not_tell_its_signature_is_given_what_the_sdk_gives() -> None:
    result, _ = run(ReturnsArguments({}.pop), "missing")
    assert result == HEADERS


@each("method", [lambda payload, headers=None, out=None: (payload, headers, out), lambda *args: args])
def test_response_headers_are_given_to_a_model_that_asked_for_them(method: Callable[..., Any]) -> None:
    result, _ = run(ReturnsArguments(method, return_response_headers=True), "payload")
    assert result == ("payload", HEADERS, {})


def test_response_headers_that_stages_set_come_back() -> None:
    class Setting(Model):
        def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            response_headers["a"] = "1"

        async def postprocess(self, result: Any, headers: Any = None, response_headers: Any = None) -> Any:
            response_headers["b"] = "2"

    assert run(Setting()) == (None, {"a": "1", "b": "2"})


def test_an_object_with_an_async_call_counts_as_async() -> None:
    class Callable_:
        async def __call__(self, payload: Any) -> str:
            return place()

    result, _ = run(ReturnsArguments(Callable_()))
    assert result == "loop"


def test_the_stages_that_a_model_does_not_have_are_absent() -> None:
    class Short(Model):
        def predict(self, payload: Any, headers: Any = None) -> Any:
            return payload

    assert absent_stages(Short()) == {"preprocess", "postprocess"}
    assert absent_stages(Sync()) == set()


STAGES = ("preprocess", "predict", "postprocess", "explain")


async def observed(model: Model, payload: Any, verb: str = "predict") -> dict[str, int]:
    """How often each stage was observed for one request."""
    async with loaded(model) as core:
        durations = core.find(model.name).durations
        for each_stage in durations.values():
            each_stage.noted.clear()
        with contextlib.suppress(MPServeError):
            await ask(core, model.name, payload)
        return {stage: len(durations[stage].noted) for stage in STAGES if stage in durations and durations[stage].noted}


@each("kind", [Sync, AsyncPredict, AsyncEnds])
async def test_each_stage_is_observed_once(kind: type[Model]) -> None:
    assert await observed(kind(), []) == {"preprocess": 1, "predict": 1, "postprocess": 1}


@each("is_async", [False, True])
async def test_a_stage_that_fails_is_observed_as_well(is_async: bool) -> None:
    class Fails(Model):
        def predict(self, payload: Any, headers: Any = None) -> Any:
            raise ValueError("bad")

    class FailsAsync(Model):
        async def predict(self, payload: Any, headers: Any = None) -> Any:
            raise ValueError("bad")

    assert await observed(FailsAsync() if is_async else Fails(), None) == {"predict": 1}


class Counting(Model):
    """Knows how many of its predicts ever ran at once; each waits until ``together`` of them do, or for the loop."""

    def __init__(self, concurrency: int | None = None) -> None:
        super().__init__()
        self.concurrency = concurrency
        self.running = self.most = 0

    def enter(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)


class CountingSync(Counting):
    def predict(self, payload: Any, headers: Any = None) -> Any:
        self.enter()
        if payload:
            payload.wait(PATIENCE)
        self.running -= 1


class CountingAsync(Counting):
    async def predict(self, payload: Any, headers: Any = None) -> Any:
        self.enter()
        for _ in range(100):  # turns of the loop in which others could enter
            await asyncio.sleep(0)
        self.running -= 1


def run_many(model: Model, payload: Any, count: int) -> None:
    async def main() -> None:
        async with loaded(model) as core:
            await asyncio.gather(*(ask(core, model.name, payload) for _ in range(count)))

    asyncio.run(main())


def test_synchronous_predicts_run_as_many_at_once_as_the_model_allows() -> None:
    """The barrier breaks, and the test fails, unless three are inside together."""
    run_many(CountingSync(concurrency=3), threading.Barrier(3), 6)


@each("concurrency, most", [(None, 50), (2, 2), (1, 1)])
def test_asynchronous_predicts_are_limited_only_if_the_model_says_so(concurrency: int | None, most: int) -> None:
    model = CountingAsync(concurrency)
    run_many(model, {}, 50)
    assert model.most == most


@each("declared", ["inputs", "outputs"])
def test_a_datatype_that_does_not_exist_is_found_before_serving(declared: str) -> None:
    model = TensorModel("m")
    setattr(model, declared, [Tensor("t", "float32", (-1,))])
    with pytest.raises(ConfigurationError, match="model m declares 't': unknown datatype 'float32', expected one of"):
        run(model)

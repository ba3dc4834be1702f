"""A model's stages in their order, each where it belongs: synchronous ones in the model's thread, others on the loop."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from mpserve.serving.pipeline import Pipeline, absent_stages
from mpserve.serving.tally import Stopwatch

from mpserve.errors import NotSupported
from mpserve.serving.executor import Executor
from mpserve.serving.model import Model

PATIENCE = 30.0


class Observed(dict[str, list[float]]):
    """What the stage histograms were given."""

    def observers(self) -> dict[str, Callable[[float], None]]:
        stages = ("preprocess", "predict", "postprocess", "explain")
        return {stage: partial(self._note, stage) for stage in stages}

    def _note(self, stage: str, seconds: float) -> None:
        self.setdefault(stage, []).append(seconds)


def pipeline_of(model: Model, observed: Observed | None = None) -> Pipeline:
    executor = Executor(model.name, model.concurrency or 1)
    return Pipeline(model, executor, (Observed() if observed is None else observed).observers())


def run(model: Model, payload: Any = None, verb: str = "predict", observed: Observed | None = None) -> Any:
    """The model's answer and the response headers that it set."""
    pipeline = pipeline_of(model, observed)

    async def main() -> Any:
        try:
            return await pipeline.run(verb, payload, {"host": "test"}, Stopwatch())
        finally:
            pipeline.executor.close()

    return asyncio.run(main())


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


@pytest.mark.parametrize(
    ("model", "places"),
    [
        (Sync(), [THREAD, THREAD, THREAD, THREAD]),
        (AsyncPredict(), [THREAD, THREAD, "loop", THREAD]),
        (AsyncEnds(), ["loop", THREAD, THREAD, "loop"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Model) else "",
)
def test_stages_run_in_order_synchronous_ones_in_the_models_thread(model: Model, places: list[str]) -> None:
    answer, _ = run(model, [])
    assert answer == list(zip(("preprocess", "validate", "predict", "postprocess"), places, strict=True))


def test_explain_takes_the_place_of_predict() -> None:
    answer, _ = run(Sync(), [], "explain")
    assert [stage for stage, _ in answer] == ["preprocess", "validate", "explain", "postprocess"]


@pytest.mark.parametrize("verb", ["predict", "explain"])
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


@pytest.mark.parametrize(
    ("method", "given"),
    [
        pytest.param(lambda payload: (payload,), 1, id="payload"),
        pytest.param(lambda payload, headers: (payload, headers), 2, id="headers"),
        pytest.param(lambda payload, headers=None: (payload, headers), 2, id="headers with a default"),
        pytest.param(lambda payload, headers, response_headers: (payload, headers, response_headers), 3, id="three"),
        pytest.param(lambda payload, headers=None, response_headers=None: (payload, headers, response_headers), 3,
                     id="response_headers by name"),
        pytest.param(lambda payload, headers, out: (payload, headers, out), 3, id="a third that must be given"),
        pytest.param(lambda payload, headers=None, debug=False: (payload, headers), 2, id="a third that is another"),
        pytest.param(lambda payload, *, headers=None: (payload,), 1, id="keyword only"),
        pytest.param(lambda payload, **others: (payload,), 1, id="keywords"),
        pytest.param(lambda *args: args, 2, id="anything"),
        pytest.param(Callee(), 2, id="callable object"),
        pytest.param(Callee.forwarded, 2, id="undeclared wrapper"),
        pytest.param(partial(lambda first, payload: (payload,), 0), 1, id="partial"),
    ],
)  # fmt: skip
def test_a_stage_is_given_as_many_arguments_as_it_takes(method: Callable[..., Any], given: int) -> None:
    answer, _ = run(ReturnsArguments(method), "payload")
    assert answer == ("payload", HEADERS, {})[:given]


def test_compiled_code_that_does_not_tell_its_signature_is_given_what_the_sdk_gives() -> None:
    answer, _ = run(ReturnsArguments({}.pop), "missing")
    assert answer == HEADERS


@pytest.mark.parametrize(
    "method",
    [lambda payload, headers=None, out=None: (payload, headers, out), lambda *args: args],
    ids=["a third with a default", "anything"],
)
def test_response_headers_are_given_to_a_model_that_asked_for_them(method: Callable[..., Any]) -> None:
    answer, _ = run(ReturnsArguments(method, return_response_headers=True), "payload")
    assert answer == ("payload", HEADERS, {})


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

    answer, _ = run(ReturnsArguments(Callable_()))
    assert answer == "loop"


def test_the_stages_that_a_model_does_not_have_are_absent() -> None:
    class Short(Model):
        def predict(self, payload: Any, headers: Any = None) -> Any:
            return payload

    assert absent_stages(Short()) == {"preprocess", "postprocess"}
    assert absent_stages(Sync()) == set()


@pytest.mark.parametrize("model", [Sync(), AsyncPredict(), AsyncEnds()], ids=lambda model: type(model).__name__)
def test_each_stage_is_observed_once(model: Model) -> None:
    observed = Observed()
    run(model, [], observed=observed)
    assert {stage: len(seconds) for stage, seconds in observed.items()} == {
        "preprocess": 1, "predict": 1, "postprocess": 1,
    }  # fmt: skip


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stage_that_fails_is_observed_as_well(is_async: bool) -> None:
    class Fails(Model):
        def predict(self, payload: Any, headers: Any = None) -> Any:
            raise ValueError("bad")

    class FailsAsync(Model):
        async def predict(self, payload: Any, headers: Any = None) -> Any:
            raise ValueError("bad")

    observed = Observed()
    with pytest.raises(ValueError, match="bad"):
        run(FailsAsync() if is_async else Fails(), observed=observed)
    assert len(observed["predict"]) == 1


def test_an_async_stage_that_exits_fails_and_the_loop_goes_on() -> None:
    class Exits(Model):
        async def predict(self, payload: Any, headers: Any = None) -> Any:
            raise SystemExit(3)

    with pytest.raises(RuntimeError, match="SystemExit: 3"):
        run(Exits())


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
        if payload is not None:
            payload.wait(PATIENCE)
        self.running -= 1


class CountingAsync(Counting):
    async def predict(self, payload: Any, headers: Any = None) -> Any:
        self.enter()
        for _ in range(20):  # turns of the loop in which others could enter
            await asyncio.sleep(0)
        self.running -= 1


def run_many(model: Model, payload: Any, count: int) -> None:
    pipeline = pipeline_of(model)

    async def main() -> None:
        await asyncio.gather(*(pipeline.run("predict", payload, {}, Stopwatch()) for _ in range(count)))
        pipeline.executor.close()

    asyncio.run(main())


def test_synchronous_predicts_run_one_at_a_time() -> None:
    model = CountingSync()
    run_many(model, None, 50)
    assert model.most == 1


def test_synchronous_predicts_run_as_many_at_once_as_the_model_allows() -> None:
    """The barrier breaks, and the test fails, unless three are inside together."""
    run_many(CountingSync(concurrency=3), threading.Barrier(3), 6)


@pytest.mark.parametrize(("concurrency", "most"), [(None, 50), (2, 2), (1, 1)])
def test_asynchronous_predicts_are_limited_only_if_the_model_says_so(concurrency: int | None, most: int) -> None:
    model = CountingAsync(concurrency)
    run_many(model, None, 50)
    assert model.most == most


def test_a_cancelled_callers_predict_is_not_run() -> None:
    begun, released = threading.Event(), threading.Event()

    class Slow(Model):
        ran: list[Any] = []  # noqa: RUF012

        def predict(self, payload: Any, headers: Any = None) -> Any:
            self.ran.append(payload)
            begun.set()
            released.wait(PATIENCE)

    pipeline = pipeline_of(Slow())

    async def main() -> None:
        first = asyncio.ensure_future(pipeline.run("predict", 1, {}, Stopwatch()))
        second = asyncio.ensure_future(pipeline.run("predict", 2, {}, Stopwatch()))
        await asyncio.to_thread(begun.wait, PATIENCE)
        second.cancel()
        await asyncio.wait({second})
        released.set()
        await first
        await pipeline.run("predict", 3, {}, Stopwatch())
        pipeline.executor.close()

    asyncio.run(main())
    assert Slow.ran == [1, 3]

"""Answers in parts: whatever iterator a model gives, it is read, blamed, held and closed alike."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest

from mpserve.errors import InferenceError, InvalidInput, MPServeError, NotSupported, ServerNotReady
from mpserve.protocol.messages import InferOutput, InferRequest, InferResponse, RequestedOutput
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import Tensor, TensorModel
from tests.asking import Asker, ask
from tests.cases import each
from tests.running import PATIENCE
from tests.serving.held import in_flight, request


class Giving(Model):
    """Answers with what the function gives."""

    def __init__(self, method: Callable[..., Any]) -> None:
        super().__init__("m")
        self.predict = self.explain = method  # type: ignore[method-assign]


def given(part: Any) -> Any:
    if isinstance(part, BaseException):
        raise part
    return part


def generator(parts: Any, payload: Any) -> Iterator[Any]:
    for part in parts:
        yield given(part)


async def async_generator(parts: Any, payload: Any) -> AsyncIterator[Any]:
    for part in parts:
        await asyncio.sleep(0)
        yield given(part)


async def coroutine_of_async_generator(parts: Any, payload: Any) -> Any:
    return async_generator(parts, payload)


def plain_iterator(parts: Any, payload: Any) -> Iterator[Any]:
    """Has no ``close``."""
    return map(given, parts)


class PlainAsyncIterator(AsyncIterator[Any]):
    """Has no ``aclose``."""

    def __init__(self, parts: Any, payload: Any) -> None:
        self.parts = plain_iterator(parts, payload)

    async def __anext__(self) -> Any:
        for part in self.parts:
            return part
        raise StopAsyncIteration


def whole(parts: Any, payload: Any) -> Any:
    return given(*parts)


async def coroutine_of_whole(parts: Any, payload: Any) -> Any:
    return given(*parts)


KINDS = (generator, async_generator, coroutine_of_async_generator, plain_iterator, PlainAsyncIterator)
GENERATORS = (generator, async_generator)


class Wordless(Exception):
    """An error of a model that fails at whatever is asked of it."""

    def __str__(self) -> str:
        raise RuntimeError

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError


async def read(stream: AsyncIterator[Any]) -> list[Any]:
    return [part async for part in stream]


async def all_parts(model: Model, payload: Any = None) -> list[Any]:
    async with in_flight(model) as core:
        return await read(await ask(core, "m", payload))


@each("kind", KINDS)
async def test_every_iterator_is_read_to_its_end(kind: Any) -> None:
    assert await all_parts(Giving(partial(kind, "abc"))) == ["a", "b", "c"]
    assert await all_parts(Giving(partial(kind, ""))) == []


@each("kind, before", [
    (whole, []), (coroutine_of_whole, []), *((kind, before) for kind in KINDS for before in ([], ["a"])),
])  # fmt: skip
@each("verb, error, blamed, words", [
    ("explain", KeyError("instances"), InferenceError, "KeyError : 'instances'"),
    ("predict", SystemExit(3), InferenceError, "RuntimeError : SystemExit: 3"),
    ("predict", KeyboardInterrupt(), InferenceError, "RuntimeError : KeyboardInterrupt: "),
    ("predict", asyncio.CancelledError(), InferenceError, "RuntimeError : CancelledError: "),
    ("predict", GeneratorExit(), InferenceError, "RuntimeError : GeneratorExit: "),
    ("predict", Wordless(), InferenceError, "Wordless : its text cannot be read"),
    ("predict", NotImplementedError("no kernel"), NotSupported, "no kernel"),
    ("explain", NotImplementedError(), NotSupported, "Model m does not implement explain."),
    ("predict", InvalidInput("no cat"), InvalidInput, "no cat"),
    ("explain", InferenceError("tired"), InferenceError, "tired"),
])  # fmt: skip
async def test_an_error_is_blamed_alike_in_a_whole_answer_before_the_first_part_and_after_it(
    kind: Any, before: list[str], verb: str, error: BaseException, blamed: type[MPServeError], words: str
) -> None:
    async with in_flight(Giving(partial(kind, [*before, error]))) as core:
        with pytest.raises(blamed) as caught:  # noqa: PT012
            stream = (await Asker(core).run(verb, "m", None, None, {}))[0]
            for part in before:
                assert await anext(stream) == part
            await anext(stream)
        assert str(caught.value) == words
        assert caught.value is error or caught.value.__cause__ is not None


@each("threads", [1, 3])
async def test_a_step_under_way_in_the_models_threads_is_the_last_and_the_end_comes_after_it(
    threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    def note(moment: str) -> None:
        assert threading.current_thread().name.startswith("mpserve-m-")
        notes.append(moment)

    def predict(payload: Any) -> Iterator[str]:
        try:
            note("began")
            begun.set()
            go_on.wait(PATIENCE)
            note("went on")
            yield "a"
            note("advanced")
        finally:
            note("closed")

    notes: list[str] = []
    begun, go_on = threading.Event(), threading.Event()
    model = Giving(predict)
    model.concurrency = threads
    async with in_flight(model) as core:
        reading = ask(core, "m", None)
        await core.offload(begun.wait, PATIENCE)
        reading.cancel()
        await core.offload(int)
        assert (reading.cancelled(), core.find("m").in_flight.count) == (True, 1)
        if threads > 1:  # another thread has the close, which must wait for the step
            await core.find("m").executor.run(int)
        go_on.set()
    assert notes == ["began", "went on", "closed"]
    assert "could not be closed" not in caplog.text


@each("kind", GENERATORS)
async def test_when_the_model_stops_its_open_streams_are_closed_and_do_not_seem_whole(kind: Any) -> None:
    async with in_flight(Giving(partial(kind, "ab"))) as core:
        stream = await ask(core, "m", None)
        await anext(stream)
        await core.find("m").stop()
        with pytest.raises(ServerNotReady, match="cut short"):
            await anext(stream)


@each("stops", [False, True])
async def test_an_async_generator_is_closed_where_it_waits_when_its_reader_leaves_or_its_model_stops(
    stops: bool,
) -> None:
    async def predict(payload: Any) -> AsyncIterator[str]:
        try:
            begun.set()
            await asyncio.Event().wait()
            yield "never"
        finally:
            closed.set()

    begun, closed = asyncio.Event(), asyncio.Event()
    async with in_flight(Giving(predict)) as core:
        reading = ask(core, "m", None)
        await begun.wait()
        if stops:
            await core.find("m").stop()
            with pytest.raises(ServerNotReady, match="cut short"):
                await reading
        reading.cancel()
        await closed.wait()


@contextmanager
def failing_in_the_end() -> Iterator[None]:
    try:
        yield
    finally:
        raise RuntimeError("cannot let go")


def never_closed(payload: Any) -> Iterator[str]:
    with failing_in_the_end():
        yield "a"


async def never_closed_async(payload: Any) -> AsyncIterator[str]:
    with failing_in_the_end():
        yield "a"


@each("predict", [never_closed, never_closed_async])
async def test_a_finally_block_that_fails_is_logged_and_the_model_let_go(
    predict: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    async with in_flight(Giving(predict)) as core:
        await (await ask(core, "m", None)).aclose()
    assert "a generator of model m could not be closed" in caplog.text
    assert "cannot let go" in caplog.text


@each("kind", GENERATORS)
async def test_others_are_answered_between_two_steps_also_where_the_model_takes_one_call_at_a_time(kind: Any) -> None:
    model = Giving(partial(kind, "ab"))
    model.concurrency = 1
    async with in_flight(model) as core:
        streams = [await ask(core, "m", None) for _ in range(2)]
        for part in "ab":
            assert [await anext(stream) for stream in streams] == [part, part]
        for stream in streams:
            await stream.aclose()


async def test_postprocess_is_given_the_iterator_as_in_the_sdk() -> None:
    class Upper(Model):
        def preprocess(self, payload: Any, headers: Any = None) -> Any:
            return f"{payload}!"

        def predict(self, payload: Any, headers: Any = None) -> Iterator[str]:
            yield from payload

        def postprocess(self, result: Any, headers: Any = None) -> Iterator[str]:
            return (part.upper() for part in result)

    assert await all_parts(Upper("m"), "ab") == ["A", "B", "!"]


def request_of(*wanted: str) -> InferRequest:
    return request([1, 2], request_id="7", request_outputs=[RequestedOutput(name) for name in wanted])


async def test_each_response_is_made_complete_by_the_request_of() -> None:
    outputs = [InferOutput(name, [1], "INT64", [1]) for name in "ab"]
    parts = [InferResponse(None, "m", outputs), InferResponse("own", "m", outputs)]
    responses = await all_parts(Giving(partial(generator, parts)), request_of("b"))
    assert [(each.id, len(each.outputs)) for each in responses] == [("7", 1), ("own", 1)]
    with pytest.raises(InvalidInput, match="Unexpected inference output 'z'"):
        await all_parts(Giving(partial(generator, parts)), request_of("z"))


class Rows(TensorModel):
    inputs = (Tensor("x", "FP32", (-1,)),)
    outputs = (Tensor("y", "FP32", (1,)),)
    closed = False


def rows(model: Rows, x: Any) -> Any:
    """Give the rows of the input one by one; ``closed`` says that the generator was."""
    try:
        for value in x:
            yield np.array([value])
    finally:
        model.closed = True


async def async_rows(model: Rows, x: Any) -> Any:
    try:
        for value in x:
            yield np.array([value])
    finally:
        model.closed = True


async def late_rows(model: Rows, x: Any) -> Any:
    return async_rows(model, x)


def kept(model: Any, x: Any) -> Any:
    """Which Python does not close by itself, since somebody has it."""
    model.kept = rows(model, x)
    return model.kept


def kept_async(model: Any, x: Any) -> Any:
    model.kept = async_rows(model, x)
    return model.kept


def passed_on(model: Rows, result: Any) -> Any:
    return result


@each("methods", [
    {"predict": rows}, {"predict": async_rows}, {"predict": late_rows}, {"predict": rows, "postprocess": passed_on},
    {"predict": kept, "postprocess": passed_on}, {"predict": kept_async, "postprocess": passed_on},
])  # fmt: skip
async def test_a_tensor_model_yields_arrays_and_its_generator_is_closed(methods: dict[str, Any]) -> None:
    model = type("Given", (Rows,), methods)("m")
    responses = await all_parts(model, request_of())
    assert [(answer.id, answer.outputs[0].as_numpy().tolist()) for answer in responses] == [("7", [1]), ("7", [2])]
    model.closed = False
    async with in_flight(model) as core:
        await (await ask(core, "m", request_of())).aclose()
    assert model.closed


async def test_a_part_that_a_tensor_model_does_not_declare_is_its_fault() -> None:
    model = type("Given", (Rows,), {"predict": rows, "outputs": (Tensor("y", "FP32", (3,)),)})("m")
    with pytest.raises(InferenceError, match=r"declared with shape \[3\], the model gave \[1\]"):
        await all_parts(model, request_of())

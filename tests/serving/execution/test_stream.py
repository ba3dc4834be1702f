"""Answers in parts: whatever iterator a model gives, it is read, blamed, held and closed alike."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from mpserve.errors import InferenceError, InvalidInput, MPServeError, NotSupported, ServerNotReady
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import Tensor, TensorModel
from mpserve.serving.repository.core import ServerCore
from mpserve.telemetry.logging import model as model_in_log
from tests.asgi import loaded
from tests.asking import Asker, PartsOf
from tests.cases import each


class Giving(Model):
    """Answers with what the function gives."""

    name = "m"

    def __init__(self, method: Callable[..., Any]) -> None:
        super().__init__()
        self.predict = method  # type: ignore[method-assign]
        self.explain = method  # type: ignore[method-assign]


def generator(*parts: Any) -> Callable[..., Any]:
    def predict(payload: Any) -> Iterator[Any]:
        for part in parts:
            yield given(part)

    return predict


def async_generator(*parts: Any) -> Callable[..., Any]:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        for part in parts:
            await asyncio.sleep(0)
            yield given(part)

    return predict


def coroutine_of_async_generator(*parts: Any) -> Callable[..., Any]:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        result: AsyncIterator[Any] = async_generator(*parts)(payload)
        return result

    return predict


def plain_iterator(*parts: Any) -> Callable[..., Any]:
    """Has no ``close``."""
    return lambda payload: map(given, parts)


class Plain(AsyncIterator[Any]):
    def __init__(self, parts: Any) -> None:
        self.parts = iter(parts)

    async def __anext__(self) -> Any:
        for part in self.parts:
            return given(part)
        raise StopAsyncIteration


def plain_async_iterator(*parts: Any) -> Callable[..., Any]:
    """Has no ``aclose``."""
    return lambda payload: Plain(parts)


def given(part: Any) -> Any:
    if isinstance(part, BaseException):
        raise part
    return part


KINDS = (generator, async_generator, coroutine_of_async_generator, plain_iterator, plain_async_iterator)


@asynccontextmanager
async def asked(model: Model) -> AsyncIterator[tuple[ServerCore, Asker]]:
    """The core of the model, of which nothing may be held any more in the end."""
    async with loaded(model) as core:
        yield core, Asker(core)
        await core.find("m").in_flight.until_idle()
        assert core.row.in_flight == 0
        assert not core.find("m").streams


async def begin(asker: Asker, payload: Any = None, verb: str = "predict") -> PartsOf:
    """An answer in parts, once its first part is there."""
    stream, _ = await asker.run(verb, "m", None, payload, {})
    assert isinstance(stream, PartsOf)
    return stream


async def read(stream: PartsOf) -> list[Any]:
    return [part async for part in stream]


async def all_parts(model: Model, payload: Any = None) -> list[Any]:
    async with asked(model) as (_, asker):
        return await read(await begin(asker, payload))


@each("kind", KINDS)
async def test_every_iterator_is_read_to_its_end(kind: Any) -> None:
    assert await all_parts(Giving(kind("a", "b", "c"))) == ["a", "b", "c"]
    assert await all_parts(Giving(kind())) == []


@each("kind", KINDS)
@each("before", [(), ("a",)])
@each("verb", ["predict", "explain"])
@each("error, blamed, words", [
    (ValueError("bad"), InferenceError, "ValueError : bad"),
    (SystemExit(3), InferenceError, "RuntimeError : SystemExit: 3"),
    (KeyboardInterrupt(), InferenceError, "RuntimeError : KeyboardInterrupt: "),
    (asyncio.CancelledError(), InferenceError, "RuntimeError : CancelledError: "),
    (NotImplementedError(), NotSupported, "Model m does not implement {verb}."),
    (InvalidInput("no cat"), InvalidInput, "no cat"), (InferenceError("tired"), InferenceError, "tired"),
])  # fmt: skip
async def test_an_error_is_blamed_as_for_a_whole_answer_before_the_first_part_and_after_it(
    kind: Any, before: Any, verb: str, error: BaseException, blamed: type[MPServeError], words: str
) -> None:
    async with asked(Giving(kind(*before, error))) as (_, asker):
        with pytest.raises(blamed) as caught:  # noqa: PT012
            stream = await begin(asker, None, verb)
            for part in before:
                assert await anext(stream) == part
            await anext(stream)
        assert str(caught.value) == words.format(verb=verb)
        assert caught.value is error or caught.value.__cause__ is not None


@each("kind", KINDS)
async def test_the_model_is_held_and_the_request_in_flight_until_the_end(kind: Any) -> None:
    async with asked(Giving(kind("a", "b"))) as (core, asker):
        stream = await begin(asker)
        idle = asyncio.ensure_future(core.find("m").in_flight.until_idle())
        assert await anext(stream) == "a"
        await core.offload(int)
        assert (core.row.in_flight, idle.done()) == (1, False)
        assert await read(stream) == ["b"]
        await idle


async def test_a_generator_is_advanced_and_closed_in_the_models_thread() -> None:
    notes: list[tuple[str, str]] = []

    def note(moment: str) -> None:
        notes.append((moment, threading.current_thread().name))

    def predict(payload: Any) -> Iterator[str]:
        try:
            for part in "abc":
                note(part)
                yield part
        finally:
            note("closed")

    async with asked(Giving(predict)) as (_, asker):
        await (await begin(asker)).aclose()
    assert notes == [("a", "mpserve-m-0"), ("closed", "mpserve-m-0")]


@each("threads", [1, 2])
async def test_a_step_under_way_is_the_last_and_the_end_comes_after_it(threads: int) -> None:
    def predict(payload: Any) -> Iterator[str]:
        try:
            notes.append("began")
            begun.set()
            go_on.wait(60)
            notes.append("went on")
            yield "a"
            notes.append("advanced")
        finally:
            notes.append("closed")

    notes: list[str] = []
    begun, go_on = threading.Event(), threading.Event()
    model = Giving(predict)
    model.concurrency = threads
    async with asked(model) as (core, asker):
        reading = asyncio.ensure_future(begin(asker))
        await core.offload(begun.wait, 60)
        reading.cancel()
        await core.offload(int)
        assert (reading.cancelled(), core.find("m").in_flight.count) == (True, 1)
        go_on.set()
    assert notes == ["began", "went on", "closed"]


async def test_a_waiting_async_generator_is_cancelled_where_it_waits() -> None:
    async def predict(payload: Any) -> AsyncIterator[str]:
        try:
            begun.set()
            await asyncio.Event().wait()
            yield "never"
        finally:
            closed.set()

    begun, closed = asyncio.Event(), asyncio.Event()
    async with asked(Giving(predict)) as (_, asker):
        reading = asyncio.ensure_future(begin(asker))
        await begun.wait()
        reading.cancel()
        await closed.wait()


@each("kind", [generator, async_generator])
async def test_when_the_model_stops_its_open_streams_are_closed_and_do_not_seem_whole(kind: Any) -> None:
    async with asked(Giving(kind("a", "b"))) as (core, asker):
        stream = await begin(asker)
        await anext(stream)
        await core.find("m").stop()
        with pytest.raises(ServerNotReady, match="cut short"):
            await anext(stream)


async def test_a_reader_who_waits_when_the_model_stops_is_told() -> None:
    async def predict(payload: Any) -> AsyncIterator[str]:
        begun.set()
        await asyncio.Event().wait()
        yield "never"

    begun = asyncio.Event()
    async with asked(Giving(predict)) as (core, asker):
        reading = asyncio.ensure_future(begin(asker))
        await begun.wait()
        await core.find("m").stop()
        with pytest.raises(ServerNotReady, match="cut short"):
            await reading


@each("is_async", [False, True])
async def test_a_finally_block_that_fails_is_logged_and_the_model_let_go(
    is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def predict(payload: Any) -> Iterator[str]:
        try:
            yield "a"
        finally:
            raise RuntimeError("cannot let go")

    async def async_predict(payload: Any) -> AsyncIterator[str]:
        try:
            yield "a"
        finally:
            raise RuntimeError("cannot let go")

    caplog.clear()
    with caplog.at_level(logging.ERROR, "mpserve"):
        async with asked(Giving(async_predict if is_async else predict)) as (_, asker):
            await (await begin(asker)).aclose()
    assert "a generator of model m could not be closed" in caplog.text
    assert "cannot let go" in caplog.text


@each("kind", [generator, async_generator])
async def test_others_are_answered_between_two_steps_also_where_the_model_takes_one_call_at_a_time(kind: Any) -> None:
    model = Giving(kind("a", "b"))
    model.concurrency = 1
    async with asked(model) as (_, asker):
        streams = [await begin(asker) for _ in range(2)]
        for part in "ab":
            assert [await anext(stream) for stream in streams] == [part, part]
        for stream in streams:
            await stream.aclose()


async def test_steps_of_an_async_generator_keep_to_concurrency() -> None:
    running, most = 0, 0

    async def predict(payload: Any) -> AsyncIterator[int]:
        nonlocal running, most
        for number in range(3):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            yield number

    model = Giving(predict)
    model.concurrency = 1
    async with asked(model) as (_, asker):
        await asyncio.gather(*[read(stream) for stream in [await begin(asker) for _ in range(3)]])
    assert most == 1


async def test_a_stream_is_one_request_in_the_statistics_and_succeeds_if_it_is_read_to_its_end() -> None:
    def counts(asker: Asker) -> list[int]:
        (told,) = asker.statistics.told("m")
        return [told["inference_stats"][each]["count"] for each in ("success", "fail")]

    async with asked(Giving(generator("a", "b"))) as (_, asker):
        streams = [await begin(asker) for _ in range(3)]
        assert counts(asker) == [0, 0]
        await read(streams[0])
        await anext(streams[1])
        await streams[1].aclose()
        assert counts(asker) == [1, 1]
        await streams[2].aclose()
        assert counts(asker) == [1, 2]


async def test_log_lines_of_a_step_carry_the_models_name() -> None:
    async def async_predict(payload: Any) -> AsyncIterator[str]:
        yield model_in_log.get()

    assert await all_parts(Giving(lambda payload: (model_in_log.get() for _ in range(1)))) == ["m"]
    assert await all_parts(Giving(async_predict)) == ["m"]


async def test_postprocess_is_given_the_iterator_as_in_the_sdk() -> None:
    class Upper(Model):
        name = "m"

        def preprocess(self, payload: Any, headers: Any = None) -> Any:
            return f"{payload}!"

        def predict(self, payload: Any, headers: Any = None) -> Iterator[str]:
            yield from payload

        def postprocess(self, result: Any, headers: Any = None) -> Iterator[str]:
            return (part.upper() for part in result)

    assert await all_parts(Upper(), "ab") == ["A", "B", "!"]


def request(*wanted: str) -> InferRequest:
    given = InferInput("x", [2], "FP32", np.array([1, 2], np.float32))
    outputs = [RequestedOutput(name) for name in wanted]
    return InferRequest("m", [given], request_id="7", request_outputs=outputs)


async def test_each_response_is_made_complete_by_the_request() -> None:
    outputs = [InferOutput(name, [1], "INT64", [1]) for name in "ab"]
    parts = [InferResponse(None, "m", outputs), InferResponse("own", "m", outputs)]
    responses = await all_parts(Giving(generator(*parts)), request("b"))
    assert [(each.id, len(each.outputs)) for each in responses] == [("7", 1), ("own", 1)]
    with pytest.raises(InvalidInput, match="Unexpected inference output 'z'"):
        await all_parts(Giving(generator(*parts)), request("z"))


class Rows(TensorModel):
    """Gives the rows of its input one by one; ``closed`` says that its generator was."""

    name = "m"
    inputs = (Tensor("x", "FP32", (-1,)),)
    outputs = (Tensor("y", "FP32", (1,)),)
    closed = False

    def predict(self, x: Any) -> Any:
        try:
            for value in x:
                yield np.array([value])
        finally:
            self.closed = True


class AsyncRows(Rows):
    async def predict(self, x: Any) -> Any:
        try:
            for value in x:
                yield np.array([value])
        finally:
            self.closed = True


class LateRows(AsyncRows):
    async def predict(self, x: Any) -> Any:
        return super().predict(x)


class Whole(Rows):
    """Its parts are responses to a stage behind its predict."""

    def postprocess(self, result: Any, headers: Any = None) -> Any:
        return result


@each("kind", [Rows, AsyncRows, LateRows, Whole])
async def test_a_tensor_model_yields_arrays_and_its_generator_is_closed(kind: type[Rows]) -> None:
    model = kind()
    responses = await all_parts(model, request())
    assert [response.outputs[0].as_numpy().tolist() for response in responses] == [[1], [2]]
    assert [response.id for response in responses] == ["7", "7"]
    model.closed = False
    async with asked(model) as (_, asker):
        await (await begin(asker, request())).aclose()
    assert model.closed


async def test_a_part_that_a_tensor_model_does_not_declare_is_its_fault() -> None:
    class Wide(Rows):
        def predict(self, x: Any) -> Any:
            yield np.zeros(3)

    with pytest.raises(InferenceError, match=r"declared with shape \[1\], the model gave \[3\]"):
        await all_parts(Wide(), request())

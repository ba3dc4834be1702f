"""Answers in parts: whatever iterator a model gives, it is read, blamed, held and closed alike."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mpserve.errors import InferenceError, InvalidInput, MPServeError, NotSupported, ServerNotReady
from mpserve.logging import model as model_in_log
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput
from mpserve.serving.core import ServerCore
from mpserve.serving.model import Model
from mpserve.serving.stream import ModelStream
from mpserve.serving.tensors import Tensor, TensorModel
from tests.asgi import loaded
from tests.asking import Asker


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


KINDS = pytest.mark.parametrize(
    "kind",
    [generator, async_generator, coroutine_of_async_generator, plain_iterator, plain_async_iterator],
    ids=lambda kind: kind.__name__,
)


def streaming(model: Model, test: Callable[[ModelStream, ServerCore], Awaitable[Any]], payload: Any = None) -> Any:
    """The result of ``test`` on the answer of this model, after which nothing may be held any more."""

    async def main() -> Any:
        async with loaded(model) as core:
            stream, _ = await Asker(core).run("predict", model.name, None, payload, {})
            assert isinstance(stream, ModelStream)
            result = await test(stream, core)
            assert core.row.in_flight == 0
            await core.find(model.name).retire()
            return result

    return asyncio.run(asyncio.wait_for(main(), 60))


async def read(stream: ModelStream, core: ServerCore) -> list[Any]:
    return [part async for part in stream]


@KINDS
def test_every_iterator_is_read_to_its_end(kind: Any) -> None:
    assert streaming(Giving(kind("a", "b", "c")), read) == ["a", "b", "c"]
    assert streaming(Giving(kind()), read) == []


@KINDS
@pytest.mark.parametrize("before", [(), ("a",)], ids=["at first", "later"])
@pytest.mark.parametrize(
    ("error", "blamed", "words"),
    [
        (ValueError("bad"), InferenceError, "ValueError : bad"),
        (SystemExit(3), InferenceError, "RuntimeError : SystemExit: 3"),
        (NotImplementedError(), NotSupported, "Model m does not implement predict."),
        (InvalidInput("no cat"), InvalidInput, "no cat"),
        (InferenceError("tired"), InferenceError, "tired"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_is_raised_is_blamed_as_for_a_whole_answer(
    kind: Any, before: Any, error: BaseException, blamed: type[MPServeError], words: str
) -> None:
    async def test(stream: ModelStream, core: ServerCore) -> None:
        for part in before:
            assert await anext(stream) == part
        with pytest.raises(blamed) as caught:
            await anext(stream)
        assert str(caught.value) == words
        assert caught.value is error or caught.value.__cause__ is not None

    streaming(Giving(kind(*before, error)), test)


@KINDS
def test_the_model_is_held_and_the_request_in_flight_until_the_end(kind: Any) -> None:
    async def test(stream: ModelStream, core: ServerCore) -> None:
        retiring = asyncio.ensure_future(core.find("m").retire())
        assert await anext(stream) == "a"
        await core.offload(int)
        assert (core.row.in_flight, retiring.done()) == (1, False)
        assert [part async for part in stream] == ["b"]
        await retiring

    streaming(Giving(kind("a", "b")), test)


@KINDS
@pytest.mark.parametrize("steps", [0, 1])
def test_closing_it_lets_the_model_go(kind: Any, steps: int) -> None:
    async def test(stream: ModelStream, core: ServerCore) -> None:
        for _ in range(steps):
            await anext(stream)
        await stream.aclose()
        await stream.aclose()

    streaming(Giving(kind("a", "b")), test)


class Watched:
    """Notes the thread that each of its moments is in."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str]] = []

    def note(self, what: str) -> None:
        self.notes.append((what, threading.current_thread().name))


def test_a_generator_is_advanced_and_closed_in_the_models_thread() -> None:
    def predict(payload: Any) -> Iterator[str]:
        try:
            for part in "abc":
                watched.note(part)
                yield part
        finally:
            watched.note("closed")

    async def test(stream: ModelStream, core: ServerCore) -> None:
        await anext(stream)
        await stream.aclose()

    watched = Watched()
    streaming(Giving(predict), test)
    assert watched.notes == [("a", "mpserve-m-0"), ("closed", "mpserve-m-0")]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_under_way_is_the_last_and_the_end_comes_after_it(threads: int) -> None:
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

    async def test(stream: ModelStream, core: ServerCore) -> None:
        reading = asyncio.ensure_future(anext(stream))
        await core.offload(begun.wait, 60)
        reading.cancel()
        closing = asyncio.ensure_future(stream.aclose())
        await core.offload(int)
        assert not closing.done()
        go_on.set()
        await closing
        assert reading.cancelled()

    notes: list[str] = []
    begun, go_on = threading.Event(), threading.Event()
    model = Giving(predict)
    model.concurrency = threads
    streaming(model, test)
    assert notes == ["began", "went on", "closed"]


def test_a_waiting_async_generator_is_cancelled_where_it_waits() -> None:
    async def predict(payload: Any) -> AsyncIterator[str]:
        try:
            begun.set()
            await asyncio.Event().wait()
            yield "never"
        finally:
            closed.set()

    async def test(stream: ModelStream, core: ServerCore) -> None:
        reading = asyncio.ensure_future(anext(stream))
        await begun.wait()
        reading.cancel()
        await stream.aclose()
        assert closed.is_set()

    begun, closed = asyncio.Event(), asyncio.Event()
    streaming(Giving(predict), test)


@pytest.mark.parametrize("kind", [generator, async_generator])
def test_when_the_model_stops_its_open_streams_are_closed_and_do_not_seem_whole(kind: Any) -> None:
    async def test(stream: ModelStream, core: ServerCore) -> None:
        await anext(stream)
        await core.find("m").stop()
        with pytest.raises(ServerNotReady, match="cut short"):
            await anext(stream)

    streaming(Giving(kind("a", "b")), test)


def test_a_reader_who_waits_when_the_model_stops_is_told() -> None:
    async def predict(payload: Any) -> AsyncIterator[str]:
        begun.set()
        await asyncio.Event().wait()
        yield "never"

    async def test(stream: ModelStream, core: ServerCore) -> None:
        reading = asyncio.ensure_future(anext(stream))
        await begun.wait()
        await core.find("m").stop()
        with pytest.raises(ServerNotReady, match="cut short"):
            await reading

    begun = asyncio.Event()
    streaming(Giving(predict), test)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_finally_block_that_fails_is_logged_and_the_model_let_go(kind: str, caplog: pytest.LogCaptureFixture) -> None:
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

    async def test(stream: ModelStream, core: ServerCore) -> None:
        await anext(stream)
        await stream.aclose()

    with caplog.at_level(logging.ERROR, "mpserve"):
        streaming(Giving(predict if kind == "sync" else async_predict), test)
    assert "a generator of model m could not be closed" in caplog.text
    assert "cannot let go" in caplog.text


@pytest.mark.parametrize("kind", [generator, async_generator])
def test_others_are_answered_between_two_steps(kind: Any) -> None:
    """Also where the model takes one call at a time."""

    async def main() -> None:
        model = Giving(kind("a", "b"))
        model.concurrency = 1
        async with loaded(model) as core:
            streams = [(await Asker(core).run("predict", "m", None, None, {}))[0] for _ in range(2)]
            for part in "ab":
                assert [await anext(stream) for stream in streams] == [part, part]
            for stream in streams:
                await stream.aclose()

    asyncio.run(main())


def test_steps_of_an_async_generator_keep_to_concurrency() -> None:
    running, most = 0, 0

    async def predict(payload: Any) -> AsyncIterator[int]:
        nonlocal running, most
        for number in range(3):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            yield number

    async def main() -> None:
        model = Giving(predict)
        model.concurrency = 1
        async with loaded(model) as core:
            streams = [(await Asker(core).run("predict", "m", None, None, {}))[0] for _ in range(3)]
            await asyncio.gather(*(read(stream, core) for stream in streams))

    asyncio.run(main())
    assert most == 1


def test_a_stream_is_one_request_in_the_statistics_and_succeeds_if_it_is_read_to_its_end() -> None:
    def counts(asker: Asker) -> list[int]:
        (told,) = asker.statistics.told("m")
        return [told["inference_stats"][each]["count"] for each in ("success", "fail")]

    async def main() -> None:
        async with loaded(Giving(generator("a", "b"))) as core:
            asker = Asker(core)
            streams = [(await asker.run("predict", "m", None, None, {}))[0] for _ in range(3)]
            assert counts(asker) == [0, 0]
            await read(streams[0], core)
            await anext(streams[1])
            await streams[1].aclose()
            assert counts(asker) == [1, 1]
            await streams[2].aclose()
            assert counts(asker) == [1, 2]

    asyncio.run(main())


def test_explain_may_answer_in_parts_too() -> None:
    async def main() -> Any:
        async with loaded(Giving(generator("a", ValueError("bad")))) as core:
            stream, _ = await Asker(core).run("explain", "m", None, None, {})
            with pytest.raises(InferenceError, match="bad"):
                await read(stream, core)

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_log_lines_of_a_step_carry_the_models_name(kind: str) -> None:
    def predict(payload: Any) -> Iterator[str]:
        yield model_in_log.get()

    async def async_predict(payload: Any) -> AsyncIterator[str]:
        yield model_in_log.get()

    assert streaming(Giving(predict if kind == "sync" else async_predict), read) == ["m"]


def test_postprocess_is_given_the_iterator_as_in_the_sdk() -> None:
    class Upper(Model):
        name = "m"

        def preprocess(self, payload: Any, headers: Any = None) -> Any:
            return f"{payload}!"

        def predict(self, payload: Any, headers: Any = None) -> Iterator[str]:
            yield from payload

        def postprocess(self, result: Any, headers: Any = None) -> Iterator[str]:
            return (part.upper() for part in result)

    assert streaming(Upper(), read, "ab") == ["A", "B", "!"]


def request(*wanted: str) -> InferRequest:
    given = InferInput("x", [2], "FP32", np.array([1, 2], np.float32))
    outputs = [RequestedOutput(name) for name in wanted]
    return InferRequest("m", [given], request_id="7", request_outputs=outputs, model_version="1")


def test_each_response_is_made_complete_by_the_request() -> None:
    outputs = [InferOutput(name, [1], "INT64", [1]) for name in "ab"]
    parts = [InferResponse(None, "m", outputs), InferResponse("own", "m", outputs)]
    responses = streaming(Giving(generator(*parts)), read, request("b"))
    assert [(each.id, each.model_version, len(each.outputs)) for each in responses] == [("7", "1", 1), ("own", "1", 1)]


def test_an_output_that_a_part_does_not_have_is_the_clients_fault() -> None:
    async def test(stream: ModelStream, core: ServerCore) -> None:
        with pytest.raises(InvalidInput, match="Unexpected inference output 'z'"):
            await anext(stream)

    streaming(Giving(generator(InferResponse(None, "m", []))), test, request("z"))


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


TENSOR_MODELS = pytest.mark.parametrize("model", [Rows, AsyncRows, LateRows])


@TENSOR_MODELS
def test_a_tensor_model_yields_arrays(model: type[Rows]) -> None:
    responses = streaming(model(), read, request())
    assert [response.outputs[0].as_numpy().tolist() for response in responses] == [[1], [2]]
    assert [response.id for response in responses] == ["7", "7"]


@TENSOR_MODELS
def test_a_tensor_models_generator_is_closed(model: type[Rows]) -> None:
    async def test(stream: ModelStream, core: ServerCore) -> None:
        await anext(stream)
        await stream.aclose()

    rows = model()
    streaming(rows, test, request())
    assert rows.closed


def test_a_part_that_a_tensor_model_does_not_declare_is_its_fault() -> None:
    class Wide(Rows):
        def predict(self, x: Any) -> Any:
            yield np.zeros(3)

    async def test(stream: ModelStream, core: ServerCore) -> None:
        with pytest.raises(InferenceError, match=r"declared with shape \[1\], the model gave \[3\]"):
            await anext(stream)

    streaming(Wide(), test, request())

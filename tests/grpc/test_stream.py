import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
import pytest

from mpserve import InferRequest, InferResponse
from mpserve.grpc.stream import MAX_CONCURRENT, Stream
from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.cases import each, until
from tests.grpc.models import Double, Held, Raising
from tests.grpc.serving import infer, serving, streamed


def test_each_request_has_one_response_that_is_its_last() -> None:
    (first,) = streamed(Double(), infer("double", id="1"))
    output = {"name": "y", "datatype": "FP32", "shape": [2], "contents": {"fp32_contents": [2, 4]}}
    final = {"triton_final_response": {"bool_param": True}}
    expected = pb.ModelInferResponse(model_name="double", id="1", parameters=final, outputs=[output])
    assert first == pb.ModelStreamInferResponse(infer_response=expected)


def test_an_error_is_told_and_the_stream_goes_on() -> None:
    requests = [
        infer("nope", id="1"),
        infer("raising", id="2", parameters={"raise": {"string_param": "error"}}),
        infer("raising", id="3", inputs=[]),
        b"\x0a\x80",
        infer("raising", id="5", parameters={"raise": {"string_param": "invalid"}}),
    ]
    responses = streamed(Raising(), *requests)
    assert [response.infer_response.id for response in responses] == ["1", "2", "3", "", "5"]
    assert [response.error_message for response in responses] == [
        "Model with name nope does not exist. There are: raising.",
        "RuntimeError : boom",
        "the request has no inputs, expected one or more",
        "the message is cut short, or has a number of more than 64 bits",
        "expected a cat",
    ]


class Slower(Held):
    """The first request waits until the second has been answered."""

    name = "slower"

    async def predict(self, payload: InferRequest, headers: Any = None) -> InferResponse:
        if payload.id == "2":
            self.let_go.set()
        return await super().predict(payload, headers)


def test_requests_run_at_the_same_time_and_are_answered_in_their_order() -> None:
    responses = streamed(Slower(), infer("slower", id="1"), infer("slower", id="2"))
    assert [response.infer_response.id for response in responses] == ["1", "2"]


async def test_a_stream_is_not_read_far_ahead_of_its_answers() -> None:
    model = Held()
    async with serving(model) as client:
        call = client.stream(*[infer("held", id=str(number)) for number in range(3 * MAX_CONCURRENT)])
        for _ in range(MAX_CONCURRENT):
            await model.begun.acquire()
        for _ in range(20):
            await client("ServerLive")
        assert model.begun.locked()
        model.let_go.set()
        assert [response.infer_response.id async for response in call] == [str(n) for n in range(3 * MAX_CONCURRENT)]


async def test_a_client_that_goes_away_stops_the_wait_for_the_model() -> None:
    model = Held()
    async with serving(model) as client:
        call = client.stream(infer("held"), infer("held"))
        await model.begun.acquire()
        await model.begun.acquire()
        call.cancel()
        await until(lambda: model.cancelled == 2)


@each("has_sent_all", [False, True])
async def test_a_drain_answers_what_was_sent_and_ends_a_stream_on_which_more_may_come(has_sent_all: bool) -> None:
    model = Held()
    async with serving(model) as client:
        call = client.stream()
        await call.write(infer("held", id="1"))
        await model.begun.acquire()
        if has_sent_all:
            await call.done_writing()
            (stream,) = client.server._servicer._streams
            await until(stream._reading.done)
        draining = asyncio.ensure_future(client.server.drain(30))
        await asyncio.sleep(0)
        model.let_go.set()
        assert (await call.read()).infer_response.id == "1"
        assert await call.code() is (grpc.StatusCode.OK if has_sent_all else grpc.StatusCode.UNAVAILABLE)
        assert ("the server is ending" in await call.details()) is not has_sent_all
        await draining


async def test_an_idle_stream_does_not_hold_a_drain_up() -> None:
    async with serving(Double()) as client:
        call = client.stream()
        await call.write(infer("double"))
        await call.read()
        await client.server.drain(3600)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE


@each("breaks", ["reading", "writing"])
async def test_a_connection_that_breaks_ends_the_stream_and_closes_its_answers(breaks: str) -> None:
    written, closed, gone = [], [], asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        yield b"1"
        await gone.wait()
        raise RuntimeError("the connection broke")

    async def answer(data: bytes) -> AsyncGenerator[bytes, None]:
        try:
            yield data
            while breaks == "writing":
                yield data
        finally:
            closed.append(data)

    async def write(data: bytes) -> None:
        if breaks == "writing":
            raise RuntimeError("the connection broke")
        written.append(data)
        gone.set()

    with pytest.raises(RuntimeError, match="broke"):
        await Stream(requests(), answer).run(write)
    assert (written, closed) == ([] if breaks == "writing" else [b"1"], [b"1"])

"""Models that answer in parts, over gRPC: ModelStreamInfer carries any number of responses, ModelInfer none."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from mpserve import InferOutput, InferRequest, InferResponse, InvalidInput, Model, Tensor, TensorModel
from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.grpc.serving import infer, refusal, serving
from tests.grpc.test_stream import answers, each

FINAL = "triton_final_response"
ENABLE = {"triton_enable_empty_final_response": {"bool_param": True}}


class Squares(TensorModel):
    name = "squares"
    inputs = (Tensor("x", "FP32", (-1,)),)
    outputs = (Tensor("y", "FP32", (1,)),)

    def predict(self, x: Any) -> Any:
        for value in x:
            yield np.array([value * value])


class Parts(Model):
    """Gives what it was made with, and raises what is an exception."""

    name = "parts"

    def __init__(self, *parts: Any) -> None:
        super().__init__()
        self.parts = parts
        self.closed = 0

    def predict(self, payload: InferRequest, headers: Any = None) -> Iterator[Any]:
        try:
            for part in self.parts:
                if isinstance(part, Exception):
                    raise part
                yield part
        finally:
            self.closed += 1


def finals(responses: list[pb.ModelStreamInferResponse]) -> list[bool]:
    return [response.infer_response.parameters[FINAL].bool_param for response in responses]


def response(value: float) -> InferResponse:
    return InferResponse(None, "parts", [InferOutput("y", [1], "FP32", [value])])


def test_each_part_is_a_response_in_the_form_of_the_request() -> None:
    first, second = answers(Squares(), infer("squares", id="7"))
    output = {"name": "y", "datatype": "FP32", "shape": [1], "contents": {"fp32_contents": [1]}}
    expected = pb.ModelInferResponse(
        model_name="squares", id="7", parameters={FINAL: {"bool_param": False}}, outputs=[output]
    )
    assert first == pb.ModelStreamInferResponse(infer_response=expected)
    assert list(second.infer_response.outputs[0].contents.fp32_contents) == [4]


@pytest.mark.parametrize("parts", [(), (response(1), response(2))], ids=["none", "two"])
def test_an_empty_final_response_is_sent_if_asked_for(parts: Any) -> None:
    *others, last = answers(Parts(*parts), infer("parts", id="7", parameters=ENABLE))
    assert finals(others) == [False] * len(parts)
    expected = pb.ModelInferResponse(model_name="parts", id="7", parameters={FINAL: {"bool_param": True}})
    assert last == pb.ModelStreamInferResponse(infer_response=expected)


@pytest.mark.parametrize(
    ("part", "name", "datatype"),
    [
        ("hello", "text_output", "BYTES"),
        (response(1), "y", "FP32"),
        (
            {"model_name": "parts", "outputs": [{"name": "z", "shape": [1], "datatype": "INT64", "data": [1]}]},
            "z",
            "INT64",
        ),
    ],
    ids=["text", "response", "dict"],
)
def test_what_a_part_may_be(part: Any, name: str, datatype: str) -> None:
    (given,) = answers(Parts(part), infer("parts", id="7"))
    (output,) = given.infer_response.outputs
    assert (given.error_message, output.name, output.datatype) == ("", name, datatype)


@pytest.mark.parametrize(("error", "says", "logged"), [
    (RuntimeError("boom"), "RuntimeError : boom", True), (InvalidInput("no cat"), "no cat", False),
])  # fmt: skip
def test_an_error_ends_the_answer_and_not_the_stream(
    error: Exception, says: str, logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "mpserve"):
        given = answers(Parts(response(1), error, response(2)), *[infer("parts", id=number) for number in "12"])
    assert sorted((each.infer_response.id, each.error_message) for each in given) == [
        ("1", ""), ("1", says), ("2", ""), ("2", says)
    ]  # fmt: skip
    assert [final for each, final in zip(given, finals(given), strict=True) if each.error_message] == [True, True]
    assert ("Traceback" in caplog.text) == logged


def test_a_part_that_cannot_be_sent_closes_the_generator() -> None:
    model = Parts(response(1), object(), response(2))
    given = answers(model, infer("parts"))
    assert ["cannot be sent over gRPC" in each.error_message for each in given] == [False, True]
    assert model.closed == 1


class Two(Model):
    """Gives parts without end to the request with the id "endless", and one to others."""

    name = "two"

    def __init__(self) -> None:
        super().__init__()
        self.closed = asyncio.Event()

    async def predict(self, payload: InferRequest, headers: Any = None) -> AsyncIterator[str]:
        try:
            yield "first"
            while payload.id == "endless":
                await asyncio.sleep(0)
                yield "more"
        finally:
            self.closed.set()


async def test_an_answer_without_end_does_not_keep_the_others_and_a_cancelled_call_closes_it() -> None:
    model = Two()
    async with serving(model) as client:
        call = client.stream()
        await call.write(infer("two", id="endless"))
        assert (await call.read()).infer_response.id == "endless"
        await call.write(infer("two", id="other"))
        while (await call.read()).infer_response.id != "other":
            pass
        model.closed.clear()
        call.cancel()
        await model.closed.wait()


class Stepwise(Model):
    """Waits before its second part until it is let go."""

    name = "stepwise"

    def __init__(self) -> None:
        super().__init__()
        self.let_go = asyncio.Event()
        self.closed = asyncio.Event()

    async def predict(self, payload: InferRequest, headers: Any = None) -> AsyncIterator[str]:
        try:
            yield "a"
            await self.let_go.wait()
            yield "b"
        finally:
            self.closed.set()


async def test_each_response_arrives_before_the_next_is_made() -> None:
    model = Stepwise()
    async with serving(model) as client:
        call = client.stream(each(infer("stepwise")))
        await call.read()
        model.let_go.set()
        await call.read()
        assert await call.read() is grpc.aio.EOF


async def test_model_infer_refuses_it_in_tritons_words_and_runs_nothing() -> None:
    model = Parts("a")
    async with serving(model) as client:
        code, words = await refusal(client("ModelInfer", infer("parts")))
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert "doesn't support models with decoupled transaction policy" in words
        assert "ModelStreamInfer" in words
        assert model.closed == 0

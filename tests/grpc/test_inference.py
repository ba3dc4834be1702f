"""Models that answer in parts, over gRPC: ModelStreamInfer carries any number of responses, ModelInfer none."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from mpserve import InferOutput, InferRequest, InferResponse, InvalidInput, Model, Tensor, TensorModel
from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.cases import each
from tests.grpc.serving import infer, refusal, serving, streamed

FINAL = "triton_final_response"


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
    first, second = streamed(Squares(), infer("squares", id="7"))
    output = {"name": "y", "datatype": "FP32", "shape": [1], "contents": {"fp32_contents": [1]}}
    expected = pb.ModelInferResponse(
        model_name="squares", id="7", parameters={FINAL: {"bool_param": False}}, outputs=[output]
    )
    assert first == pb.ModelStreamInferResponse(infer_response=expected)
    assert list(second.infer_response.outputs[0].contents.fp32_contents) == [4]


@each("parts", [(), (response(1), response(2))])
def test_an_empty_final_response_is_sent_if_asked_for(parts: Any) -> None:
    enable = {"triton_enable_empty_final_response": {"bool_param": True}}
    *others, last = streamed(Parts(*parts), infer("parts", id="7", parameters=enable))
    assert finals(others) == [False] * len(parts)
    expected = pb.ModelInferResponse(model_name="parts", id="7", parameters={FINAL: {"bool_param": True}})
    assert last == pb.ModelStreamInferResponse(infer_response=expected)


OUTPUT = {"name": "z", "shape": [1], "datatype": "INT64", "data": [1]}


@each("part, name, datatype", [
    ("hello", "text_output", "BYTES"), (response(1), "y", "FP32"),
    ({"model_name": "parts", "outputs": [OUTPUT]}, "z", "INT64"),
])  # fmt: skip
def test_a_part_may_be_a_text_a_response_or_a_dict(part: Any, name: str, datatype: str) -> None:
    (given,) = streamed(Parts(part), infer("parts", id="7"))
    (output,) = given.infer_response.outputs
    assert (given.error_message, output.name, output.datatype) == ("", name, datatype)


@each("error, says, logged", [
    (RuntimeError("boom"), "RuntimeError : boom", True), (InvalidInput("no cat"), "no cat", False),
])  # fmt: skip
def test_an_error_ends_the_answer_and_not_the_stream(
    error: Exception, says: str, logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    given = streamed(Parts(response(1), error, response(2)), *[infer("parts", id=number) for number in "12"])
    told = [
        (part.infer_response.id, part.error_message, final) for part, final in zip(given, finals(given), strict=True)
    ]
    assert sorted(told) == [("1", "", False), ("1", says, True), ("2", "", False), ("2", says, True)]
    assert ("Traceback" in caplog.text) == logged


def test_a_part_that_cannot_be_sent_closes_the_generator() -> None:
    model = Parts(response(1), object(), response(2))
    given = streamed(model, infer("parts"))
    assert ["cannot be sent over gRPC" in part.error_message for part in given] == [False, True]
    assert model.closed == 1


class Endless(Model):
    """Gives a part, and more without end to the request with the id "endless"; each after it was let go."""

    name = "endless"

    def __init__(self) -> None:
        super().__init__()
        self.let_go = asyncio.Event()
        self.closed = asyncio.Event()

    async def predict(self, payload: InferRequest, headers: Any = None) -> AsyncIterator[str]:
        try:
            yield "first"
            while payload.id == "endless":
                await self.let_go.wait()
                await asyncio.sleep(0)
                yield "more"
        finally:
            self.closed.set()


async def test_an_answer_without_end_comes_part_by_part_beside_others_until_the_call_is_cancelled() -> None:
    model = Endless()
    async with serving(model) as client:
        call = client.stream()
        await call.write(infer("endless", id="endless"))
        assert (await call.read()).infer_response.id == "endless"  # before the second part is made
        model.let_go.set()
        await call.write(infer("endless", id="other"))
        while (await call.read()).infer_response.id != "other":
            pass
        model.closed.clear()
        call.cancel()
        await model.closed.wait()


async def test_model_infer_refuses_it_in_tritons_words_and_runs_nothing() -> None:
    model = Parts("a")
    async with serving(model) as client:
        code, words = await refusal(client("ModelInfer", infer("parts")))
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert "doesn't support models with decoupled transaction policy" in words
        assert "ModelStreamInfer" in words
        assert model.closed == 0

"""The calls of the inference service: metadata, ModelInfer, and what a client is told of a fault."""

import logging
import re
from typing import Any

import grpc
import numpy as np
import pytest

from mpserve import InferOutput, InferResponse
from mpserve.errors import Code
from mpserve.grpc.calls import STATUS
from mpserve.grpc.servicer import SERVICE
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.serving.extensions.names import EXTENSIONS
from mpserve.version import VERSION
from tests.cases import each, until
from tests.grpc.models import Answering, Double, Echo, Heading, Raising
from tests.grpc.serving import ask, infer, refusal, refused, run, serving, with_a_call_in_hand

INTERNAL, INVALID, MISSING = grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


def raising(what: str) -> pb.ModelInferRequest:
    return infer("raising", parameters={"raise": {"string_param": what}})


def test_liveness_readiness_and_metadata() -> None:
    assert ask(Double(), "ServerLive").live
    assert ask(Double(), "ServerReady").ready
    metadata = ask(Double(), "ServerMetadata")
    assert (metadata.name, metadata.version, list(metadata.extensions)) == ("mpserve", VERSION, list(EXTENSIONS))
    assert ask(Double(), "ModelMetadata", name="double") == pb.ModelMetadataResponse(
        name="double",
        versions=["1"],
        platform="numpy",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [-1]}],
        outputs=[{"name": "y", "datatype": "FP32", "shape": [-1]}],
    )


@each("name, version, ready", [
    ("double", "", True), ("double", "1", True), ("double", "2", False), ("nope", "", False), ("", "", False),
])  # fmt: skip
def test_a_model_that_is_not_there_is_not_ready_without_an_error(name: str, version: str, ready: bool) -> None:
    assert ask(Double(), "ModelReady", name=name, version=version).ready is ready


async def test_a_model_that_left_service_is_not_ready_and_refuses() -> None:
    model = Double()
    async with serving(model) as client:
        model.ready = False
        assert not (await client("ModelReady", name="double")).ready
        assert not (await client("ServerReady")).ready
        status = await refusal(client("ModelInfer", infer("double")))
        assert status == (grpc.StatusCode.UNAVAILABLE, "Model with name double is not ready.")


async def test_each_version_of_a_model_is_asked_by_its_field() -> None:
    class Older(Double):
        version = "0.9"
        platform = "older"

    async with serving(Older(), Double()) as client:
        metadata = [await client("ModelMetadata", name="double", version=version) for version in ("", "1", "0.9")]
        assert [list(each.versions) for each in metadata] == [["0.9", "1"]] * 3
        assert [each.platform for each in metadata] == ["numpy", "numpy", "older"]
        answers = [await client("ModelInfer", infer("double", model_version=version)) for version in ("", "0.9")]
        assert [answer.model_version for answer in answers] == ["1", "0.9"]
        assert (await client("ModelReady", name="double", version="0.9")).ready


def test_raw_contents_are_answered_with_raw_ones() -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2]}
    request = infer("double", inputs=[tensor], raw_input_contents=[np.array([1, 2], np.float32).tobytes()])
    response = ask(Double(), request=request)
    assert response.raw_output_contents == [np.array([2, 4], np.float32).tobytes()]
    assert not response.outputs[0].HasField("contents")


async def test_a_model_sees_id_parameters_and_headers() -> None:
    model = Echo()
    async with serving(model) as client:
        metadata = (("x-user", "me"), ("x-request-id", "r-1"), ("trace-bin", b"\x00\xff"))
        request = infer("echo", id="7", parameters={"priority": {"uint64_param": 2}})
        response = await client("ModelInfer", request, metadata)
    assert (model.request.id, model.request.parameters) == ("7", {"priority": 2})
    assert (model.headers["x-user"], model.headers["trace-bin"]) == ("me", "AP8=")
    assert response.parameters["priority"].int64_param == 2


async def trailers(call: Any) -> dict[str, Any]:
    return dict(iter(await call.trailing_metadata()))


async def test_response_headers_come_as_trailing_metadata(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Heading(**{"X-Cost": "3", "content-length": "9", "x!odd": "1", "x-umlaut": "ü"})) as client:
        headers = await trailers(client("ModelInfer", infer("heading")))
    assert headers["x-cost"] == "3"
    assert not {"content-length", "x!odd", "x-umlaut"} & headers.keys()
    left_out = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [re.findall("'(.*?)'", line) for line in left_out] == [["x!odd"], ["x-umlaut"]]


@each("given, kept", [("r-1", True), ("", False), ("with space", False), ("x" * 129, False)])
async def test_a_call_has_an_id_which_is_returned_also_with_an_error(given: str, kept: bool) -> None:
    async with serving(Double()) as client:
        for name in ("double", "nope"):
            call = client("ModelInfer", infer(name), (("x-request-id", given),))
            identity = (await trailers(call))["x-request-id"]
            assert identity
            assert (identity == given) is kept


WRONG = InferResponse(None, "answering", [InferOutput("y", [3], "FP32", [1.0])])
ANY = infer("answering")


@each("model, method, request_, code, says", [
    (Raising(), "ModelInfer", raising("error"), INTERNAL, "^RuntimeError : boom$"),
    (Raising(), "ModelInfer", raising("inference"), INTERNAL, "^bad infer$"),
    (Raising(), "ModelInfer", raising("invalid"), INVALID, "^expected a cat$"),
    (Raising(), "ModelInfer", raising("missing"), grpc.StatusCode.UNIMPLEMENTED, "^no such kernel$"),
    (Raising(), "ModelInfer", raising("long"), INVALID, "^ü{1000}$"),  # as far as headers go
    (Raising(), "ModelInfer", infer("nope"), MISSING, r"^Model with name nope does not exist\. There are: raising\.$"),
    (Raising(), "ModelInfer", infer("raising", model_version="7"), MISSING, "@7 does not exist. There are: raising@1."),
    (Raising(), "ModelInfer", infer("raising", inputs=[]), INVALID, "no inputs"),
    (Raising(), "ModelInfer", b"\x0a\xff", INVALID, "cut short"),
    (Double(), "ModelMetadata", pb.ModelMetadataRequest(name="nope"), MISSING, "nope"),
    (Double(), "ModelMetadata", pb.ModelMetadataRequest(name="double", version="2"), MISSING, "double@2"),
    (Answering({"predictions": [1]}), "ModelInfer", ANY, INTERNAL, "expected an InferResponse"),
    (Answering(WRONG), "ModelInfer", ANY, INTERNAL, "output 'y': cannot reshape"),
])  # fmt: skip
def test_a_fault_has_the_status_of_whose_it_is(model: Any, method: str, request_: Any, code: Any, says: str) -> None:
    got, words = refused(model, method, request_)
    assert got is code
    assert re.search(says, words), words


def test_every_error_code_has_a_status() -> None:
    assert STATUS.keys() == set(Code)


@each("what, logged", [("error", [RuntimeError]), ("invalid", [])])
def test_the_models_failure_is_logged_with_its_traceback_and_the_clients_is_not(
    what: str, logged: list[type], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    refused(Raising(), request=raising(what))
    errors = [record.exc_info for record in caplog.records if record.levelno == logging.ERROR]
    assert [type(error and error[1]) for error in errors] == logged


def test_an_unforeseen_error_says_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    class Undescribed(Double):
        inputs = ()

        def get_input_types(self) -> Any:
            return [{"name": object()}]

    assert refused(Undescribed(), "ModelMetadata", name="double") == (INTERNAL, "internal server error")
    assert "unexpected error" in caplog.text


async def test_every_method_of_the_service_is_answered() -> None:
    async with serving(Double()) as client:
        for method in set(SERVICE.methods_by_name) - {"ModelStreamInfer"}:
            assert "Method not found" not in (await client(method).details() or ""), method


def test_the_sdks_answers_are_sent() -> None:
    output = {"name": "y", "shape": [1], "datatype": "FP32", "contents": {"fp32_contents": [5.0]}}
    document = {"id": "1", "model_name": "answering", "outputs": [output]}
    message = pb.ModelInferResponse(**document)
    for answer in (document, message):
        assert ask(Answering(answer), request=ANY) == message


async def test_a_cancelled_call_stops_waiting_for_the_model() -> None:
    async with with_a_call_in_hand() as (_, model, call):
        call.cancel()
        assert await call.code() is grpc.StatusCode.CANCELLED
        await until(lambda: model.cancelled)


def test_calls_are_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    counted = []

    async def test() -> None:
        count = {"count": lambda method, status: counted.append((method, status))}
        async with serving(Double(), server=count, access_log=True) as client:
            await client("ServerLive")
            await refusal(client("ModelInfer", infer("nope")))

    with caplog.at_level(logging.INFO, "mpserve.access"):
        run(test())
    assert counted == [("ServerLive", "OK"), ("ModelInfer", "NOT_FOUND")]
    lines = [record.getMessage() for record in caplog.records if record.name == "mpserve.access"]
    assert [line.split('"', 1)[1].rsplit(" ", 2)[0] for line in lines] == ['ServerLive" OK', 'ModelInfer" NOT_FOUND']

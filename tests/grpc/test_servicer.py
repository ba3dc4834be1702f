import asyncio
import logging
import re
from collections.abc import Iterable
from typing import Any

import grpc
import numpy as np
import pytest

from mpserve import InferOutput, InferResponse, Model
from mpserve.errors import Code
from mpserve.grpc.calls import STATUS
from mpserve.grpc.servicer import SERVICE
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.serving.extensions.names import EXTENSIONS
from mpserve.serving.shared_memory.regions import CUDA_REFUSED
from mpserve.version import VERSION
from tests.cases import each
from tests.grpc.models import Answering, Double, Echo, Heading, Held, Raising
from tests.grpc.serving import ask, infer, refusal, run, serving


def raising(what: str) -> pb.ModelInferRequest:
    return infer("raising", parameters={"raise": {"string_param": what}})


def status_of(model: Model, request: Any, method: str = "ModelInfer") -> tuple[grpc.StatusCode, str]:
    async def once() -> tuple[grpc.StatusCode, str]:
        async with serving(model) as client:
            return await refusal(client(method, request))

    return run(once())


def test_liveness_readiness_and_server_metadata() -> None:
    assert ask(Double(), "ServerLive").live
    assert ask(Double(), "ServerReady").ready
    metadata = ask(Double(), "ServerMetadata")
    assert (metadata.name, metadata.version) == ("mpserve", VERSION)
    assert list(metadata.extensions) == list(EXTENSIONS)


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
        code, words = await refusal(client("ModelInfer", infer("double")))
        assert (code, words) == (grpc.StatusCode.UNAVAILABLE, "Model with name double is not ready.")


def test_model_metadata() -> None:
    assert ask(Double(), "ModelMetadata", name="double") == pb.ModelMetadataResponse(
        name="double",
        versions=["1"],
        platform="numpy",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [-1]}],
        outputs=[{"name": "y", "datatype": "FP32", "shape": [-1]}],
    )


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
        code, words = await refusal(client("ModelInfer", infer("double", model_version="2")))
        assert (code, "double@2 does not exist. There are: double@0.9, double@1." in words) == (
            grpc.StatusCode.NOT_FOUND,
            True,
        )


def test_metadata_of_an_unknown_model_or_version_is_not_found() -> None:
    for fields, says in (({"name": "nope"}, "nope"), ({"name": "double", "version": "2"}, "double@2")):
        code, words = status_of(Double(), pb.ModelMetadataRequest(**fields), "ModelMetadata")
        assert code is grpc.StatusCode.NOT_FOUND
        assert says in words


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


def headers_of(metadata: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return dict(iter(metadata))


async def test_response_headers_come_as_trailing_metadata(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Heading(**{"X-Cost": "3", "content-length": "9", "x!odd": "1", "x-umlaut": "ü"})) as client:
        call = client("ModelInfer", infer("heading"))
        await call
        headers = headers_of(await call.trailing_metadata())
    assert headers["x-cost"] == "3"
    assert not {"content-length", "x!odd", "x-umlaut"} & headers.keys()
    left_out = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [re.findall("'(.*?)'", line) for line in left_out] == [["x!odd"], ["x-umlaut"]]


@each("given, kept", [("r-1", True), ("", False), ("with space", False), ("x" * 129, False)])
async def test_a_call_has_an_id_which_is_returned_also_with_an_error(given: str, kept: bool) -> None:
    async with serving(Double()) as client:
        for name in ("double", "nope"):
            call = client("ModelInfer", infer(name), (("x-request-id", given),))
            await call.code()
            identity = headers_of(await call.trailing_metadata())["x-request-id"]
            assert (identity == given) is kept
            assert identity


FAULTS = [
    (raising("error"), grpc.StatusCode.INTERNAL, "^RuntimeError : boom$"),
    (raising("inference"), grpc.StatusCode.INTERNAL, "^bad infer$"),
    (raising("invalid"), grpc.StatusCode.INVALID_ARGUMENT, "^expected a cat$"),
    (raising("missing"), grpc.StatusCode.UNIMPLEMENTED, "^no such kernel$"),
    (infer("nope"), grpc.StatusCode.NOT_FOUND, r"^Model with name nope does not exist\.$"),
    (infer("raising", model_version="7"), grpc.StatusCode.NOT_FOUND, "raising@7 does not exist. There are: raising@1."),
    (infer("raising", inputs=[]), grpc.StatusCode.INVALID_ARGUMENT, "no inputs"),
    (b"\x0a\xff", grpc.StatusCode.INVALID_ARGUMENT, "cut short"),
]


@each("request_, code, says", FAULTS)
def test_a_fault_has_the_status_of_whose_it_is(request_: Any, code: grpc.StatusCode, says: str) -> None:
    got, words = status_of(Raising(), request_)
    assert got is code
    assert re.search(says, words)


def test_every_error_code_has_a_status() -> None:
    assert STATUS.keys() == set(Code)


def test_a_long_message_reaches_the_client_as_far_as_headers_go() -> None:
    code, words = status_of(Raising(), raising("long"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words == "ü" * 1000


def test_the_models_failure_is_logged_with_its_traceback_and_the_clients_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    status_of(Raising(), raising("error"))
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], RuntimeError)
    caplog.clear()
    status_of(Raising(), raising("invalid"))
    assert not [record for record in caplog.records if record.levelno == logging.ERROR]


def test_an_unforeseen_error_says_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    class Undescribed(Double):
        def get_input_types(self) -> Any:
            return [{"name": object()}]

    model = Undescribed()
    model.inputs = ()
    code, words = status_of(model, pb.ModelMetadataRequest(name="double"), "ModelMetadata")
    assert (code, words) == (grpc.StatusCode.INTERNAL, "internal server error")
    assert "unexpected error" in caplog.text


def test_cuda_shared_memory_is_refused_in_words() -> None:
    status = status_of(Double(), pb.CudaSharedMemoryRegisterRequest(), "CudaSharedMemoryRegister")
    assert status == (grpc.StatusCode.UNIMPLEMENTED, CUDA_REFUSED)


def test_every_method_of_the_service_is_answered() -> None:
    async def test() -> list[str]:
        unknown = []
        async with serving(Double()) as client:
            for method in SERVICE.methods_by_name:
                if method != "ModelStreamInfer":
                    call = client(method)
                    words = await call.details() or ""
                    if "Method not found" in words:
                        unknown.append(method)
        return unknown

    assert run(test()) == []


def test_the_sdks_answers_are_sent() -> None:
    output = {"name": "y", "shape": [1], "datatype": "FP32", "contents": {"fp32_contents": [5.0]}}
    document = {"id": "1", "model_name": "answering", "outputs": [output]}
    message = pb.ModelInferResponse(**document)
    for answer in (document, message):
        assert ask(Answering(answer), request=infer("answering")) == message


def test_an_answer_that_is_none_is_the_models_fault() -> None:
    code, words = status_of(Answering({"predictions": [1]}), infer("answering"))
    assert code is grpc.StatusCode.INTERNAL
    assert "expected an InferResponse" in words
    bad = InferResponse(None, "answering", [InferOutput("y", [3], "FP32", [1.0])])
    assert status_of(Answering(bad), infer("answering"))[0] is grpc.StatusCode.INTERNAL


async def test_a_cancelled_call_stops_waiting_for_the_model() -> None:
    model = Held()
    async with serving(model) as client:
        call = client("ModelInfer", infer("held"))
        waiting = asyncio.ensure_future(call.code())
        await model.begun.acquire()
        call.cancel()
        assert await waiting is grpc.StatusCode.CANCELLED
        while not model.cancelled:
            await asyncio.sleep(0.01)


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

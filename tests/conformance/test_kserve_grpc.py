"""The cases of the kserve SDK's own gRPC tests (python/kserve/test/test_grpc_server.py), asked of this server.

The answers are the same but for the parameter ``binary_data_size`` of raw outputs, see docs/coming-from/kserve-differences.md.
"""

from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict

from mpserve import InferRequest
from mpserve.protocol.binary import encode_tensor
from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.conformance.models import Columns, FP16Output
from tests.grpc.serving import refusal, run, serving

FLOATS = [6.8, 2.8, 4.8, 1.4, 6.0, 3.4, 4.5, 1.6]
INTEGERS = [6, 2, 4, 1, 6, 3, 4, 1]
ANIMALS = [b"Cat", b"Dog", b"Wolf", b"Cat", b"Dog", b"Wolf", b"Dog", b"Wolf"]
TRUTHS = [True, False] * 4

TENSORS: dict[str, tuple[str, list[int], str, Any]] = {
    "fp32": ("FP32", [2, 4], "fp32_contents", np.array(FLOATS, np.float32)),
    "int32": ("INT32", [2, 4], "int_contents", np.array(INTEGERS, np.int32)),
    "string": ("BYTES", [8], "bytes_contents", np.array(ANIMALS, object)),
    "uint8": ("UINT8", [2, 4], "uint_contents", np.array(INTEGERS, np.uint8)),
    "bool": ("BOOL", [8], "bool_contents", np.array(TRUTHS)),
}
"""By what they are called: datatype, shape, field of the contents, elements."""


class Five(Columns):
    """Gives back five tensors, flat."""

    name = "TestModel"

    def columns(self, request: InferRequest) -> dict[str, Any]:
        return {f"{name}_output": request.get_input_by_name(f"{name}_input").as_numpy() for name in TENSORS}


class FP16Input(Columns):
    name = "FP16InputModel"

    def columns(self, request: InferRequest) -> dict[str, Any]:
        return {"int32_output": np.arange(1, 9), "fp16_output": request.get_input_by_name("fp16_input").as_numpy()}


def asked(model: str, *inputs: dict[str, Any], raw: Any = ()) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(model_name=model, id="123", inputs=inputs, raw_input_contents=raw)


def given(name: str, typed: bool) -> dict[str, Any]:
    datatype, shape, field, array = TENSORS[name]
    contents = {"contents": {field: array.tolist()}} if typed else {}
    return {"name": f"{name}_input", "datatype": datatype, "shape": shape, **contents}


def raw_of(name: str) -> bytes:
    datatype, _, _, array = TENSORS[name]
    return bytes(encode_tensor(array, datatype))


def output(name: str, datatype: str, **contents: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": ["8"], **contents}


def answer_to(request: pb.ModelInferRequest) -> dict[str, Any]:
    async def main() -> Any:
        async with serving(Five(), FP16Output(), FP16Input()) as client:
            return await client("ModelInfer", request)

    document: dict[str, Any] = MessageToDict(run(main()), preserving_proto_field_name=True)
    assert (document.pop("model_name"), document.pop("id")) == (request.model_name, "123")
    document.pop("model_version", None)
    return document


TYPED = asked("TestModel", *(given(name, typed=True) for name in TENSORS))
RAW = asked("TestModel", *(given(name, typed=False) for name in TENSORS), raw=[raw_of(name) for name in TENSORS])
FP16_OUT = asked("FP16OutputModel", given("fp32", typed=True))
FP16_IN = asked(
    "FP16InputModel",
    {"name": "fp16_input", "datatype": "FP16", "shape": [2, 4]},
    raw=[np.array(FLOATS, np.float16).tobytes()],
)

FP32_RAW, FP16_RAW = "mpnZQDMzM0CamZlAMzOzPwAAwECamVlAAACQQM3MzD8=", "zUaaQc1Emj0ARs1CgERmPg=="
ENCODED = ["Q2F0", "RG9n", "V29sZg==", "Q2F0", "RG9n", "V29sZg==", "RG9n", "V29sZg=="]


FIVE_RAW = [
    FP32_RAW, "BgAAAAIAAAAEAAAAAQAAAAYAAAADAAAABAAAAAEAAAA=",
    "AwAAAENhdAMAAABEb2cEAAAAV29sZgMAAABDYXQDAAAARG9nBAAAAFdvbGYDAAAARG9nBAAAAFdvbGY=", "BgIEAQYDBAE=",
    "AQABAAEAAQA=",
]  # fmt: skip
ONE_TO_EIGHT = "AQAAAAAAAAACAAAAAAAAAAMAAAAAAAAABAAAAAAAAAAFAAAAAAAAAAYAAAAAAAAABwAAAAAAAAAIAAAAAAAAAA=="


@pytest.mark.parametrize(("request_", "outputs", "raw"), [
    (TYPED, [
        output("fp32_output", "FP32", contents={"fp32_contents": FLOATS}),
        output("int32_output", "INT32", contents={"int_contents": INTEGERS}),
        output("string_output", "BYTES", contents={"bytes_contents": ENCODED}),
        output("uint8_output", "UINT8", contents={"uint_contents": INTEGERS}),
        output("bool_output", "BOOL", contents={"bool_contents": TRUTHS}),
    ], None),
    (RAW, [output(f"{name}_output", datatype) for name, (datatype, *_) in TENSORS.items()], FIVE_RAW),
    (FP16_OUT, [output("fp16_output", "FP16"), output("fp32_output", "FP32")], [FP16_RAW, FP32_RAW]),
    (FP16_IN, [output("int32_output", "INT64"), output("fp16_output", "FP16")], [ONE_TO_EIGHT, FP16_RAW]),
], ids=["typed", "raw", "FP16 out", "FP16 in"])  # fmt: skip
def test_a_request_of_the_sdks_tests_is_answered_as_there(
    request_: pb.ModelInferRequest, outputs: list[dict[str, Any]], raw: list[str] | None
) -> None:
    assert answer_to(request_) == {"outputs": outputs, **({"raw_output_contents": raw} if raw else {})}


@pytest.mark.parametrize("request_", [
    asked("TestModel", *(given(name, typed=False) for name in ("fp32", "int32", "string")),
        raw=[raw_of("fp32"), raw_of("int32")]),
    asked("TestModel", *(given(name, typed=name == "uint8") for name in TENSORS),
        raw=[raw_of(name) for name in TENSORS]),
], ids=["raw contents of too few inputs", "raw contents and typed ones"])  # fmt: skip
async def test_what_the_sdk_calls_invalid_input_is_an_invalid_argument(request_: pb.ModelInferRequest) -> None:
    async with serving(Five()) as client:
        status, words = await refusal(client("ModelInfer", request_))
        assert status is grpc.StatusCode.INVALID_ARGUMENT
        assert words

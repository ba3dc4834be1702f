"""MLServer's content types reach a model of arrays as the arrays that they mean, over JSON, bytes and gRPC."""

import json
from typing import Any

import numpy as np
import pytest

from mpserve.errors import InvalidInput
from mpserve.protocol.binary import encode_tensor
from mpserve.protocol.codec import Codec
from mpserve.protocol.content_types import CONTENT_TYPE, TABLE
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.protobuf.codec import ProtobufCodec
from mpserve.protocol.v2.codec import V2Codec
from tests.cases import each

WAYS = ("JSON", "binary", "gRPC raw", "gRPC typed")


def read(way: str, values: Any, of_input: Any, of_request: Any = None, datatype: str = "BYTES") -> Any:
    """The inputs of a request with one tensor, and the codec that read them."""
    shape = [len(values)]
    array = np.array(
        values if datatype != "BYTES" else [value.encode() for value in values], object if datatype == "BYTES" else None
    )
    if way.startswith("gRPC"):
        message = pb.ModelInferRequest(model_name="m")
        tensor = message.inputs.add(name="x", datatype=datatype, shape=shape)
        if way.endswith("typed") and datatype == "BYTES":
            tensor.contents.bytes_contents.extend(array.tolist())
        else:
            message.raw_input_contents.append(bytes(encode_tensor(array, datatype)))
        for owner, content_type in ((tensor, of_input), (message, of_request)):
            if content_type is not None:
                owner.parameters[CONTENT_TYPE].string_param = content_type
        return ProtobufCodec().read(message.SerializeToString(), (), True)
    tensor = {
        "name": "x",
        "datatype": datatype,
        "shape": shape,
        "parameters": {CONTENT_TYPE: of_input} if of_input else {},
    }
    data = b""
    if way == "binary":
        data = bytes(encode_tensor(array, datatype))
        tensor["parameters"]["binary_data_size"] = len(data)
    else:
        tensor["data"] = values
    body = json.dumps({"inputs": [tensor], "parameters": {CONTENT_TYPE: of_request} if of_request else {}}).encode()
    codec: Codec = V2Codec("error", f"{len(body)}" if data else None)
    return codec.read(body + data, (), True)


MOMENTS = ["2020-01-02T03:04:05", "2020-01-02T03:04:05Z", "2020-01-02T05:04:05.500+02:00", "2020-01-02"]
TIMES = np.array(["2020-01-02T03:04:05", "2020-01-02T03:04:05", "2020-01-02T03:04:05.5", "2020-01-02"], "M8[us]")


@each("way", WAYS)
@each("values, of_input, of_request, expected", [
    (["aGk=", ""], "base64", None, [b"hi", b""]), (["aGk=", ""], None, "base64", [b"hi", b""]),
    (["é", "a\0"], "str", None, ["é", "a\0"]), (["é"], None, "str", ["é"]), (["é"], "np", None, ["é".encode()]),
    (["aGk="], "str", "base64", ["aGk="]), (["é"], "np", "str", ["é".encode()]), (["a"], None, "pd", [b"a"]),
    (MOMENTS, "datetime", None, TIMES.tolist()), (MOMENTS, "datetime", "pd", TIMES.tolist()),
])  # fmt: skip
def test_the_elements_are_what_the_content_type_says(
    way: str, values: Any, of_input: Any, of_request: Any, expected: Any
) -> None:
    inputs = read(way, values, of_input, of_request)
    [(name, datatype, array)] = inputs.arrays(())
    assert (name, datatype, array.tolist()) == ("x", "BYTES", expected)
    assert ((inputs.parameters or {}).get(CONTENT_TYPE) == TABLE) == (of_request == "pd")


@each("way", WAYS)
@each("values, content_type, datatype, says", [
    (["a"], "avro", "BYTES", "'x': the content type \"avro\" is unknown, expected one of np, pd, str, base64, datetime"),
    (["not base64!"], "base64", "BYTES", "'x' is no base64"), (["yesterday"], "datetime", "BYTES", "'x' is no datetime"),
    ([1.5], "str", "FP64", "'x' is FP64, expected BYTES for the content type str"),
])  # fmt: skip
def test_an_input_that_is_not_what_it_says_is_refused(
    way: str, values: Any, content_type: str, datatype: str, says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        read(way, values, content_type, datatype=datatype).arrays(())


@each("way", WAYS)
def test_a_number_may_say_np_or_pd(way: str) -> None:
    for content_type in ("np", "pd"):
        [(_, datatype, array)] = read(way, [1.5], content_type, content_type, "FP64").arrays(())
        assert (datatype, array.tolist()) == ("FP64", [1.5])

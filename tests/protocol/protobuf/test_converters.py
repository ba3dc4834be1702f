from typing import Any

import numpy as np
import pytest

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.protobuf.codec import decode_request, decode_response, response_from_dict
from mpserve.protocol.protobuf.fields import Parts, encode_request, encode_response
from tests.cases import each

RAW = np.array([1, 2], np.float32).tobytes()


def request(**fields: Any) -> bytes:
    """A serialised request with one typed FP32 input, changed."""
    return pb.ModelInferRequest(**{"model_name": "m", "inputs": [tensor()]} | fields).SerializeToString()


def tensor(**fields: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [2], "contents": {"fp32_contents": [1, 2]}} | fields


def raw_tensor(**fields: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [2]} | fields


def sent(parts: Parts) -> pb.ModelInferResponse:
    return pb.ModelInferResponse.FromString(b"".join(parts))


def test_a_raw_input_is_a_view_on_the_message() -> None:
    data = request(inputs=[raw_tensor()], raw_input_contents=[RAW])
    decoded, typed = decode_request(data)
    array = decoded.inputs[0].as_numpy()
    assert not typed
    assert array.tolist() == [1, 2]
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))


def test_a_datatype_may_be_in_lower_case() -> None:
    assert decode_request(request(inputs=[tensor(datatype="fp32")]))[0].inputs[0].datatype == "FP32"


def test_a_request_whose_inputs_have_no_contents_is_not_taken_as_typed() -> None:
    """Typed answers are for those who show that they know them: tritonclient reads none."""
    assert not decode_request(request(inputs=[{"name": "x", "datatype": "FP32", "shape": [0]}]))[1]


REFUSED = [
    ("no message", b"\x0a\xff", "cut short"),
    ("not UTF-8", b"\x0a\x01\xff", "expected a inference.ModelInferRequest"),
    ("no inputs", request(inputs=[]), "no inputs"),
    ("doubled input", request(inputs=[tensor(), tensor()]), "input 'x' is there twice"),
    ("doubled output", request(outputs=[{"name": "y"}, {"name": "y"}]), "output 'y' is there twice"),
    ("both contents", request(raw_input_contents=[RAW]), "typed and raw contents"),
    ("too many raw", request(inputs=[raw_tensor()], raw_input_contents=[RAW, RAW]), "raw contents of 2 inputs"),
    ("too few raw", request(inputs=[raw_tensor(), raw_tensor(name="y")], raw_input_contents=[RAW]), "of 1 inputs"),
    (
        "short raw",
        request(inputs=[raw_tensor()], raw_input_contents=[RAW[:-1]]),
        "input 'x': expected 8 bytes .* got 7",
    ),
    ("no data", request(inputs=[raw_tensor()]), r"input 'x': expected 2 elements for shape \[2\], got 0"),
    ("too few", request(inputs=[tensor(shape=[3])]), r"input 'x': expected 3 elements for shape \[3\], got 2"),
    ("negative", request(inputs=[tensor(shape=[-1])]), "input 'x': shape holds -1"),
    ("too large", request(inputs=[tensor(shape=[2**62, 2**62])]), "input 'x': shape .* too large"),
    ("too deep", request(inputs=[tensor(shape=[1] * 33)]), "input 'x': shape has 33 dimensions"),
    ("negative raw", request(inputs=[raw_tensor(shape=[-2])], raw_input_contents=[RAW]), "input 'x': shape holds -2"),
    ("unknown datatype", request(inputs=[tensor(datatype="FP31")]), "input 'x': unknown datatype 'FP31'"),
    ("other contents", request(inputs=[tensor(datatype="FP64")]), "input 'x': got fp32_contents, expected fp64"),
    ("typed FP16", request(inputs=[tensor(datatype="FP16")]), "input 'x': got fp32_contents, expected raw"),
    ("empty parameter", request(parameters={"p": {}}), "parameter 'p' has no value"),
    ("empty parameter of an input", request(inputs=[tensor(parameters={"p": {}})]), "input 'x': parameter 'p'"),
]


@each("data, says", [case[1:] for case in REFUSED])
def test_what_the_protocol_does_not_allow_is_the_clients_fault(data: bytes, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        decode_request(data)


THERE = {"shared_memory_region": {"string_param": "r"}, "shared_memory_byte_size": {"int64_param": 8}}
PLACED = {"shared_memory_region": "r", "shared_memory_byte_size": 8}


@each("inputs, raw, typed", [
    ([raw_tensor(parameters=THERE)], [], False), ([raw_tensor(parameters=THERE), raw_tensor(name="y")], [RAW], False),
    ([tensor(name="y"), raw_tensor(parameters=THERE)], [], True),
])  # fmt: skip
def test_an_input_in_shared_memory_has_no_contents(inputs: Any, raw: list[bytes], typed: bool) -> None:
    """Of raw ones there are as many as inputs elsewhere, as tritonclient sends them."""
    decoded, is_typed = decode_request(request(inputs=inputs, raw_input_contents=raw))
    assert is_typed == typed
    by_name = {given.name: given for given in decoded.inputs}
    there = by_name.pop("x")
    assert (there.in_shared_memory, there.parameters) == (True, PLACED)
    assert [given.as_numpy().tolist() for given in by_name.values()] == [[1, 2]] * (len(inputs) - 1)
    again, _ = decode_request(b"".join(encode_request(decoded)))
    assert (again.inputs, again.inputs[0].in_shared_memory) == (decoded.inputs, decoded.inputs[0].in_shared_memory)


def test_contents_beside_shared_memory_are_refused() -> None:
    with pytest.raises(InvalidInput, match="input 'x': got both shared_memory_region and data, expected one of them"):
        decode_request(request(inputs=[tensor(parameters=THERE)]))
    with pytest.raises(InvalidInput, match="got raw contents of 1 inputs, expected those of 0"):
        decode_request(request(inputs=[raw_tensor(parameters=THERE)], raw_input_contents=[RAW]))


@each("typed", [True, False])
def test_an_output_in_shared_memory_keeps_its_place_among_the_raw_ones(typed: bool) -> None:
    """tritonclient counts them."""
    outputs = [InferOutput("x", [2], "FP32", None, PLACED), InferOutput("y", [2], "FP32", [1, 2])]
    parts = encode_response(InferResponse(None, "m", outputs), typed)
    assert sent(parts).raw_output_contents == ([] if typed else [b"", RAW])
    assert sent(parts).outputs[0].parameters["shared_memory_region"].string_param == "r"
    assert decode_response(b"".join(parts)).outputs == outputs


def test_a_request_that_is_sent_on_is_the_one_received() -> None:
    given = [
        InferInput("x", [2, 1], "BF16", [[1.5], [2.5]]),
        InferInput("y", [2], "BYTES", [b"a", "ü"], {"p": 1}),
        InferInput("z", [0, 3], "INT8", []),
    ]
    wanted = [RequestedOutput("o", {"c": 2})]
    first = InferRequest("m", given, "7", parameters={"q": 0.5}, request_outputs=wanted, model_version="3")
    data = b"".join(encode_request(first))
    second, typed = decode_request(data)
    assert not typed
    second.from_grpc = first.from_grpc
    assert second == first


def test_a_response_is_raw_or_typed_as_it_is_asked_for() -> None:
    response = InferResponse(
        "7", "m", [InferOutput("y", [2], "FP32", [1.0, 2.0], {"p": 1})], "3", parameters={"q": "r"}
    )
    head = {"model_name": "m", "model_version": "3", "id": "7", "parameters": {"q": {"string_param": "r"}}}
    output = raw_tensor(name="y", parameters={"p": {"int64_param": 1}})
    raw = pb.ModelInferResponse(**head, outputs=[output], raw_output_contents=[RAW])
    typed = pb.ModelInferResponse(**head, outputs=[output | {"contents": {"fp32_contents": [1, 2]}}])
    assert sent(encode_response(response, typed=False)) == raw
    assert sent(encode_response(response, typed=True)) == typed


def test_a_raw_output_is_sent_from_its_own_buffer() -> None:
    array = np.zeros(1000, np.float32)
    parts = encode_response(InferResponse(None, "m", [InferOutput("y", [1000], "FP32", array)]), typed=False)
    assert any(np.shares_memory(array, np.frombuffer(part, np.uint8)) for part in parts)


@each("typed", [True, False])
def test_a_response_is_read_back(typed: bool) -> None:
    outputs = [InferOutput("y", [2, 1], "INT8", [1, -1], {"p": True}), InferOutput("z", [1], "BYTES", [b"\xff"])]
    response = InferResponse("7", "m", outputs, "3", parameters={"q": 2})
    decoded = decode_response(b"".join(encode_response(response, typed)))
    decoded.from_grpc = False
    assert decoded == response


@each("data, says", [
    (b"\x0a\xff", "the response is not one of V2: .*cut short"),
    (pb.ModelInferResponse(outputs=[raw_tensor()]).SerializeToString(), "output 'x': expected 2 elements"),
    (
        pb.ModelInferResponse(outputs=[raw_tensor()], raw_output_contents=[b""]).SerializeToString(),
        "output 'x': expected 8 bytes",
    ),
])  # fmt: skip
def test_a_response_that_cannot_be_read_is_not_the_clients_fault(data: bytes, says: str) -> None:
    with pytest.raises(InferenceError, match=says):
        decode_response(data)


@each("output", [
    {"name": "y", "shape": [2], "datatype": "FP32", "data": [1, 2]},
    {"name": "y", "shape": [2], "datatype": "FP32", "contents": {"fp32_contents": [1, 2]}},
])  # fmt: skip
def test_a_dict_of_the_sdk_is_a_response(output: dict[str, Any]) -> None:
    response = response_from_dict({"id": "7", "model_name": "m", "outputs": [output]})
    assert response == InferResponse("7", "m", [InferOutput("y", [2], "FP32", [1.0, 2.0])])

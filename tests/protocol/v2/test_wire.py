import numpy as np
import orjson
import pytest

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput
from mpserve.protocol.v2.codec import decode_request, encode_answer, encode_response
from tests.cases import each


def entry(name, shape, datatype="UINT8", **fields):
    return {"name": name, "shape": shape, "datatype": datatype, **fields}


def sized(name, shape, size, datatype="UINT8"):
    return entry(name, shape, datatype, parameters={"binary_data_size": size})


def decode(inputs, rest=b"", **fields):
    json = orjson.dumps({"inputs": inputs, **fields})
    return decode_request(json + rest, "m", None, str(len(json)))


def test_a_body_of_json_alone_may_state_its_length():
    assert decode([entry("x", [1], data=[1])]).inputs == [InferInput("x", [1], "UINT8", [1])]


@each("inputs, rest, message", [
    ([sized("x", [2], 2)], b"\1", "^input 'x': binary_data_size is 2, but only 1 bytes are left"),
    ([sized("x", [2], 2), sized("y", [2], 2)], b"\1\2\3", "^input 'y': .* only 1 bytes are left"),
    ([sized("x", [2], 2)], b"\1\2\3", "^1 bytes at the body's end belong to no tensor"),
    ([entry("x", [1], data=[1])], b"\1", "^1 bytes at the body's end"),
    ([sized("x", [2], 1)], b"\1", r"input 'x': expected 2 bytes for UINT8 of shape \[2\], got 1"),
    ([sized("x", [2], True)], b"\1\2", "binary_data_size is true, expected a number of bytes"),
    ([sized("x", [2], -2)], b"\1\2", "binary_data_size is -2"),
    ([sized("x", [2], "2")], b"\1\2", 'binary_data_size is "2"'),
    ([sized("x", [2], 2) | {"data": [1, 2]}], b"\1\2", "got both binary_data_size and data, expected one"),
    ([sized("x", [1], 1, "BOOL")], b"\2", "input 'x': element 0 is the byte 2, expected 0 or 1"),
    ([sized("x", [1], 1, "FLOAT")], b"\2", "input 'x': unknown datatype"),
    ([sized("x", [-1], 1)], b"\2", "input 'x': shape holds -1"),
    ([entry("x", [1])], b"\2", "input 'x': data is missing"),
])  # fmt: skip
def test_binary_data_that_does_not_fit_is_refused_by_name(inputs, rest, message):
    with pytest.raises(InvalidInput, match=message):
        decode(inputs, rest)


def asking(*requested, **parameters):
    return InferRequest("m", [], parameters=parameters, request_outputs=list(requested))


def response():
    outputs = [InferOutput("y", [2], "UINT16", np.array([1, 2]), {"p": 1}), InferOutput("z", [1], "BYTES", ["é"])]
    return InferResponse("7", "m", outputs)


def test_what_is_asked_for_as_bytes_follows_the_json():
    json, *chunks = encode_answer(response(), asking(binary_data_output=True)).chunks
    assert json == (
        b'{"model_name":"m","id":"7","outputs":['
        b'{"name":"y","shape":[2],"datatype":"UINT16","parameters":{"p":1,"binary_data_size":4}},'
        b'{"name":"z","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":6}}]}'
    )
    assert chunks == [b"\1\0\2\0", b"\2\0\0\0\xc3\xa9"]
    encoded = encode_answer(response(), asking(binary_data_output=True))
    assert (encoded.join(), encoded.json_length) == (json + b"".join(chunks), len(json))


@each("request_, binary", [
    (asking(RequestedOutput("z", {"binary_data": True})), ["z"]),
    (asking(RequestedOutput("z", {"binary_data": False}), binary_data_output=True), ["y"]),
    (asking(RequestedOutput("z"), RequestedOutput("y"), binary_data_output=True), ["y", "z"]),
    (asking(RequestedOutput("z"), RequestedOutput("y", {"binary_data": True})), ["y"]),
])  # fmt: skip
def test_an_output_goes_as_its_name_says_and_else_as_the_request_says(request_, binary):
    encoded = encode_answer(response(), request_)
    entries = orjson.loads(encoded.chunks[0])["outputs"]
    assert [item["name"] for item in entries if "data" not in item] == binary
    assert encoded.json_length == len(encoded.chunks[0])


def test_a_binary_output_is_written_from_the_arrays_own_buffer():
    array = np.ones((2, 3), dtype=np.float32)
    answer = InferResponse(None, "m", [InferOutput("y", [2, 3], "FP32", array)])
    _, chunk = encode_answer(answer, asking(binary_data_output=True)).chunks
    assert np.shares_memory(array, np.frombuffer(chunk, np.uint8))


def test_a_size_left_among_the_parameters_does_not_contradict_the_data():
    output = InferOutput("y", [1], "UINT8", [1], {"binary_data_size": 99, "p": 1})
    answer = InferResponse(None, "m", [output])
    assert orjson.loads(encode_response(answer))["outputs"][0]["parameters"] == {"p": 1}
    json = encode_answer(answer, asking(binary_data_output=True)).chunks[0]
    assert orjson.loads(json)["outputs"][0]["parameters"] == {"binary_data_size": 1, "p": 1}


NAN = InferResponse(None, "m", [InferOutput("y", [3], "FP32", [float("nan"), float("inf"), 1.0])])


def test_non_finite_numbers_in_json_are_an_error_or_null():
    for encode in (lambda *how: encode_response(NAN, *how), lambda *how: encode_answer(NAN, asking(), *how).join()):
        with pytest.raises(InferenceError, match="output 'y' holds NaN or infinity"):
            encode()
        assert orjson.loads(encode("null"))["outputs"][0]["data"] == [None, None, 1.0]


THERE = {"shared_memory_region": "r", "shared_memory_byte_size": 8}


def test_an_input_in_shared_memory_has_no_data_and_takes_no_bytes():
    request = decode([entry("x", [2], "FP32", parameters=THERE), sized("y", [2], 2)], b"\1\2")
    assert request.inputs == [InferInput("x", [2], "FP32", None, THERE), InferInput("y", [2], "UINT8", [1, 2])]
    assert [tensor.in_shared_memory for tensor in request.inputs] == [True, False]
    body, length = request.to_rest()
    assert InferRequest.from_bytes(body, length, "m") == request


def test_an_input_in_shared_memory_may_be_all_that_json_has():
    request = InferRequest("m", [InferInput("x", [2], "FP32", None, THERE)])
    body, length = request.to_rest()
    assert (body["inputs"], length) == ([entry("x", [2], "FP32", parameters=THERE)], None)


@each("more", [{"data": [1, 2]}, {"parameters": {**THERE, "binary_data_size": 8}}])
def test_data_beside_shared_memory_is_refused(more):
    given = entry("x", [2], "FP32", parameters=THERE) | more
    with pytest.raises(InvalidInput, match=r"^input 'x': got both shared_memory_region and data, expected one of them"):
        decode([given], bytes(8))


def test_an_output_in_shared_memory_is_written_without_data_however_it_was_wanted():
    response = InferResponse(None, "m", [InferOutput("y", [2], "FP32", None, THERE)])
    encoded = encode_answer(response, asking(binary_data_output=True))
    assert encoded.json_length is None
    assert orjson.loads(encoded.join())["outputs"] == [entry("y", [2], "FP32", parameters=THERE)]

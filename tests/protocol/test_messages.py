import numpy as np
import orjson
import pytest

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput
from tests.cases import each


@each("made", [
    lambda version: InferRequest("m", [InferInput("x", [1], "FP32", [1.0])], "1", model_version=version),
    lambda value: InferResponse("1", "m", [InferOutput("y", [1], "FP32", [value])]),
])  # fmt: skip
def test_requests_and_responses_are_equal_by_content(made):
    assert made(1.0) == made(1.0) != made(2.0)


def test_tensors_are_found_by_name():
    request = InferRequest("m", [InferInput("a", [0], "FP32", []), InferInput("b", [0], "FP32", [])])
    response = InferResponse(None, "m", [InferOutput("y", [0], "FP32", [])])
    assert request.get_input_by_name("b") is request.inputs[1]
    assert request.get_input_by_name("c") is None
    assert response.get_output_by_name("y") is response.outputs[0]
    assert response.get_output_by_name("c") is None


def test_messages_as_plain_values():
    tensor = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1.0, 2.0], "parameters": None}
    array = np.array([1, 2], dtype=np.float32)
    request = InferRequest("m", [InferInput("x", [2], "FP32", array)], "1", parameters={"a": 1})
    assert request.to_dict() == {"id": "1", "model_name": "m", "inputs": [tensor], "parameters": {"a": 1}}
    response = InferResponse("1", "m", [InferOutput("x", [2], "FP32", [1.0, 2.0])])
    assert response.to_dict() == {"id": "1", "model_name": "m", "outputs": [tensor], "parameters": None}


def test_repr_shows_what_is_set_and_no_data():
    request = InferRequest("m", [InferInput("x", [2], "FP32", [1.0, 2.0])])
    assert repr(request) == (
        "InferRequest(model_name='m', inputs=[InferInput(name='x', shape=[2], datatype='FP32')], request_outputs=[])"
    )


def test_arguments_stand_in_the_order_of_the_sdk():
    inputs, outputs = [InferInput("x", [1], "UINT8")], [InferOutput("y", [1], "UINT8")]
    asked = [RequestedOutput("y")]
    request = InferRequest("m", inputs, "1", [b"\7"], True, {"a": 1}, asked, "3")
    assert (request.id, request.from_grpc, request.parameters, request.model_version) == ("1", True, {"a": 1}, "3")
    assert request.inputs[0].as_numpy().tolist() == [7]
    response = InferResponse("1", "m", outputs, "3", [b"\x08"], True, {"a": 1}, True, asked)
    assert (response.id, response.from_grpc, response.parameters, response.model_version) == ("1", True, {"a": 1}, "3")
    assert response.outputs[0].as_numpy().tolist() == [8]
    assert response.requested_outputs == asked == request.request_outputs


@each("shape, datatype, buffers, message", [
    ([2], "FP32", [b"1234"], "'t': expected 8 bytes for FP32 of shape \\[2\\], got 4"),
    ([np.float32(1)], "FP32", [b"1234"], "'t': shape holds .*1.0"),
    ([1], "FP32", [b"1234", b"1234"], "raw contents of 2 .*, expected those of 1"),
])  # fmt: skip
def test_raw_contents_that_do_not_fit_are_the_fault_of_whoever_sent_them(shape, datatype, buffers, message):
    with pytest.raises(InvalidInput, match=message):
        InferRequest("m", [InferInput("t", shape, datatype)], raw_inputs=buffers)
    with pytest.raises(InferenceError, match=message):
        InferResponse(None, "m", [InferOutput("t", shape, datatype)], raw_outputs=buffers)


@each("parameters, raw, from_grpc, wanted", [
    (None, None, False, False), ({"binary_data_output": True}, None, False, True),
    ({"binary_data_output": False}, [b"\1"], False, False), ({"binary_data_output": True}, None, True, False),
    (None, [b"\1"], True, True), (None, [b"\1"], False, False),
])  # fmt: skip
def test_binary_outputs_are_asked_for_by_a_parameter_or_by_raw_inputs_over_grpc(parameters, raw, from_grpc, wanted):
    request = InferRequest("m", [InferInput("x", [1], "UINT8")], None, raw, from_grpc, parameters)
    assert request.use_binary_outputs is wanted


def request_of(*tensors):
    asked = [RequestedOutput("y", {"binary_data": True})]
    return InferRequest("m", list(tensors), "1", parameters={"a": 1}, request_outputs=asked)


def test_a_request_without_binary_tensors_goes_out_as_a_dict_of_plain_values():
    text, flags = InferInput("text", [1, 1], "BYTES", [["é"]]), InferInput("flags", [2], "BOOL")
    flags.set_data_from_numpy(np.array([True, False]), binary_data=False)
    body, length = request_of(text, flags).to_rest()
    assert length is None
    assert body == {
        "id": "1", "model_name": "m", "parameters": {"a": 1},
        "inputs": [
            {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["é"]},
            {"name": "flags", "shape": [2], "datatype": "BOOL", "data": [True, False]},
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }  # fmt: skip
    assert type(body["inputs"][1]["data"][0]) is bool


def test_a_request_with_a_binary_tensor_survives_being_sent():
    binary, listed = InferInput("b", [2], "FP16", parameters={"p": 1}), InferInput("l", [1], "INT8", [5])
    binary.set_data_from_numpy(np.array([1.5, -2], dtype=np.float16))
    sent = request_of(binary, listed)
    body, length = sent.to_rest()
    assert orjson.loads(body[:length])["inputs"][0]["parameters"] == {"p": 1, "binary_data_size": 4}
    assert body[length:] == b"\x00\x3e\x00\xc0"
    received = InferRequest.from_bytes(body, length, "m")
    assert received == sent
    assert [tensor.binary_data for tensor in received.inputs] == [True, False]
    assert received.to_rest() == (body, length)


@each("binary", [True, False])
def test_a_response_survives_being_sent(binary):
    outputs = [InferOutput("y", [2], "FP32", np.array([0.5, 2])), InferOutput("z", [1], "BYTES", ["é"])]
    sent = InferResponse("1", "m", outputs, "3", parameters={"a": 1}, use_binary_outputs=binary)
    body, length = sent.to_rest()
    assert (length is None) is not binary
    assert (InferResponse.from_bytes(body, length) if binary else InferResponse.from_rest(body)) == sent


def test_a_response_goes_out_with_the_requested_outputs_as_they_were_requested():
    outputs = [InferOutput(name, [1], "UINT8", [ord(name)]) for name in "abc"]
    asked = [RequestedOutput("c"), RequestedOutput("a", {"binary_data": False})]
    body, length = InferResponse("1", "m", outputs, use_binary_outputs=True, requested_outputs=asked).to_rest()
    entries = orjson.loads(body[:length])["outputs"]
    assert [(entry["name"], entry.get("data")) for entry in entries] == [("c", None), ("a", [97])]
    assert body[length:] == b"c"
    with pytest.raises(InvalidInput, match="Unexpected inference output 'd' for model 'm'"):
        InferResponse("1", "m", outputs, requested_outputs=[RequestedOutput("d")]).to_rest()


@each("length", [-1, 3, 10**6])
def test_bytes_that_are_no_message_are_refused_by_both_kinds(length):
    with pytest.raises(InvalidInput):
        InferRequest.from_bytes(b'{"a":1}', length, "m")
    with pytest.raises(InferenceError, match="not one of V2"):
        InferResponse.from_bytes(b'{"a":1}', length)


@each("document, message", [
    ({"outputs": {}}, "`outputs` is an object"),
    ({"outputs": [{"name": "y", "shape": [1], "datatype": "FP32"}]}, "output 'y': data is missing"),
    ({"outputs": [], "id": 5}, "id is a number"),
    ({"outputs": [{"name": "y", "shape": (1,), "datatype": "FP32", "data": [1]}]}, "shape is tuple, expected"),
])  # fmt: skip
def test_a_response_that_breaks_the_protocol_is_the_fault_of_who_sent_it(document, message):
    with pytest.raises(InferenceError, match=message):
        InferResponse.from_rest(document)


def test_inputs_become_the_columns_of_a_dataframe():
    pytest.importorskip("pandas")
    flat, column = InferInput("flat", [2], "FP32", [1, 2]), InferInput("column", [2, 1], "BYTES", [["a"], ["é"]])
    frame = InferRequest("m", [flat, column, InferInput("rows", [2, 2], "INT8", [1, 2, 3, 4])]).as_dataframe()
    assert list(frame.columns) == ["flat", "column", "rows"]
    assert frame["flat"].tolist() == [1.0, 2.0]
    assert frame["column"].tolist() == ["a", "é"]
    assert [row.tolist() for row in frame["rows"]] == [[1, 2], [3, 4]]


@each("tensors, message", [
    ([InferInput("a", [2], "INT8", [1, 2]), InferInput("b", [1], "INT8", [1])], "one length, got .*'a': 2, 'b': 1"),
    ([InferInput("a", [1], "BYTES", [b"\xff"])], "input 'a' holds bytes that are not UTF-8"),
])  # fmt: skip
def test_inputs_that_are_no_table_are_refused(tensors, message):
    with pytest.raises(InvalidInput, match=message):
        InferRequest("m", tensors).as_dataframe()

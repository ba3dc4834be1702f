import numpy as np
import pytest

from mpserve.compat.payloads import (
    deserialize_bytes_tensor,
    get_predict_input,
    get_predict_response,
    serialize_byte_tensor,
)
from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.messages import InferInput, InferRequest, RequestedOutput
from tests.cases import each


def request(*tensors, **parameters):
    return InferRequest("m", list(tensors), "7", parameters=parameters or None)


@each("array", [np.array([[b"a"], ["é".encode()]], dtype=object), np.array(["a", "é"])])
def test_byte_tensors_survive_the_round_trip_as_the_sdk_hands_them_round(array):
    serialized = serialize_byte_tensor(array)
    assert serialized.item() == b"\1\0\0\0a\2\0\0\0\xc3\xa9"
    assert deserialize_bytes_tensor(serialized.item()).tolist() == [b"a", "é".encode()]


def test_an_empty_byte_tensor_is_an_empty_array_and_what_is_none_is_refused():
    assert serialize_byte_tensor(np.empty((0, 2), dtype=object)).size == 0
    assert deserialize_bytes_tensor(b"").shape == (0,)
    with pytest.raises(InferenceError, match="float64 cannot be taken as BYTES"):
        serialize_byte_tensor(np.zeros(2))
    with pytest.raises(InvalidInput, match="element 0 reaches beyond"):
        deserialize_bytes_tensor(b"\1\0\0\0")


@each("field", ["instances", "inputs"])
def test_rows_of_v1_become_an_array(field):
    assert get_predict_input({field: [[1, 2], [3, 4]]}).tolist() == [[1, 2], [3, 4]]
    assert get_predict_input({field: []}).size == 0
    assert get_predict_input({field: ["a", "b"]}) == ["a", "b"]


@each("instances", [
    [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], [{"a": [1, 2], "b": ["x", "y"]}],
    [[{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]],
])  # fmt: skip
def test_objects_of_v1_become_a_dataframe_with_the_asked_columns(instances):
    pytest.importorskip("pandas")
    frame = get_predict_input({"instances": instances}, columns=["b", "a"])
    assert (list(frame.columns), frame["a"].tolist(), frame["b"].tolist()) == (["b", "a"], [1, 2], ["x", "y"])


@each("payload, message", [
    ({}, 'Expected "inputs" or "instances" to be a list'), ({"instances": 5}, "to be a list"),
    ({"instances": [[1, 2], [3]]}, "do not fit together"), (InferRequest("m", []), "has no inputs"),
    ([1], "the payload is list, expected a dict or an InferRequest"),
])  # fmt: skip
def test_a_payload_that_holds_no_input_is_refused(payload, message):
    with pytest.raises(InvalidInput, match=message):
        get_predict_input(payload)


def test_the_first_input_of_v2_is_an_array_or_text():
    numbers, text = InferInput("x", [1, 2], "FP32", [1, 2]), InferInput("t", [2], "BYTES", ["a", "é"])
    assert get_predict_input(request(numbers, text)).tolist() == [[1.0, 2.0]]
    assert get_predict_input(request(text)) == ["a", "é"]
    assert get_predict_input(request(InferInput("t", [1], "BYTES", [b"\xff"]))).tolist() == [b"\xff"]
    assert get_predict_input(request(InferInput("t", [0], "BYTES", []))).shape == (0,)


def test_inputs_of_v2_become_a_dataframe_if_their_content_is_said_to_be_one():
    pytest.importorskip("pandas")
    tensors = [InferInput("a", [2], "INT8", [1, 2]), InferInput("b", [2], "BYTES", ["x", "y"])]
    frame = get_predict_input(request(*tensors, content_type="pd"))
    assert frame.to_dict(orient="list") == {"a": [1, 2], "b": ["x", "y"]}


def test_a_result_of_v1_is_predictions():
    assert get_predict_response({}, np.array([[1], [2]]), "m") == {"predictions": [[1], [2]]}
    assert get_predict_response({}, ["a"], "m") == {"predictions": ["a"]}


@each("result, shape, datatype, values", [
    (np.array([[1.5]]), [1, 1], "FP64", [[1.5]]), ([1, 2], [2], "INT64", [1, 2]),
    (["a", "é\0"], [2], "BYTES", [b"a", "é\0".encode()]), (np.array(["a"]), [1], "BYTES", [b"a"]),
])  # fmt: skip
def test_a_result_of_v2_is_the_first_output(result, shape, datatype, values):
    asked = InferRequest("m", [], "7", request_outputs=[RequestedOutput("output-0", {"binary_data": True})])
    response = get_predict_response(asked, result, "m")
    (output,) = response.outputs
    assert (response.id, response.model_name, response.requested_outputs) == ("7", "m", asked.request_outputs)
    assert (output.name, output.shape, output.datatype) == ("output-0", shape, datatype)
    assert output.as_numpy().tolist() == values
    assert response.to_rest()[1] is not None


def test_a_dataframe_is_a_row_per_prediction_in_v1_and_an_output_per_column_in_v2():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    assert get_predict_response({}, frame, "m") == {"predictions": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]}
    outputs = get_predict_response(request(), frame, "m").outputs
    told = [(output.name, output.datatype, output.data) for output in outputs]
    assert told == [("a", "INT64", [1, 2]), ("b", "BYTES", ["x", "y"])]


def test_what_cannot_be_answered_is_refused():
    with pytest.raises(InferenceError, match="output 'output-0': numpy dtype complex128 has no V2 datatype"):
        get_predict_response(request(), np.array([1j]), "m")
    with pytest.raises(InvalidInput, match="the payload is str"):
        get_predict_response("x", [1], "m")

import numpy as np
import pytest

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.tensors import InferInput, InferOutput, RequestedOutput
from tests.cases import each

TENSORS = [(InferInput, InvalidInput), (InferOutput, InferenceError)]


@each("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], np.array([[1, 2], [3, 4]]), ((1, 2), (3, 4))])
def test_a_list_or_an_array_flat_or_nested_is_the_same_tensor(data):
    tensor = InferInput("x", [2, 2], "fp32", data)
    array = tensor.as_numpy()
    assert (array.dtype, array.tolist()) == (np.float32, [[1, 2], [3, 4]])
    assert tensor.datatype == "FP32"
    assert tensor == InferInput("x", [2, 2], "FP32", [1.0, 2.0, 3.0, 4.0])


def test_data_of_an_array_is_flat_and_can_be_changed_in_place_and_given_another_shape():
    tensor = InferInput("x", [4, 1], "INT64", np.arange(4).reshape(4, 1))
    tensor.shape = [2, 2]
    assert tensor.as_numpy().tolist() == [[0, 1], [2, 3]]
    assert tensor.data == [0, 1, 2, 3]
    tensor.data[0] = 9
    assert tensor.as_numpy().tolist() == [[9, 1], [2, 3]]


@each("array, listed", [
    (np.array([b"a", "é".encode()], dtype=object), ["a", "é"]), (np.array(["a", "é"]), ["a", "é"]),
    (np.array([b"a", b"\xff"], dtype=object), [b"a", b"\xff"]),
])  # fmt: skip
def test_data_of_bytes_is_text_where_it_is_utf8(array, listed):
    tensor = InferInput("x", [2], "BYTES", array)
    assert tensor.to_dict()["data"] == listed
    assert tensor.data == listed


def test_bytes_are_read_as_bytes_by_numpy_and_as_text_by_as_string():
    tensor = InferInput("x", [2, 1], "BYTES", ["a\0", "é"])
    assert tensor.as_numpy().tolist() == [[b"a\0"], ["é".encode()]]
    assert tensor.as_string() == [["a\0"], ["é"]]
    assert InferInput("x", [1], "BYTES", [b"a"]).as_string() == ["a"]


@each("kind, fault", TENSORS)
@each("shape, datatype, data, message", [
    ([2], "FP32", None, "'t' has no data"), ([3], "FP32", [1.0, 2.0], "'t': cannot reshape array of size 2"),
    ([2, 2], "FP32", [[1.0, 2.0], [3.0]], "'t': .*inhomogeneous"),
    ([1], "UINT8", [300], "'t': element 0 of data is 300, out of range"),
    ([1], "INT32", [1.5], "'t': elements of numpy dtype float64 cannot be taken as INT32"),
    ([1], "FLOAT", [1.5], "'t': unknown datatype 'FLOAT'"),
    ([1], "FP32", [None], "'t': elements of numpy dtype object"),
    ([1], "INT64", [2**70], "'t': elements of numpy dtype object"),
])  # fmt: skip
def test_data_that_does_not_fit_is_the_fault_of_whoever_made_the_tensor(kind, fault, shape, datatype, data, message):
    with pytest.raises(fault, match=message):
        kind("t", shape, datatype, data).as_numpy()


@each("kind, fault", TENSORS)
def test_text_of_what_is_no_text_is_refused(kind, fault):
    with pytest.raises(fault, match="'t' is FP32, only BYTES"):
        kind("t", [1], "FP32", [1.0]).as_string()
    with pytest.raises(fault, match="not UTF-8"):
        kind("t", [1], "BYTES", [b"\xff"]).as_string()


@each("binary_data", [True, False])
def test_set_data_from_numpy_makes_the_array_the_data(binary_data):
    tensor = InferOutput("y", [2], "FP32", [0.0, 0.0])
    tensor.set_data_from_numpy(np.array([1, 2], dtype=">f4"), binary_data=binary_data)
    assert tensor.binary_data is binary_data
    assert tensor == InferOutput("y", [2], "FP32", [1.0, 2.0])
    assert tensor.data == [1.0, 2.0]
    text = InferOutput("y", [1], "BYTES")
    text.set_data_from_numpy(np.array(["é"]), binary_data)
    assert text.as_numpy().tolist() == ["é".encode()]


@each("array, message", [
    ([1.0, 2.0], "got list, expected a numpy array"),
    (np.array([1.0, 2.0]), "got datatype FP64 from the numpy array, expected FP32"),
    (np.ones((2, 1), dtype=np.float32), r"got a numpy array of shape \[2, 1\], expected \[2\]"),
    (np.array([1j, 2j]), "complex128 has no V2 datatype"),
])  # fmt: skip
def test_set_data_from_numpy_refuses_what_was_not_declared(array, message):
    with pytest.raises(InferenceError, match=message):
        InferInput("x", [2], "FP32").set_data_from_numpy(array)


@each("other", [
    InferInput("z", [1], "FP32", [1.0], {"a": 1}), InferInput("x", [1, 1], "FP32", [1.0], {"a": 1}),
    InferInput("x", [1], "FP64", [1.0], {"a": 1}), InferInput("x", [1], "FP32", [2.0], {"a": 1}),
    InferInput("x", [1], "FP32", None, {"a": 1}), InferInput("x", [1], "FP32", [1.0]),
    InferOutput("x", [1], "FP32", [1.0], {"a": 1}), "x",
])  # fmt: skip
def test_tensors_that_differ_anywhere_are_not_equal(other):
    assert InferInput("x", [1], "FP32", [1.0], {"a": 1}) != other


def test_data_that_is_set_as_a_list_is_not_sent_as_bytes():
    tensor = InferInput("x", [2], "FP32")
    tensor.set_data_from_numpy(np.zeros(2, dtype=np.float32))
    assert tensor.binary_data
    tensor.data = [1.0, 2.0]
    assert not tensor.binary_data


@each("parameters, wanted", [
    (None, None), ({}, None), ({"a": 1}, None), ({"binary_data": True}, True), ({"binary_data": False}, False),
])  # fmt: skip
def test_a_requested_output_says_whether_it_is_wanted_as_bytes(parameters, wanted):
    assert RequestedOutput("y", parameters).binary_data is wanted

import numpy as np
import orjson
import pytest

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.datatypes import numpy_dtype
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput
from mpserve.protocol.v2.codec import decode_request, encode_response
from tests.cases import each

INTEGERS = ["UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]
FLOATS = ["FP16", "FP32", "FP64"]


def body(**fields):
    return orjson.dumps(fields)


def tensor(data, shape, datatype="FP32", **fields):
    return {"name": "x", "shape": shape, "datatype": datatype, "data": data, **fields}


def decode(*inputs, **fields):
    return decode_request(body(inputs=inputs, **fields), "m", None)


def decoded(data, shape, datatype="FP32"):
    return decode(tensor(data, shape, datatype)).inputs[0].as_numpy()


def test_a_whole_request():
    request = decode_request(
        body(
            id="7",
            model_name="ignored",
            parameters={"a": 1, "b": "x", "c": True, "d": 0.5},
            inputs=[tensor([1, 2.5], [1, 2], parameters={"p": 1}), tensor([True], [1], "bool") | {"name": "flag"}],
            outputs=[{"name": "y", "parameters": {"q": 2}}, {"name": "z", "extra": []}],
        ),
        "m",
        "3",
    )
    assert request == InferRequest(
        "m",
        [InferInput("x", [1, 2], "FP32", [[1, 2.5]], {"p": 1}), InferInput("flag", [1], "BOOL", [True])],
        "7",
        parameters={"a": 1, "b": "x", "c": True, "d": 0.5},
        request_outputs=[RequestedOutput("y", {"q": 2}), RequestedOutput("z")],
        model_version="3",
    )


def test_null_counts_as_absent():
    request = decode(tensor([1], [1], parameters=None), id=None, parameters=None, outputs=None)
    assert request == decode(tensor([1], [1]))
    assert (request.id, request.parameters, request.request_outputs) == (None, None, [])


@each("data, shape", [
    ([1, 2, 3, 4, 5, 6], [2, 3]), ([[1, 2, 3], [4, 5, 6]], [2, 3]), ([[[1], [2], [3]], [[4], [5], [6]]], [2, 3, 1]),
    ([1], []), ([1], [1]), ([[[1]]], [1, 1, 1]), ([], [0]), ([], [2, 0]), ([], [0, 2]), ([[], []], [2, 0]),
    ([[], []], [2, 0, 3]), ([[[], []]], [1, 2, 0]),
])  # fmt: skip
def test_data_is_flat_or_nested_as_its_shape(data, shape):
    array = decoded(data, shape)
    assert list(array.shape) == shape
    assert array.ravel().tolist() == list(range(1, array.size + 1))


@each("datatype, values", [
    ("BOOL", [True, False]), ("UINT64", [0, 2**63, 2**64 - 1]),
    *[(datatype, [int(np.iinfo(numpy_dtype(datatype)).min), 0]) for datatype in INTEGERS],
    *[(datatype, [int(np.iinfo(numpy_dtype(datatype)).max), 0]) for datatype in INTEGERS],
    *[(datatype, [0, 1.5, -2, -0.0]) for datatype in FLOATS],
    ("FP64", [1.7976931348623157e308, 5e-324, 0.1, 2**64 - 1]), ("FP32", [3.4028234663852886e38, 1e-45]),
    ("FP16", [65504, 6e-8]),
])  # fmt: skip
def test_values_arrive_exactly(datatype, values):
    array = decoded(values, [len(values)], datatype)
    assert array.dtype == numpy_dtype(datatype)
    assert array.tobytes() == np.array(values, dtype=array.dtype).tobytes()


def test_bytes_are_the_utf8_of_the_strings():
    array = decoded([["a", "é"], ["", "\0"]], [2, 2], "BYTES")
    assert array.tolist() == [[b"a", b"\xc3\xa9"], [b"", b"\0"]]
    assert array.dtype == object


@each("data, shape, datatype, message", [
    ([1, 2, 3, 4, 5], [2, 3], "FP32", r"^input 'x': expected 6 elements for shape \[2,3\], got 5$"),
    ([], [1], "FP32", r"expected 1 elements for shape \[1\], got 0"),
    ([], [], "FP32", r"expected 1 elements for shape \[\], got 0"), ([1], [0], "FP32", "expected 0 elements"),
    ([[1, 2, 3], [4, 5]], [2, 3], "FP32", "expected a list of 3 in dimension 1, got a list of 2"),
    ([[1, 2], [3, 4], [5, 6]], [2, 3], "FP32", r"not nested as shape \[2,3\].* list of 2 in dimension 0.* of 3"),
    ([[1, 2, 3], 4], [2, 3], "FP32", "expected a list of 3 in dimension 1, got 4"),
    ([[1, 2, 3], None], [2, 3], "FP32", "in dimension 1, got null"),
    ([1, [2]], [2], "FP32", "element 1 of data is a list, expected a number"),
    ([[1], [2]], [2], "FP32", "element 0 of data is a list, expected a number"),
    ([[1]], [], "FP32", "element 0 of data is a list, expected a number"),
    ([{"a": 1}], [1], "FP32", "element 0 of data is an object, expected a number for FP32"),
    ([[[]]], [1, 0], "FP32", "expected a list of 0 in dimension 1, got a list of 1"),
    ([1, True], [2], "INT32", "element 1 of data is true, expected an integer for INT32"),
    ([1, 1.0], [2], "INT32", "element 1 of data is 1.0, expected an integer"),
    ([1.5], [1], "INT64", "element 0 of data is 1.5, expected an integer"),
    (["1"], [1], "INT64", 'element 0 of data is "1", expected an integer'),
    ([300], [1], "UINT8", r"element 0 of data is 300, out of range for UINT8 \(0 to 255\)"),
    ([0, -129, 128], [3], "INT8", "element 1 of data is -129, out of range for INT8"),
    ([0, -1], [2], "UINT64", "element 1 of data is -1, out of range for UINT64"),
    ([2**64 - 1, -1], [2], "UINT64", "element 1 of data is -1, out of range for UINT64"),
    ([-1, 2**63], [2], "INT64", f"element 1 of data is {2**63}, out of range for INT64"),
    ([2**63], [1], "INT8", "out of range for INT8"),
    ([1.0, True], [2], "FP32", "element 1 of data is true, expected a number"),
    ([1.0, None], [2], "FP64", "element 1 of data is null, expected a number"),
    ([1.0, "2"], [2], "FP32", 'element 1 of data is "2", expected a number'),
    ([0, 1e39], [2], "FP32", r"element 1 of data is 1e\+39, out of range for FP32"),
    ([70000], [1], "FP16", "element 0 of data is 70000, out of range for FP16"),
    ([1], [1], "BOOL", "element 0 of data is 1, expected true or false for BOOL"),
    ([b"a".decode(), 1], [2], "BYTES", "element 1 of data is 1, expected a string"),
    (["a" * 1000], [1], "FP32", 'element 0 of data is "a{59}, expected'),
    (5, [1], "FP32", "data is a number, expected a list of 1 elements"),
    (None, [2, 3], "FP32", "data is missing, expected a list of 6 elements"),
    ([1], [1], "FLOAT", "unknown datatype 'FLOAT', expected one of BOOL"),
    ([1], [1], None, "datatype is null, expected a string"), ([1], [1], 5, "datatype is a number, expected a string"),
    ([1], None, "FP32", "shape is null, expected a list of integers"),
    ([1], 1, "FP32", "shape is a number, expected a list of integers"),
    ([1], [-1], "FP32", "shape holds -1, expected integers of 0 or more"),
    ([1], [1.0], "FP32", "shape holds 1.0, expected integers"),
    ([1], [True], "FP32", "shape holds true, expected integers"),
    ([1], ["1"], "FP32", 'shape holds "1", expected integers'),
    ([1], [[1]], "FP32", "shape holds a list, expected integers"),
    ([1], [1] * 33, "FP32", "shape has 33 dimensions, expected at most 32"), ([], [0, 2**62], "FP32", "too large"),
    ([1], [2**40, 2], "FP32", "too large"),
])  # fmt: skip
def test_a_bad_tensor_is_refused_with_what_was_got_and_expected(data, shape, datatype, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        decoded(data, shape, datatype)
    assert str(caught.value).startswith("input 'x': ")


GOOD = tensor([1], [1])


@each("fields, message", [
    ({}, "has no inputs, expected `inputs` to be a non-empty list"), ({"inputs": []}, "has no inputs"),
    ({"inputs": {}}, "`inputs` is an object, expected a list of objects"),
    ({"inputs": [5]}, r"inputs\[0\] is a number, expected an object"),
    ({"inputs": [GOOD, {}]}, r"inputs\[1\]: name is null, expected a string"),
    ({"inputs": [GOOD | {"name": 5}]}, r"inputs\[0\]: name is a number"),
    ({"inputs": [GOOD, GOOD]}, r"inputs\[1\]: the name 'x' is there twice"),
    ({"inputs": [GOOD | {"parameters": []}]}, "input 'x': parameters is a list, expected an object"),
    ({"inputs": [GOOD | {"parameters": {"a": []}}]}, "input 'x': parameter 'a' is a list, expected a string, num"),
    (
        {"inputs": [GOOD | {"parameters": {"binary_data_size": 4}}]},
        "without the header Inference-Header-Content-Length",
    ),
    ({"inputs": [GOOD], "id": 5}, "id is a number, expected a string"),
    ({"inputs": [GOOD], "parameters": 5}, "^parameters is a number, expected an object"),
    ({"inputs": [GOOD], "parameters": {"a": None}}, "^parameter 'a' is null, expected a string"),
    ({"inputs": [GOOD], "outputs": "y"}, "`outputs` is a string, expected a list of objects"),
    ({"inputs": [GOOD], "outputs": ["y"]}, r"outputs\[0\] is a string, expected an object"),
    ({"inputs": [GOOD], "outputs": [{}]}, r"outputs\[0\]: name is null"),
    ({"inputs": [GOOD], "outputs": [{"name": "y"}] * 2}, r"outputs\[1\]: the name 'y' is there twice"),
    ({"inputs": [GOOD], "outputs": [{"name": "y", "parameters": 1}]}, "output 'y': parameters is a number"),
    (
        {"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
        "output 'y': parameter 'binary_data' is 1, expected true or false",
    ),
    (
        {"inputs": [GOOD], "parameters": {"binary_data_output": "true"}},
        "parameter 'binary_data_output' is \"true\", expected true or false",
    ),
])  # fmt: skip
def test_a_bad_request_is_refused_with_where_and_why(fields, message):
    with pytest.raises(InvalidInput, match=message):
        decode_request(body(**fields), "m", None)


@each("raw, message", [
    (b"", "Unrecognized request format: .*empty"), (b'{"inputs": [', "line 1 column"),
    (b"[]", "the body is a list, expected a JSON object"),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}', "Unrecognized request format"),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP64","data":[1e400]}]}', "infinity"),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":["\\ud800"]}]}', "Unrecognized request"),
    (b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "depth"),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"UINT64","data":[18446744073709551616]}]}', "an integer for"),
    (
        b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":' + b"[" * 900 + b"]" * 900 + b"}]}",
        "element 0 of data is a list",
    ),
])  # fmt: skip
def test_a_body_that_cannot_be_read_is_refused(raw, message):
    with pytest.raises(InvalidInput, match=message):
        decode_request(raw, "m", None)


def test_a_whole_response():
    response = InferResponse(
        "7",
        "m",
        [
            InferOutput("y", [1, 2], "FP32", np.array([[0.1, 2]]), {"p": 1}),
            InferOutput("text", [2], "BYTES", ["a", "é".encode()]),
        ],
        "3",
        parameters={"a": True},
    )
    assert encode_response(response) == (
        b'{"model_name":"m","model_version":"3","id":"7","parameters":{"a":true},"outputs":['
        b'{"name":"y","shape":[1,2],"datatype":"FP32","parameters":{"p":1},"data":[0.1,2.0]},'
        b'{"name":"text","shape":[2],"datatype":"BYTES","data":["a","\xc3\xa9"]}]}'
    )


@each("array, datatype, wanted", [
    (np.array([[1, 2], [3, 4]]).T, "INT64", [1, 3, 2, 4]), (np.arange(6)[::2], "INT16", [0, 2, 4]),
    (np.array([1, 2], dtype=">i4"), "INT32", [1, 2]), (np.array(1.5), "FP64", [1.5]),
    (np.array([True]), "BOOL", [True]), (np.array([2**64 - 1], dtype=np.uint64), "UINT64", [2**64 - 1]),
    (np.array([0.5], dtype=np.float16), "FP16", [0.5]), (np.array([[b"a"], [b"b"]]), "BYTES", ["a", "b"]),
    (np.array("a"), "BYTES", ["a"]),
])  # fmt: skip
def test_data_is_written_flat_and_row_major(array, datatype, wanted):
    response = InferResponse(None, "m", [InferOutput("y", array.shape, datatype, array)])
    assert orjson.loads(encode_response(response))["outputs"][0]["data"] == wanted


@each("made, message", [
    (InferOutput("y", [1], "FP32", [float("nan")]), "^output 'y' holds NaN or infinity, which JSON cannot carry$"),
    (InferOutput("y", [1], "FP16", np.array([1e6])), "output 'y' holds NaN or infinity"),
    (InferOutput("y", [1], "BYTES", [b"\xff"]), "output 'y' holds bytes that are not UTF-8"),
    (InferOutput("y", [2], "FP32", [1.0]), "output 'y': cannot reshape"),
    (InferOutput("y", [1], "UINT8", [300]), "output 'y': element 0 of data is 300, out of range"),
    (InferOutput("y", [1], "FP32"), "output 'y' has no data"),
    (InferOutput("y", [1], "FP32", [1.0], {"p": object()}), "cannot be written as JSON: .*object"),
    (InferOutput("y", [1], "FP32", [1.0], {"p": float("inf")}), "parameter 'p' is inf, which JSON cannot carry"),
    (InferOutput("\ud800", [1], "FP32", [1.0]), "cannot be written as JSON"),
])  # fmt: skip
def test_an_answer_that_json_cannot_carry_is_the_models_fault(made, message):
    with pytest.raises(InferenceError, match=message):
        encode_response(InferResponse(None, "m", [made]))

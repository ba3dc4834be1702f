"""V2 requests and answers in JSON and with the binary extension; plain answers are written as by the strict writer."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpserve.errors import InferenceError, InvalidInput, MPServeError
from mpserve.protocol.codec import Encoded, Inputs, Outputs
from mpserve.protocol.datatypes import DATATYPES, numpy_dtype
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput
from mpserve.protocol.v2 import codec as v2
from mpserve.protocol.v2.codec import V2Codec, decode_request, encode_answer, encode_response
from tests.arrays import arrays
from tests.cases import each

INTEGERS = ["UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]
NAN = float("nan")


def entry(name, shape, datatype="UINT8", **fields):
    return {"name": name, "shape": shape, "datatype": datatype, **fields}


def sized(name, shape, size, datatype="UINT8"):
    return entry(name, shape, datatype, parameters={"binary_data_size": size})


def decode(*inputs, rest=None, **fields):
    """The request with these inputs, and bytes behind its JSON if there are any."""
    json = orjson.dumps({"inputs": inputs, **fields})
    return decode_request(json + (rest or b""), "m", None, None if rest is None else str(len(json)))


def decoded(data, shape, datatype="FP32"):
    return decode(entry("x", shape, datatype, data=data)).inputs[0].as_numpy()


def test_a_whole_request():
    request = decode(
        entry("x", [1, 2], "FP32", data=[1, 2.5], parameters={"p": 1}), entry("flag", [1], "bool", data=[True]),
        id="7", model_name="ignored", parameters={"a": 1, "b": "x", "c": True, "d": 0.5},
        outputs=[{"name": "y", "parameters": {"q": 2}}, {"name": "z", "extra": []}],
    )  # fmt: skip
    assert request == InferRequest(
        "m",
        [InferInput("x", [1, 2], "FP32", [[1, 2.5]], {"p": 1}), InferInput("flag", [1], "BOOL", [True])],
        "7",
        parameters={"a": 1, "b": "x", "c": True, "d": 0.5},
        request_outputs=[RequestedOutput("y", {"q": 2}), RequestedOutput("z")],
    )


def test_null_counts_as_absent():
    request = decode(entry("x", [1], data=[1], parameters=None), id=None, parameters=None, outputs=None)
    assert request == decode(entry("x", [1], data=[1]))
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
    *[(datatype, [0, 1.5, -2, -0.0]) for datatype in ("FP16", "FP32", "FP64")],
    ("FP64", [1.7976931348623157e308, 5e-324, 0.1, 2**64 - 1]), ("FP32", [3.4028234663852886e38, 1e-45]),
    ("FP16", [65504, 6e-8]),
])  # fmt: skip
def test_values_arrive_exactly(datatype, values):
    array = decoded(values, [len(values)], datatype)
    assert array.dtype == numpy_dtype(datatype)
    assert array.tobytes() == np.array(values, dtype=array.dtype).tobytes()


@each("data, shape, datatype, message", [
    ([1, 2, 3, 4, 5], [2, 3], "FP32", r"^input 'x': expected 6 elements for shape \[2,3\], got 5$"),
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
    ([2**64 - 1, -1], [2], "UINT64", "element 1 of data is -1, out of range for UINT64"),
    ([-1, 2**63], [2], "INT64", f"element 1 of data is {2**63}, out of range for INT64"),
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
])  # fmt: skip
def test_a_bad_tensor_is_refused_with_what_was_got_and_expected(data, shape, datatype, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        decoded(data, shape, datatype)
    assert str(caught.value).startswith("input 'x': ")


GOOD = entry("x", [1], data=[1])


@each("fields, message", [
    ({}, "has no inputs, expected `inputs` to be a non-empty list"), ({"inputs": []}, "has no inputs"),
    ({"inputs": {}}, "`inputs` is an object, expected a list of objects"),
    ({"inputs": [5]}, r"inputs\[0\] is a number, expected an object"),
    ({"inputs": [GOOD, {}]}, r"inputs\[1\]: name is null, expected a string"),
    ({"inputs": [GOOD | {"name": 5}]}, r"inputs\[0\]: name is a number"),
    ({"inputs": [GOOD, GOOD]}, r"inputs\[1\]: the name 'x' is there twice"),
    ({"inputs": [GOOD | {"parameters": []}]}, "input 'x': parameters is a list, expected an object"),
    ({"inputs": [GOOD | {"parameters": {"a": []}}]}, "input 'x': parameter 'a' is a list, expected a string, num"),
    ({"inputs": [sized("x", [1], 1)]}, "without the header Inference-Header-Content-Length"),
    ({"inputs": [GOOD], "id": 5}, "id is a number, expected a string"),
    ({"inputs": [GOOD], "parameters": 5}, "^parameters is a number, expected an object"),
    ({"inputs": [GOOD], "parameters": {"a": None}}, "^parameter 'a' is null, expected a string"),
    ({"inputs": [GOOD], "outputs": "y"}, "`outputs` is a string, expected a list of objects"),
    ({"inputs": [GOOD], "outputs": ["y"]}, r"outputs\[0\] is a string, expected an object"),
    ({"inputs": [GOOD], "outputs": [{}]}, r"outputs\[0\]: name is null"),
    ({"inputs": [GOOD], "outputs": [{"name": "y"}] * 2}, r"outputs\[1\]: the name 'y' is there twice"),
    ({"inputs": [GOOD], "outputs": [{"name": "y", "parameters": 1}]}, "output 'y': parameters is a number"),
    ({"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
     "output 'y': parameter 'binary_data' is 1, expected true or false"),
    ({"inputs": [GOOD], "parameters": {"binary_data_output": "true"}},
     "parameter 'binary_data_output' is \"true\", expected true or false"),
])  # fmt: skip
def test_a_bad_request_is_refused_with_where_and_why(fields, message):
    with pytest.raises(InvalidInput, match=message):
        decode_request(orjson.dumps(fields), "m", None)


@each("raw, message", [
    (b"", "Unrecognized request format: .*empty"), (b'{"inputs": [', "line 1 column"),
    (b"[]", "the body is a list, expected a JSON object"),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}', "Unrecognized request format"),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP64","data":[1e400]}]}', "infinity"),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":["\\ud800"]}]}', "Unrecognized request"),
    (b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "depth"),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"UINT64","data":[18446744073709551616]}]}', "an integer for"),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":' + b"[" * 900 + b"]" * 900 + b"}]}", "0 of data is a list"),
])  # fmt: skip
def test_a_body_that_cannot_be_read_is_refused(raw, message):
    with pytest.raises(InvalidInput, match=message):
        decode_request(raw, "m", None)


def test_a_body_of_json_alone_may_state_its_length():
    assert decode(entry("x", [1], data=[1]), rest=b"").inputs == [InferInput("x", [1], "UINT8", [1])]


@each("inputs, rest, message", [
    ([sized("x", [2], 2)], b"\1", "^input 'x': binary_data_size is 2, but only 1 bytes are left"),
    ([sized("x", [2], 2), sized("y", [2], 2)], b"\1\2\3", "^input 'y': .* only 1 bytes are left"),
    ([sized("x", [2], 2)], b"\1\2\3", "^1 bytes at the body's end belong to no tensor"),
    ([entry("x", [1], data=[1])], b"\1", "^1 bytes at the body's end"),
    ([sized("x", [2], 1)], b"\1", r"input 'x': expected 2 bytes"),
    ([sized("x", [2], True)], b"\1\2", "binary_data_size is true, expected a number of bytes"),
    ([sized("x", [2], -2)], b"\1\2", "binary_data_size is -2"),
    ([sized("x", [2], "2")], b"\1\2", 'binary_data_size is "2"'),
    ([sized("x", [2], 2) | {"data": [1, 2]}], b"\1\2", "got both binary_data_size and data, expected one"),
    ([entry("x", [1])], b"\2", "input 'x': data is missing"),
])  # fmt: skip
def test_binary_data_that_does_not_fit_is_refused_by_name(inputs, rest, message):
    with pytest.raises(InvalidInput, match=message):
        decode(*inputs, rest=rest)


THERE = {"shared_memory_region": "r", "shared_memory_byte_size": 8}


def test_an_input_in_shared_memory_has_no_data_and_takes_no_bytes():
    request = decode(entry("x", [2], "FP32", parameters=THERE), sized("y", [2], 2), rest=b"\1\2")
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
        decode(given, rest=bytes(8))


def test_a_whole_response():
    y = InferOutput("y", [1, 2], "FP32", np.array([[0.1, 2]]), {"p": 1})
    text = InferOutput("text", [2], "BYTES", ["a", "é".encode()])
    response = InferResponse("7", "m", [y, text], "3", parameters={"a": True})
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
    (InferOutput("y", [1], "FP32", [NAN]), "^output 'y' holds NaN or infinity, which JSON cannot carry$"),
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


def asking(*requested, **parameters):
    return InferRequest("m", [], parameters=parameters, request_outputs=list(requested))


Y = np.array([1, 2], np.uint16)


def response():
    outputs = [InferOutput("y", [2], "UINT16", Y, {"p": 1}), InferOutput("z", [1], "BYTES", ["é"])]
    return InferResponse("7", "m", outputs)


def test_what_is_asked_for_as_bytes_follows_the_json():
    json, *chunks = encode_answer(response(), asking(binary_data_output=True)).chunks
    assert json == (
        b'{"model_name":"m","id":"7","outputs":['
        b'{"name":"y","shape":[2],"datatype":"UINT16","parameters":{"p":1,"binary_data_size":4}},'
        b'{"name":"z","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":6}}]}'
    )
    assert chunks == [b"\1\0\2\0", b"\2\0\0\0\xc3\xa9"]
    assert np.shares_memory(Y, np.frombuffer(chunks[0], np.uint8))


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


def test_a_size_left_among_the_parameters_does_not_contradict_the_data():
    output = InferOutput("y", [1], "UINT8", [1], {"binary_data_size": 99, "p": 1})
    answer = InferResponse(None, "m", [output])
    assert orjson.loads(encode_response(answer))["outputs"][0]["parameters"] == {"p": 1}
    json = encode_answer(answer, asking(binary_data_output=True)).chunks[0]
    assert orjson.loads(json)["outputs"][0]["parameters"] == {"binary_data_size": 1, "p": 1}


def test_an_output_in_shared_memory_is_written_without_data_however_it_was_wanted():
    response = InferResponse(None, "m", [InferOutput("y", [2], "FP32", None, THERE)])
    encoded = encode_answer(response, asking(binary_data_output=True))
    assert encoded.json_length is None
    assert orjson.loads(encoded.join())["outputs"] == [entry("y", [2], "FP32", parameters=THERE)]


LAYOUTS = {
    "as it is": lambda array: array,
    "column-major": np.asfortranarray,
    "strided": lambda array: np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array,
    "reversed": lambda array: array[::-1] if array.ndim else array,
    "transposed": lambda array: array.T,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")) if array.dtype.kind in "iuf" else array,
    "read-only": lambda array: np.broadcast_to(array, array.shape),
    "nested": lambda array: array.tolist() if array.ndim and array.dtype.kind in "biu" else array,
}
OF_OUTPUT = st.sampled_from([None, {}, {"a": 1}, {"b": NAN}])
OF_REQUEST = st.sampled_from([None, {}, {"binary_data_output": True}, {"binary_data_output": False, "a": 1}])
WANTED = st.sampled_from([None, {}, {"binary_data": True}, {"binary_data": False}, {"binary_data": True, "a": 1}])
IDS = st.sampled_from([None, "", "1", "null", 'é"'])
ORDINARY = Inputs([])


def written(codec: V2Codec, inputs: Inputs, outputs: Outputs) -> Any:
    """The answer as the codec and as the strict writer write or refuse it, which is the same."""
    try:
        encoded: Any = codec.write(inputs, outputs)
    except MPServeError as error:
        encoded = type(error), str(error)
    response = outputs.response(inputs) if outputs.tensors is not None else outputs.result
    try:
        chunks = encode_answer(response, inputs.given_to("m", None), codec.nonfinite)
        length = str(chunks.json_length)
        binary = Encoded(chunks.join(), None, {"content-type": v2.OCTETS, "inference-header-content-length": length})
        strict: Any = Encoded(chunks.join(), "application/json") if chunks.json_length is None else binary
    except MPServeError as error:
        strict = type(error), str(error)
    assert encoded == strict
    return encoded


@st.composite
def outputs_of(draw: st.DrawFn, name: str) -> InferOutput:
    datatype = draw(st.sampled_from(DATATYPES))
    array = draw(arrays(datatype, json=draw(st.booleans())))
    shape = array.T.shape if (layout := draw(st.sampled_from(sorted(LAYOUTS)))) == "transposed" else array.shape
    wrong = draw(st.booleans()) and draw(st.booleans()) and draw(st.booleans())
    return InferOutput(name, [*shape, 7] if wrong else shape, datatype, LAYOUTS[layout](array), draw(OF_OUTPUT))


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(st.data(), st.sampled_from(["", "a", "a", "ab"]), st.sampled_from(["error", "null"]))
def test_any_answer_is_written_or_refused_as_by_the_strict_writer(
    data: st.DataObject, names: str, nonfinite: Any
) -> None:
    requested = [RequestedOutput(name, data.draw(WANTED)) for name in names] if data.draw(st.booleans()) else None
    inputs = Inputs([], data.draw(IDS), requested, data.draw(OF_REQUEST))
    version = data.draw(st.sampled_from([None, "1"]))
    if data.draw(st.booleans()):
        datatypes = [data.draw(st.sampled_from(DATATYPES)) for _ in names]
        tensors = [
            (name, datatype, data.draw(arrays(datatype))) for name, datatype in zip(names, datatypes, strict=True)
        ]
        written(V2Codec(nonfinite), inputs, Outputs("m", "1", version, tensors))
    else:
        made = [data.draw(outputs_of(name)) for name in names]
        response = InferResponse(data.draw(IDS), "é", made, version, parameters=data.draw(OF_OUTPUT))  # type: ignore[arg-type]
        written(V2Codec(nonfinite), inputs, Outputs("m", "1", version, None, response))


@each("count", [3, 3000])
@each("datatype", ["FP16", "FP32", "FP64", "BF16"])
def test_what_is_not_finite_is_refused_or_null(count: int, datatype: str) -> None:
    array = np.ones(count, np.float32)
    array[1], array[2] = np.nan, -np.inf
    outputs = Outputs("m", "1", None, [("y", datatype, array)])
    assert "holds NaN or infinity" in written(V2Codec("error"), ORDINARY, outputs)[1]
    answer = orjson.loads(written(V2Codec("null"), ORDINARY, outputs).body)
    assert answer["outputs"][0]["data"][:3] == [1.0, None, None]


NAMES = ["y", "n", "null", '"data":[', '"data":[n', "data\\", "é"]


@each("at", [0, 2500, 4999])
@each("model", NAMES)
@each("name", NAMES)
def test_in_a_long_answer_no_name_hides_what_is_not_finite_nor_is_taken_for_it(name: str, model: str, at: int) -> None:
    finite, spoilt = np.ones(5000), np.ones(5000)
    spoilt[at] = np.nan
    good, bad, other = (name, "FP64", finite), (name, "FP64", spoilt), (f"{name}2", "FP64", finite)
    for tensors in ([bad], [bad, other], [other, bad]):
        assert "holds NaN or infinity" in written(V2Codec("error"), ORDINARY, Outputs(model, "1", None, tensors))[1]
    for tensors in ([good], [good, other]):
        answer = orjson.loads(written(V2Codec("error"), Inputs([], "null"), Outputs(model, "1", None, tensors)).body)
        assert [output["data"] for output in answer["outputs"]] == [finite.tolist()] * len(tensors)


@each("binary", [True, False])
def test_an_answer_is_in_memory_of_its_own(binary: bool) -> None:
    """A model may use its arrays again in its next predict."""
    array = np.ones(3, np.float32)
    inputs = Inputs([], parameters={"binary_data_output": binary})
    answer = V2Codec("error").write(inputs, Outputs("m", "1", None, [("y", "FP32", array)])).body
    before = bytes(answer)
    array[:] = 2
    assert answer == before

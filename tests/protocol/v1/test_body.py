import dataclasses
import datetime

import numpy as np
import orjson
import pytest

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.datatypes import FIXED
from mpserve.protocol.messages import InferOutput, InferResponse
from mpserve.protocol.v1.body import decode_request, encode_response, write_plain
from tests.cases import each

NAN = float("nan")


JSON_TYPES = [
    None, "", "application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "application/cloudevents+json",
    "application/ld+json ; charset=utf-8", "application/octet-stream", "application/x-www-form-urlencoded",
]  # fmt: skip
BYTES_TYPES = ["text/html", "image/jpeg", "avro/binary", "application/jsonlines"]


@each("content_type", [*JSON_TYPES, *BYTES_TYPES])
def test_what_clients_send_json_under_is_read_as_json_and_all_else_reaches_the_model_as_bytes(content_type):
    body = b'{"instances": [[1, 2.5]]}'
    assert decode_request(body, content_type) == (body if content_type in BYTES_TYPES else orjson.loads(body))


@each("content_type", ["text/plain", "Text/Plain;charset=UTF-8"])
@each("numbers", [False, True])
def test_a_text_is_json_if_it_holds_an_object(content_type, numbers):
    body = b' \t\r\n{"instances": [[1, 2.5]]}'
    payload = decode_request(body, content_type, numbers)
    assert (list(payload), len(payload["instances"])) == (["instances"], 1)
    with pytest.raises(InvalidInput, match="to be a list"):
        decode_request(b'{"instances": 5}', content_type, numbers)
    for text in (b"", b"{", b"{braces} in words", b"[1]", b'"a"', b"5", b'{"a": NaN}', b'{"a": 1}{"a": 2}', b"\xff{}"):
        assert decode_request(text, content_type, numbers) == text


@each("body, message", [
    (b"{", "^Unrecognized request format: .*line 1 column 2"), (b"true", "the body is a boolean, expected a JSON object"),
    *((b'{"instances": %b}' % value, '^Expected "instances" to be a list$') for value in (b"5", b"null", b'{"a": 1}')),
])  # fmt: skip
def test_a_bad_request_is_refused_in_words(body, message):
    with pytest.raises(InvalidInput, match=message):
        decode_request(body, "application/json")


@dataclasses.dataclass
class Answer:
    score: float


@each("result, wanted", [
    ({"predictions": [1, 2.5, "é", None, True]}, {"predictions": [1, 2.5, "é", None, True]}), ([1, 2], [1, 2]),
    ((1, 2), [1, 2]), (1.5, 1.5), ({1: "a", None: "b"}, {"1": "a", "null": "b"}),
    ({"a": np.array([[1.5, 2]], dtype=np.float32)}, {"a": [[1.5, 2.0]]}),
    ({"a": np.arange(6).reshape(2, 3).T}, {"a": [[0, 3], [1, 4], [2, 5]]}),
    ({"a": np.arange(6)[::2]}, {"a": [0, 2, 4]}), ({"a": np.array(["x", "y"])}, {"a": ["x", "y"]}),
    ({"a": np.array([1, "y", None], dtype=object)}, {"a": [1, "y", None]}), ({"a": np.array(1.5)}, {"a": 1.5}),
    ({"a": np.array([0.5], dtype=np.float16)}, {"a": [0.5]}), ({"a": np.zeros((2, 0))}, {"a": [[], []]}),
    ([np.float32(1.5), np.int8(3), np.bool_(True), np.str_("x")], [1.5, 3, True, "x"]),
    ({"a": datetime.datetime(2020, 1, 2)}, {"a": "2020-01-02T00:00:00"}), (Answer(0.5), {"score": 0.5}),
    ({"a": "null", "b": [None, np.array([1.5]), np.float32(2), Answer(1.0), (3.0,)]}, None),
])  # fmt: skip
def test_a_result_becomes_json(result, wanted):
    body, _ = encode_response(result)
    assert wanted is None or orjson.loads(body) == wanted


@pytest.mark.e2e
@each("transform", ["float", "bfloat16", "double"])
def test_torch_tensors_become_json_with_and_without_gradient(transform):
    torch = pytest.importorskip("torch")
    tensor = getattr(torch.tensor([[1.5, 2.0]], requires_grad=True), transform)()
    body, _ = encode_response({"predictions": tensor, "total": tensor.sum()})
    assert orjson.loads(body) == {"predictions": [[1.5, 2.0]], "total": 3.5}
    with pytest.raises(InferenceError, match="NaN or infinity"):
        encode_response({"predictions": tensor / 0})


@each("result, message", [
    (None, "the model returned None"), ({"a": object()}, "not JSON serializable: object"),
    ({"a": b"x"}, "not JSON serializable: bytes"), ({"a": {1, 2}}, "not JSON serializable: set"),
    ({"a": 2**70}, "cannot be written as JSON: Integer exceeds 64-bit range"),
    ({"a": np.array([1, 2], dtype=">i4")}, "cannot be written as JSON: numpy array is not native-endianness"),
    ({"a": "\ud800"}, "cannot be written as JSON"), ("\ud800", "cannot be written as JSON"),
    ({"a": NAN}, "NaN or infinity"), ({"a": [[1.0, float("-inf")]]}, "NaN or infinity"),
    ({"a": (1.0, NAN)}, "NaN or infinity"), ({"a": np.array([1.0, np.nan])}, "NaN or infinity"),
    ({"a": np.array([[1.0, np.inf]], dtype=np.float16).T}, "NaN or infinity"),
    ({"a": np.array([1.0, np.nan], dtype=object)}, "NaN or infinity"), ({"a": np.float32("nan")}, "NaN or infinity"),
    (np.array([np.nan]), "NaN or infinity"), (Answer(NAN), "NaN or infinity"),
])  # fmt: skip
def test_a_result_that_json_cannot_carry_is_the_models_fault(result, message):
    with pytest.raises(InferenceError, match=message):
        encode_response(result)


def output(name, array, datatype="FP32"):
    return InferOutput(name, array.shape, datatype, array)


@each("outputs, wanted", [
    ([], {}), ([output("y", np.array([[1.5], [2.5]]))], [[1.5], [2.5]]), ([output("y", np.array(1.5))], 1.5),
    ([output("y", np.array([[b"a"], [b"b"]]), "BYTES")], [["a"], ["b"]]),
    ([output("y", np.array([0.5]), "FP16")], [0.5]),
    (
        [output("y", np.array([[1.5], [2.5]])), output("label", np.array(["a", "b"]), "BYTES")],
        [{"y": [1.5], "label": "a"}, {"y": [2.5], "label": "b"}],
    ),
    (
        [output("y", np.array([1, 0]), "INT8"), output("z", np.array([True, False]), "BOOL")],
        [{"y": 1, "z": True}, {"y": 0, "z": False}],
    ),
    ([output("y", np.array([1.5])), output("z", np.array([1, 2]))], {"y": [1.5], "z": [1, 2]}),
    ([output("y", np.array(1.5)), output("z", np.array(2.5))], {"y": 1.5, "z": 2.5}),
])  # fmt: skip
def test_a_v2_response_becomes_predictions(outputs, wanted):
    body, content_type = encode_response(InferResponse("1", "m", outputs))
    assert (orjson.loads(body), content_type) == ({"predictions": wanted}, "application/json")


@each("tensor, message", [
    (output("y", np.array([np.nan])), "output 'y' holds NaN or infinity"),
    (output("y", np.array([b"\xff"]), "BYTES"), "output 'y' holds bytes that are not UTF-8"),
    (InferOutput("y", [3], "FP32", [1.0]), "output 'y': cannot reshape"),
])  # fmt: skip
def test_an_output_that_cannot_be_sent_is_named(tensor, message):
    with pytest.raises(InferenceError, match=message):
        encode_response(InferResponse("1", "m", [tensor]))


@each("values", [
    [NAN, 1.5], (float("-inf"), 1.5), np.array([np.nan, 1.5]), np.array([np.inf, 1.5], dtype=np.float16),
    np.array([[np.nan, 9], [1.5, 9]]).T[0], np.array([np.nan, 1.5], dtype=object), [np.float32("nan"), np.float32(1.5)],
])  # fmt: skip
def test_non_finite_numbers_become_null_if_that_is_wanted(values):
    body, _ = encode_response({"predictions": values}, "null")
    assert orjson.loads(body) == {"predictions": [None, 1.5]}


def test_non_finite_outputs_become_null_if_that_is_wanted():
    outputs = [output("y", np.array([np.nan, 1.5])), output("z", np.array([[1, np.inf], [2, 3]]), "FP32")]
    body, _ = encode_response(InferResponse("1", "m", outputs), "null")
    assert orjson.loads(body) == {"predictions": [{"y": None, "z": [1, None]}, {"y": 1.5, "z": [2, 3]}]}


@each("nonfinite", ["error", "null"])
@each("count", [3, 5000])
@each("datatype", [*FIXED, "BYTES"])
@each("odd", [0, np.nan, np.inf])
def test_one_output_is_written_plainly_as_in_the_ordinary_way_or_not_at_all(datatype, count, nonfinite, odd):
    array = np.zeros(count, FIXED.get(datatype, object))
    if array.dtype.kind == "f":
        array[-1] = odd
    is_error = nonfinite == "error" and array.dtype.kind == "f" and not np.isfinite(odd)
    plain = write_plain([("y", datatype, array)], nonfinite)
    assert (plain is None) == (is_error or datatype in ("FP16", "BYTES"))
    if plain is not None:
        response = InferResponse(None, "m", [InferOutput("y", [count], datatype, array)])
        assert (plain, "application/json") == encode_response(response, nonfinite)

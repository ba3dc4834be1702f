"""What holds for any tensor and any bytes: values survive bit by bit, and nothing but ``InvalidInput`` comes out."""

import contextlib

import numpy as np
import orjson
from hypothesis import given
from hypothesis import strategies as st

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.binary import decode_tensor, encode_tensor
from mpserve.protocol.datatypes import DATATYPES
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse
from mpserve.protocol.v1 import body as v1
from mpserve.protocol.v2.codec import decode_request, encode_answer, encode_response
from tests.arrays import arrays, same
from tests.cases import each


def assert_same(tensor, array):
    got = tensor.as_numpy()
    assert tensor.shape == list(array.shape)
    assert same(got, array), (got, array)


@each("datatype", DATATYPES)
@given(data=st.data())
def test_any_request_and_response_survive_the_binary_extension_bit_by_bit(datatype, data):
    array = data.draw(arrays(datatype))
    tensor = InferInput("x", array.shape, datatype)
    tensor.set_data_from_numpy(array)
    sent = InferRequest("m", [tensor, InferInput("y", [1], "INT8", [5])], parameters={"binary_data_output": True})
    body, length = sent.to_rest()
    request = decode_request(body, "m", None, str(length))
    assert_same(request.inputs[0], array)
    answer = encode_answer(InferResponse(None, "m", [InferOutput("x", array.shape, datatype, array)]), request)
    assert_same(InferResponse.from_bytes(answer.join(), answer.json_length).outputs[0], array)


@each("datatype", DATATYPES)
@given(data=st.data())
def test_any_tensor_that_json_can_carry_survives_it_bit_by_bit_flat_and_nested(datatype, data):
    array = data.draw(arrays(datatype, json=True))
    answer = encode_response(InferResponse(None, "m", [InferOutput("x", array.shape, datatype, array)]))
    assert_same(InferResponse.from_bytes(answer, len(answer)).outputs[0], array)
    request = orjson.dumps({"inputs": orjson.loads(answer)["outputs"]})
    assert_same(decode_request(request, "m", None).inputs[0], array)
    if not array.ndim:
        return
    values = array.astype(np.float64).tolist() if datatype in ("FP16", "BF16") else array.tolist()
    nested = values if datatype != "BYTES" else np.vectorize(bytes.decode, otypes=[object])(array).tolist()
    entry = {"name": "x", "shape": array.shape, "datatype": datatype, "data": nested}
    assert_same(decode_request(orjson.dumps({"inputs": [entry]}), "m", None).inputs[0], array)


NUMBERS, TEXT = InferInput("n", [2], "FP32"), InferInput("t", [2], "BYTES")
NUMBERS.set_data_from_numpy(np.array([1, 2], dtype=np.float32))
TEXT.set_data_from_numpy(np.array([b"ab", b""], dtype=object))
FLAGS = InferInput("f", [1, 2], "BOOL", [True, False], {"p": 1})
VALID, VALID_LENGTH = InferRequest("m", [NUMBERS, FLAGS, TEXT], "1", parameters={"a": 1.5}).to_rest()
DECLARED = [("x", "BOOL", [-1]), ("x", "FP32", [-1, 2]), ("x", "BYTES", [1])]


def decode_any(body, length):
    for header in (None, length):
        for declared in DECLARED:
            with contextlib.suppress(InvalidInput):
                decode_request(body, "m", None, header, [declared])
    for content_type in (None, "application/json"):
        with contextlib.suppress(InvalidInput):
            v1.decode_request(body, content_type)
    with contextlib.suppress(InferenceError):
        InferResponse.from_bytes(body, int(length) if length.isdecimal() and length.isascii() else -1)


@st.composite
def changed(draw):
    """A valid body in which a few bytes are others, and about the length of its JSON."""
    body = bytearray(VALID)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        body[start : start + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(body), str(draw(st.integers(-3, 3)) + VALID_LENGTH)


@given(changed() | st.tuples(st.binary(), st.integers(-2, 100).map(str) | st.text()))
def test_any_bytes_are_read_or_refused(sent):
    decode_any(*sent)


NUMBER = st.integers(-5, 300) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    NUMBER | st.text(max_size=5) | st.sampled_from([None, True, False, 2**31, 2**63, 2**64 - 1, -(2**63), *DATATYPES]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["name", "shape", "datatype", "data", "parameters", "binary_data_size", "inputs", "outputs", "id"]


def places(value):
    """Every container in a JSON value."""
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from places(inner)


@given(st.data())
def test_a_valid_body_with_changed_fields_is_read_or_refused(data):
    document = orjson.loads(VALID[:VALID_LENGTH])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(list(places(document))))
        if isinstance(place, dict):
            place[data.draw(st.sampled_from(FIELDS))] = data.draw(JSON)
        elif place:
            place[data.draw(st.integers(0, len(place) - 1))] = data.draw(JSON)
    json = orjson.dumps(document)
    decode_any(json + VALID[VALID_LENGTH:], str(len(json)))


@given(JSON)
def test_whatever_data_is_sent_is_read_or_refused(value):
    for datatype in DATATYPES:
        shape = [len(value)] if isinstance(value, list) else [1]
        entry = {"name": "x", "shape": shape, "datatype": datatype, "data": value}
        with contextlib.suppress(InvalidInput):
            decode_request(orjson.dumps({"inputs": [entry]}), "m", None)


@each("datatype", DATATYPES)
@given(st.binary(max_size=40), st.lists(st.integers(-2, 5) | st.sampled_from([2**31, 2**62]), max_size=5))
def test_any_bytes_are_a_tensor_or_refused(datatype, buffer, shape):
    with contextlib.suppress(InvalidInput):
        array = decode_tensor(buffer, datatype, shape, "x")
        assert bytes(encode_tensor(array, datatype)) == buffer

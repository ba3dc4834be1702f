"""The codec of gRPC reads and writes plain messages as it does all others, to the byte; and finds whom a message asks."""

import contextlib
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mpserve.errors import InvalidInput
from mpserve.protocol.codec import Inputs, Outputs
from mpserve.protocol.datatypes import DATATYPES, FIXED, Array, datatype_of
from mpserve.protocol.messages import InferInput, InferRequest
from mpserve.protocol.protobuf import fields, wire
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.protobuf.codec import ProtobufCodec
from mpserve.protocol.protobuf.fields import encode_request, encode_response
from mpserve.protocol.protobuf.plain import write_response
from mpserve.protocol.tensors import NamedArray, RequestedOutput
from tests.arrays import arrays, outcome, same
from tests.cases import each

CODEC = ProtobufCodec()
untimed = settings(deadline=None)
X = {"name": "x", "datatype": "FP32", "shape": [2], "contents": {"fp32_contents": [1.0, 2.0]}}
RAW = {"name": "x", "datatype": "FP32", "shape": [2]}
EIGHT = bytes(8)


def encoded(request: InferRequest, typed: bool) -> bytes:
    return b"".join(encode_request(request, typed))


def request(**fields: Any) -> bytes:
    return pb.ModelInferRequest(**{"model_name": "m", "inputs": [X]} | fields).SerializeToString()


def is_plain(data: bytes) -> bool:
    """Whether the message is plain. Whether or not, the codec makes of it what the strict reader does."""
    fast, strict = (outcome(CODEC.read, data, (), speaks_arrays) for speaks_arrays in (True, False))
    assert fast == strict
    return strict[0] is not InvalidInput and CODEC.read(data, (), True).message is None


@untimed
@given(st.data(), st.booleans(), st.text(max_size=3), st.lists(st.text(max_size=2), max_size=2, unique=True))
def test_tensors_are_read_bit_for_bit(data: st.DataObject, typed: bool, request_id: str, outputs: list[str]) -> None:
    datatypes = data.draw(st.lists(st.sampled_from(list(FIXED)), min_size=1, max_size=3))
    inputs = []
    for index, datatype in enumerate(datatypes):
        array = data.draw(arrays(datatype))
        inputs.append(InferInput(f"x{index}", array.shape, datatype, array))
    wanted = [RequestedOutput(name) for name in outputs]
    message = encoded(InferRequest("m", inputs, request_id, request_outputs=wanted), typed)
    for (_, _, got), sent in zip(CODEC.read(message, (), True).arrays(()), inputs, strict=True):
        assert same(got, sent.as_numpy())
    as_typed = typed and "FP16" not in datatypes  # which has no typed contents
    assert is_plain(message) == (as_typed or "BOOL" not in datatypes)


def agree_on(outputs: list[NamedArray], typed: bool, request_id: str | None = "7", name: str = "m") -> None:
    inputs = Inputs([], request_id, state=typed)
    answer = Outputs(name, "1", None, outputs)
    assert CODEC.write(inputs, answer).body == b"".join(encode_response(answer.response(inputs), typed))


@untimed
@given(st.data(), st.booleans(), st.text(max_size=3) | st.none())
def test_answers_are_written_as_all_others_are(data: st.DataObject, typed: bool, request_id: str | None) -> None:
    datatypes = data.draw(st.lists(st.sampled_from(DATATYPES), min_size=1, max_size=3))
    outputs = [(f"y{index}", datatype, data.draw(arrays(datatype))) for index, datatype in enumerate(datatypes)]
    agree_on(outputs, typed, request_id)


@each("typed", [True, False])
@each("array", [
    np.arange(12, dtype=np.float32).reshape(3, 4)[::2, ::-1], np.arange(6, dtype=np.int32).reshape(2, 3).T,
    np.zeros((200, 2), np.float64), np.array(3.5, np.float32),
])  # fmt: skip
def test_arrays_are_written_row_by_row_whatever_their_layout(array: Array, typed: bool) -> None:
    agree_on([("y" * 200, datatype_of(array.dtype), array)], typed, name="m" * 200)


@each("datatype, array", [
    ("BYTES", np.array([b"a"], dtype=object)), ("BF16", np.zeros(1, np.uint16)), ("FP32", np.zeros(1, np.float64)),
    ("FP32", np.zeros(1, np.dtype(np.float32).newbyteorder(">"))),
])  # fmt: skip
def test_an_output_that_is_not_plainly_numbers_is_not_written(datatype: str, array: Array) -> None:
    plain = ("y", "FP32", np.zeros(1, np.float32))
    assert write_response("m", None, [plain, ("z", datatype, array)], False) is None


PLAIN = {
    "typed": request(), "raw": request(inputs=[RAW], raw_input_contents=[EIGHT]), "an id": request(id="7"),
    "a version": request(model_version="1"), "outputs": request(outputs=[{"name": "y"}, {"name": "z"}]),
    "several": request(inputs=[X, {**X, "name": "z"}]),
    "no elements": request(inputs=[{**X, "shape": [0, 3], "contents": {}}]),
    "no raw elements": request(inputs=[{**RAW, "shape": [2, 0]}], raw_input_contents=[b""]),
    "no dimension": request(inputs=[{**X, "shape": [], "contents": {"fp32_contents": [1.0]}}]),
    "an unknown field": request() + b"\xfa\x06\x03abc",
}  # fmt: skip
ONE = {"int64_param": 1}
OTHER = {
    "nothing": b"", "no message": b"\x0a\xff", "cut short": request(inputs=[RAW], raw_input_contents=[EIGHT])[:-1],
    "no inputs": request(inputs=[]), "a parameter": request(parameters={"p": ONE}),
    "an input's parameter": request(inputs=[{**X, "parameters": {"p": ONE}}]),
    "a raw input's parameter": request(inputs=[{**RAW, "parameters": {"p": ONE}}], raw_input_contents=[EIGHT]),
    "an output's parameter": request(outputs=[{"name": "y", "parameters": {"classification": ONE}}]),
    "an input twice": request(inputs=[X, X]), "typed and raw": request(raw_input_contents=[EIGHT]),
    "typed and not": request(inputs=[X, {**RAW, "name": "z", "shape": [0]}]),
    "more raw contents than inputs": request(inputs=[RAW], raw_input_contents=[EIGHT, EIGHT]),
    "fewer raw contents than inputs": request(inputs=[RAW, {**RAW, "name": "z"}], raw_input_contents=[EIGHT]),
    "too few elements": request(inputs=[{**X, "shape": [3]}]),
    "too few raw elements": request(inputs=[{**RAW, "shape": [3]}], raw_input_contents=[EIGHT]),
    "half an element": request(inputs=[RAW], raw_input_contents=[EIGHT[1:]]),
    "a size that is to be found out": request(inputs=[{**RAW, "shape": [-1]}], raw_input_contents=[EIGHT]),
    "negative sizes": request(inputs=[{**X, "shape": [-1, -2]}]),
    "too many dimensions": request(inputs=[{**X, "shape": [1] * 40 + [2]}]),
    "too large": request(inputs=[{**RAW, "shape": [2**62, 4, 0]}], raw_input_contents=[b""]),
    "too large, modulo 2**64 not": request(
        inputs=[{**RAW, "shape": [3, (2**64 + 2) // 3]}], raw_input_contents=[EIGHT]
    ),
    "text": request(inputs=[{**X, "datatype": "BYTES", "contents": {"bytes_contents": [b"a", b"b"]}}]),
    "a raw BOOL": request(inputs=[{**RAW, "datatype": "BOOL"}], raw_input_contents=[b"\1\2"]),
    "typed FP16": request(inputs=[{**X, "datatype": "FP16"}]),
    "BF16": request(inputs=[{**RAW, "datatype": "BF16"}], raw_input_contents=[EIGHT[:4]]),
    "an unknown datatype": request(inputs=[{**X, "datatype": "FP31"}]),
    "small letters": request(inputs=[{**X, "datatype": "fp32"}]),
    "contents of another field": request(inputs=[{**X, "contents": {"int_contents": [1, 2]}}]),
    "out of range": request(inputs=[{**X, "datatype": "INT8", "contents": {"int_contents": [1, 300]}}]),
}  # fmt: skip


@each("data", PLAIN.values())
def test_a_plain_request_is_read_at_once(data: bytes) -> None:
    assert is_plain(data)


@each("data", OTHER.values())
def test_whatever_is_not_plain_is_left_to_the_strict_reader(data: bytes) -> None:
    assert not is_plain(data)


@untimed
@given(st.data())
def test_changed_bytes_are_read_or_refused_as_by_the_strict_reader(data: st.DataObject) -> None:
    message = bytearray(data.draw(st.sampled_from([*PLAIN.values(), *OTHER.values()])))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(message)))
        message[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    strict = outcome(CODEC.read, bytes(message), (), False)
    if "no current protobuf writes" not in str(strict[1]):  # a field that is not known is passed over
        is_plain(bytes(message))


def field(number: int, text: bytes) -> bytes:
    return wire.prefix(number, len(text)) + text


NAME, VERSION = field(1, b"m"), field(2, b"3")


@each("head, model, version", [
    (b"", "", None), (NAME, "m", None), (VERSION, "", "3"), (VERSION + NAME, "m", "3"),
    (field(1, b"other") + NAME, "m", None), (NAME + field(2, b"9") + VERSION, "m", "3"),
    (NAME + VERSION + field(2, b""), "m", None), (field(1, "ü".encode()), "ü", None),
])  # fmt: skip
@each("is_large", [False, True])
def test_the_model_and_its_version_are_told_by_the_last_field_of_each_wherever_it_is(
    head: bytes, model: str, version: str | None, is_large: bool
) -> None:
    tensor = {"inputs": [RAW], "raw_input_contents": [bytes(fields.LARGE if is_large else 8)], "model_name": ""}
    rest = request(**tensor)
    for data in (head + rest, rest + head, head[:3] + rest + head[3:] if head.startswith(NAME) else head + rest):
        assert fields.addressee(data) == (model, version)
        message = pb.ModelInferRequest.FromString(data)
        assert (message.model_name, message.model_version or None) == (model, version)


@untimed
@given(st.data())
def test_whoever_is_named_the_strict_reader_names_the_same(data: st.DataObject) -> None:
    message = bytearray(VERSION + data.draw(st.sampled_from([*PLAIN.values(), *OTHER.values()])))
    start = data.draw(st.integers(0, len(message)))
    message[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    with contextlib.suppress(InvalidInput):
        arguments, _ = fields.read_request(bytes(message))
        assert fields.addressee(bytes(message)) == (arguments["model_name"], arguments["model_version"])

"""What is read and written in one go is read and written as everything else is, to the byte; and what is left alone."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import FIXED, Array
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.protobuf.converters import decode_request
from mpserve.protocol.protobuf.fields import encode_request, encode_response
from mpserve.protocol.protobuf.plain import LARGE, read_request, write_response
from mpserve.protocol.tensors import RequestedOutput
from tests.arrays import arrays, same
from tests.cases import each

untimed = settings(deadline=None)
X = {"name": "x", "datatype": "FP32", "shape": [2], "contents": {"fp32_contents": [1.0, 2.0]}}
RAW = {"name": "x", "datatype": "FP32", "shape": [2]}
EIGHT = bytes(8)


def encoded(request: InferRequest, typed: bool) -> bytes:
    return b"".join(encode_request(request, typed))


def request(**fields: Any) -> bytes:
    return pb.ModelInferRequest(**{"model_name": "m", "inputs": [X]} | fields).SerializeToString()


def assert_read_alike(data: bytes) -> bool:
    """Whether the message is plain. If so, it is read as any other."""
    plain = read_request(data)
    if plain is None:
        return False
    name, request_id, inputs, outputs, typed = plain
    decoded, is_typed = decode_request(data)
    assert (name, request_id, typed) == (decoded.model_name, decoded.id, is_typed)
    assert (decoded.model_version, decoded.parameters) == (None, None)
    assert outputs == [output.name for output in decoded.request_outputs]
    assert not any(output.parameters for output in decoded.request_outputs)
    assert [(name, datatype) for name, datatype, _ in inputs] == [(x.name, x.datatype) for x in decoded.inputs]
    for (_, datatype, array), tensor in zip(inputs, decoded.inputs, strict=True):
        assert array.dtype is FIXED[datatype]
        assert same(array, tensor.as_numpy())
        assert array.flags.writeable == tensor.as_numpy().flags.writeable
    return True


@untimed
@given(st.data(), st.booleans(), st.text(max_size=3), st.lists(st.text(max_size=2), max_size=2, unique=True))
def test_numbers_are_read_bit_for_bit(data: st.DataObject, typed: bool, request_id: str, outputs: list[str]) -> None:
    datatypes = data.draw(st.lists(st.sampled_from(list(FIXED)), min_size=1, max_size=3))
    inputs = []
    for index, datatype in enumerate(datatypes):
        array = data.draw(arrays(datatype))
        inputs.append(InferInput(f"x{index}", array.shape, datatype, array))
    wanted = [RequestedOutput(name) for name in outputs]
    message = encoded(InferRequest("m", inputs, request_id, request_outputs=wanted), typed)
    as_typed = typed and "FP16" not in datatypes  # which has no typed contents
    assert assert_read_alike(message) == (as_typed or "BOOL" not in datatypes)


@untimed
@given(st.data(), st.booleans(), st.text(max_size=3) | st.none())
def test_answers_are_written_as_all_others_are(data: st.DataObject, typed: bool, request_id: str | None) -> None:
    datatypes = data.draw(st.lists(st.sampled_from(list(FIXED)), min_size=1, max_size=3))
    outputs = [(f"y{index}", datatype, data.draw(arrays(datatype))) for index, datatype in enumerate(datatypes)]
    tensors = [InferOutput(name, array.shape, datatype, array) for name, datatype, array in outputs]
    ordinary = b"".join(encode_response(InferResponse(request_id, "m", tensors), typed))
    assert write_response("m", request_id, outputs, typed) == ordinary


@each("typed", [True, False])
@each(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4)[::2, ::-1],
        np.arange(6, dtype=np.int32).reshape(2, 3).T,
        np.zeros((200, 2), np.float64),
        np.float32(3.5) + np.zeros((), np.float32),
    ],
)
def test_arrays_are_written_row_by_row_whatever_their_layout(array: Array, typed: bool) -> None:
    array = np.asarray(array)
    datatype = {"f4": "FP32", "i4": "INT32", "f8": "FP64"}[array.dtype.str[1:]]
    tensor = InferOutput("y" * 200, array.shape, datatype, array)
    ordinary = b"".join(encode_response(InferResponse("7", "m" * 200, [tensor]), typed))
    assert write_response("m" * 200, "7", [("y" * 200, datatype, array)], typed) == ordinary


@each(
    "datatype, array",
    [
        ("BYTES", np.array([b"a"], dtype=object)),
        ("BF16", np.zeros(1, np.uint16)),
        ("FP32", np.zeros(1, np.float64)),
        ("FP32", np.zeros(1, np.dtype(np.float32).newbyteorder(">"))),
    ],
)
def test_an_output_that_is_not_plainly_numbers_is_not_written(datatype: str, array: Array) -> None:
    plain = ("y", "FP32", np.zeros(1, np.float32))
    assert write_response("m", None, [plain, ("z", datatype, array)], False) is None


PLAIN = {
    "typed": request(),
    "raw": request(inputs=[RAW], raw_input_contents=[EIGHT]),
    "an id": request(id="7"),
    "outputs": request(outputs=[{"name": "y"}, {"name": "z"}]),
    "several": request(inputs=[X, {**X, "name": "z"}]),
    "no elements": request(inputs=[{**X, "shape": [0, 3], "contents": {}}]),
    "no raw elements": request(inputs=[{**RAW, "shape": [2, 0]}], raw_input_contents=[b""]),
    "no dimension": request(inputs=[{**X, "shape": [], "contents": {"fp32_contents": [1.0]}}]),
    "an unknown field": request() + b"\xfa\x06\x03abc",
}
ONE = {"int64_param": 1}
OTHER = {
    "nothing": b"",
    "no message": b"\x0a\xff",
    "cut short": request(inputs=[RAW], raw_input_contents=[EIGHT])[:-1],
    "no inputs": request(inputs=[]),
    "a version": request(model_version="1"),
    "a parameter": request(parameters={"p": ONE}),
    "an input's parameter": request(inputs=[{**X, "parameters": {"p": ONE}}]),
    "a raw input's parameter": request(inputs=[{**RAW, "parameters": {"p": ONE}}], raw_input_contents=[EIGHT]),
    "an output's parameter": request(outputs=[{"name": "y", "parameters": {"classification": ONE}}]),
    "an input twice": request(inputs=[X, X]),
    "typed and raw": request(raw_input_contents=[EIGHT]),
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
}


@each("data", PLAIN.values())
def test_a_plain_request_is_read_at_once(data: bytes) -> None:
    assert assert_read_alike(data)


@each("data", OTHER.values())
def test_whatever_is_not_plain_is_left_alone(data: bytes) -> None:
    assert read_request(data) is None


def test_a_large_one_is_left_alone() -> None:
    def raw(size: int) -> bytes:
        return request(inputs=[{**RAW, "shape": [size // 4]}], raw_input_contents=[bytes(size)])

    assert read_request(raw(LARGE)) is None
    assert read_request(raw(LARGE // 2)) is not None


@untimed
@given(st.data())
def test_changed_bytes_are_left_alone_or_read_as_ever(data: st.DataObject) -> None:
    message = bytearray(data.draw(st.sampled_from([*PLAIN.values(), *OTHER.values()])))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(message)))
        message[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        assert_read_alike(bytes(message))
    except InvalidInput as error:
        assert "no current protobuf writes" in str(error)  # noqa: PT017 (a field that is not known is passed over)

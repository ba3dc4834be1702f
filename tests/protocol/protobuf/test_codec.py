"""Messages of gRPC to requests and responses. Plain ones are read and written at once, as the strict ones are."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.codec import Inputs, Outputs
from mpserve.protocol.datatypes import DATATYPES, FIXED, Array, datatype_of
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput
from mpserve.protocol.protobuf import fields, wire
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.protobuf.codec import ProtobufCodec, decode_request, decode_response, response_from_dict
from mpserve.protocol.protobuf.fields import encode_request, encode_response
from mpserve.protocol.protobuf.plain import write_response
from mpserve.protocol.tensors import NamedArray
from tests.arrays import arrays, outcome, same
from tests.cases import each

CODEC = ProtobufCodec()
RAW = {"name": "x", "datatype": "FP32", "shape": [2]}
X = {**RAW, "contents": {"fp32_contents": [1.0, 2.0]}}
EIGHT = np.array([1, 2], np.float32).tobytes()
"""The contents of RAW."""


def request(*inputs: dict[str, Any], **fields: Any) -> bytes:
    """A serialised request with one typed FP32 input, unless it is given others."""
    return pb.ModelInferRequest(**{"model_name": "m", "inputs": inputs or [X]} | fields).SerializeToString()


def raw(*inputs: dict[str, Any], contents: Any = (EIGHT,)) -> bytes:
    return request(*inputs or [RAW], raw_input_contents=contents)


def is_plain(data: bytes) -> bool:
    """Whether the message is plain. Whether or not, the codec makes of it what the strict reader does."""
    fast, strict = (outcome(CODEC.read, data, (), speaks_arrays) for speaks_arrays in (True, False))
    assert fast == strict
    return strict[0] is not InvalidInput and CODEC.read(data, (), True).message is None


ONE = {"int64_param": 1}
PLAIN = [
    request(), raw(), request(id="7"), request(model_version="1"), request(outputs=[{"name": "y"}, {"name": "z"}]),
    request(X, {**X, "name": "z"}), request({**X, "shape": [0, 3], "contents": {}}),
    raw({**RAW, "shape": [2, 0]}, contents=[b""]), request({**X, "shape": [], "contents": {"fp32_contents": [1.0]}}),
    request() + b"\xfa\x06\x03abc",
]  # fmt: skip
STRICT = [
    request(parameters={"p": ONE}), request({**X, "parameters": {"p": ONE}}), raw({**RAW, "parameters": {"p": ONE}}),
    request(outputs=[{"name": "y", "parameters": {"classification": ONE}}]),
    request(X, {**RAW, "name": "z", "shape": [0]}), request({**X, "datatype": "fp32"}),
    request({**X, "datatype": "BYTES", "contents": {"bytes_contents": [b"a", b"b"]}}),
    raw({**RAW, "datatype": "BF16"}, contents=[EIGHT[:4]]),
]  # fmt: skip
"""Messages that the strict reader alone reads."""
REFUSED = {
    b"": "has no inputs", b"\x0a\xff": "cut short", raw()[:-1]: "cut short",
    b"\x0a\x01\xff": "expected a inference.ModelInferRequest",
    request(X, X): "input 'x' is there twice", request(outputs=[{"name": "y"}, {"name": "y"}]): "output 'y' is there twice",
    raw(X): "typed and raw contents", raw(contents=[EIGHT] * 2): "raw contents of 2 inputs",
    raw(RAW, {**RAW, "name": "y"}): "of 1 inputs", raw(contents=[EIGHT[:-1]]): "input 'x': expected 8 bytes .* got 7",
    raw({**RAW, "shape": [3]}): "expected 12 bytes", request(RAW): r"input 'x': expected 2 elements for shape \[2\], got 0",
    request({**X, "shape": [3]}): r"input 'x': expected 3 elements for shape \[3\], got 2",
    request({**X, "shape": [-1]}): "input 'x': shape holds -1", request({**X, "shape": [-1, -2]}): "shape holds -1",
    raw({**RAW, "shape": [-2]}): "input 'x': shape holds -2", raw({**RAW, "shape": [-1]}): "shape holds -1",
    request({**X, "shape": [2**62, 2**62]}): "input 'x': shape .* too large",
    raw({**RAW, "shape": [2**62, 4, 0]}, contents=[b""]): "too large",
    raw({**RAW, "shape": [3, (2**64 + 2) // 3]}): "too large",  # modulo 2**64 it is not
    request({**X, "shape": [1] * 33}): "input 'x': shape has 33 dimensions",
    request({**X, "datatype": "FP31"}): "input 'x': unknown datatype 'FP31'",
    request({**X, "datatype": "FP64"}): "input 'x': got fp32_contents, expected fp64",
    request({**X, "contents": {"int_contents": [1, 2]}}): "got int_contents, expected fp32",
    request({**X, "datatype": "FP16"}): "input 'x': got fp32_contents, expected raw",
    request({**X, "datatype": "INT8", "contents": {"int_contents": [1, 300]}}): "out of range",
    raw({**RAW, "datatype": "BOOL"}, contents=[b"\1\2"]): "expected 0 or 1",
    request(parameters={"p": {}}): "parameter 'p' has no value",
    request({**X, "parameters": {"p": {}}}): "input 'x': parameter 'p'",
}  # fmt: skip
"""What the protocol does not allow, and what is said of it."""


@each("data", PLAIN)
def test_a_plain_request_is_read_at_once(data: bytes) -> None:
    assert is_plain(data)


@each("data", STRICT)
def test_what_is_not_plain_is_left_to_the_strict_reader(data: bytes) -> None:
    assert not is_plain(data)
    decode_request(data)


@each("data, says", REFUSED.items())
def test_what_the_protocol_does_not_allow_is_the_clients_fault(data: bytes, says: str) -> None:
    assert not is_plain(data)
    with pytest.raises(InvalidInput, match=says):
        decode_request(data)


MESSAGES = st.sampled_from([*PLAIN, *STRICT, *REFUSED])


@st.composite
def changed(draw: st.DrawFn, begin: bytes = b"") -> bytes:
    """A message of which a few bytes are others."""
    message = bytearray(begin + draw(MESSAGES))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(message)))
        message[start : start + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(message)


@given(changed() | st.binary())
def test_any_bytes_are_read_or_refused_as_by_the_strict_reader(message: bytes) -> None:
    strict = outcome(CODEC.read, message, (), False)
    if "no current protobuf writes" not in str(strict[1]):  # a field that is not known is passed over
        is_plain(message)
    with contextlib.suppress(InferenceError):
        decode_response(message)


ELEMENTS = {
    "bool_contents": st.booleans(), "int_contents": st.integers(-(2**31), 2**31 - 1),
    "uint64_contents": st.integers(0, 2**64 - 1), "fp32_contents": st.floats(width=32),
    "bytes_contents": st.binary(max_size=4),
}  # fmt: skip
CONTENTS = st.fixed_dictionaries({}, optional={name: st.lists(one, max_size=4) for name, one in ELEMENTS.items()})
SHAPES = st.lists(st.integers(-2, 5) | st.sampled_from([2**31, 2**62]), max_size=5)


@given(st.sampled_from([*DATATYPES, "", "fp32", "FP8"]), SHAPES, CONTENTS, st.lists(st.binary(max_size=20), max_size=2))
def test_whatever_a_tensor_claims_to_be_is_read_or_refused(
    datatype: str, shape: list[int], contents: dict[str, Any], raw_contents: list[bytes]
) -> None:
    is_plain(raw({"name": "x", "datatype": datatype, "shape": shape, "contents": contents}, contents=raw_contents))


@given(st.data(), st.booleans(), st.text(max_size=3), st.lists(st.text(max_size=2), max_size=2, unique=True))
def test_tensors_are_read_bit_for_bit(data: st.DataObject, typed: bool, request_id: str, outputs: list[str]) -> None:
    datatypes = data.draw(st.lists(st.sampled_from(list(FIXED)), min_size=1, max_size=3))
    inputs = []
    for index, datatype in enumerate(datatypes):
        array = data.draw(arrays(datatype))
        inputs.append(InferInput(f"x{index}", array.shape, datatype, array))
    wanted = [RequestedOutput(name) for name in outputs]
    message = b"".join(encode_request(InferRequest("m", inputs, request_id, request_outputs=wanted), typed))
    for (_, _, got), sent in zip(CODEC.read(message, (), True).arrays(()), inputs, strict=True):
        assert same(got, sent.as_numpy())
    as_typed = typed and "FP16" not in datatypes  # which has no typed contents
    assert is_plain(message) == (as_typed or "BOOL" not in datatypes)


def agree_on(outputs: list[NamedArray], typed: bool, request_id: str | None = "7", name: str = "m") -> None:
    inputs = Inputs([], request_id, state=typed)
    answer = Outputs(name, "1", None, outputs)
    assert CODEC.write(inputs, answer).body == b"".join(encode_response(answer.response(inputs), typed))


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
    rest = request(RAW, raw_input_contents=[bytes(fields.LARGE if is_large else 8)], model_name="")
    for data in (head + rest, rest + head, head[:3] + rest + head[3:] if head.startswith(NAME) else head + rest):
        assert fields.addressee(data) == (model, version)
        message = pb.ModelInferRequest.FromString(data)
        assert (message.model_name, message.model_version or None) == (model, version)


@given(changed(VERSION))
def test_whoever_is_named_the_strict_reader_names_the_same(message: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        arguments, _ = fields.read_request(message)
        assert fields.addressee(message) == (arguments["model_name"], arguments["model_version"])


def sent(parts: Any) -> pb.ModelInferResponse:
    return pb.ModelInferResponse.FromString(b"".join(parts))


def test_a_raw_input_is_a_view_on_the_message() -> None:
    data = raw()
    decoded, typed = decode_request(data)
    assert not typed
    assert np.shares_memory(decoded.inputs[0].as_numpy(), np.frombuffer(data, np.uint8))


def test_a_datatype_may_be_in_lower_case_and_an_input_without_contents_is_not_taken_as_typed() -> None:
    """Typed answers are for those who show that they know them: tritonclient reads none."""
    decoded, typed = decode_request(request({**RAW, "datatype": "fp32", "shape": [0]}))
    assert (decoded.inputs[0].datatype, typed) == ("FP32", False)


THERE = {"shared_memory_region": {"string_param": "r"}, "shared_memory_byte_size": {"int64_param": 8}}
PLACED = {"shared_memory_region": "r", "shared_memory_byte_size": 8}


@each("inputs, contents, typed", [
    ([{**RAW, "parameters": THERE}], [], False), ([{**RAW, "parameters": THERE}, {**RAW, "name": "y"}], [EIGHT], False),
    ([{**X, "name": "y"}, {**RAW, "parameters": THERE}], [], True),
])  # fmt: skip
def test_an_input_in_shared_memory_has_no_contents(inputs: Any, contents: list[bytes], typed: bool) -> None:
    """Of raw ones there are as many as inputs elsewhere, as tritonclient sends them."""
    decoded, is_typed = decode_request(request(*inputs, raw_input_contents=contents))
    assert is_typed == typed
    by_name = {given.name: given for given in decoded.inputs}
    there = by_name.pop("x")
    assert (there.in_shared_memory, there.parameters) == (True, PLACED)
    assert [given.as_numpy().tolist() for given in by_name.values()] == [[1, 2]] * (len(inputs) - 1)
    again, _ = decode_request(b"".join(encode_request(decoded)))
    assert (again.inputs, again.inputs[0].in_shared_memory) == (decoded.inputs, decoded.inputs[0].in_shared_memory)


def test_contents_beside_shared_memory_are_refused() -> None:
    with pytest.raises(InvalidInput, match="input 'x': got both shared_memory_region and data, expected one of them"):
        decode_request(request({**X, "parameters": THERE}))
    with pytest.raises(InvalidInput, match="got raw contents of 1 inputs, expected those of 0"):
        decode_request(raw({**RAW, "parameters": THERE}))


@each("typed", [True, False])
def test_an_output_in_shared_memory_keeps_its_place_among_the_raw_ones(typed: bool) -> None:
    """tritonclient counts them."""
    outputs = [InferOutput("x", [2], "FP32", None, PLACED), InferOutput("y", [2], "FP32", [1, 2])]
    parts = encode_response(InferResponse(None, "m", outputs), typed)
    assert sent(parts).raw_output_contents == ([] if typed else [b"", EIGHT])
    assert sent(parts).outputs[0].parameters["shared_memory_region"].string_param == "r"
    assert decode_response(b"".join(parts)).outputs == outputs


def test_a_request_that_is_sent_on_is_the_one_received() -> None:
    given = [
        InferInput("x", [2, 1], "BF16", [[1.5], [2.5]]),
        InferInput("y", [2], "BYTES", [b"a", "ü"], {"p": 1}),
        InferInput("z", [0, 3], "INT8", []),
    ]
    wanted = [RequestedOutput("o", {"c": 2})]
    first = InferRequest("m", given, "7", parameters={"q": 0.5}, request_outputs=wanted, model_version="3")
    data = b"".join(encode_request(first))
    second, typed = decode_request(data)
    assert not typed
    second.from_grpc = first.from_grpc
    assert second == first


def test_a_response_is_raw_or_typed_as_it_is_asked_for() -> None:
    response = InferResponse(
        "7", "m", [InferOutput("y", [2], "FP32", [1.0, 2.0], {"p": 1})], "3", parameters={"q": "r"}
    )
    head = {"model_name": "m", "model_version": "3", "id": "7", "parameters": {"q": {"string_param": "r"}}}
    output = {**RAW, "name": "y", "parameters": {"p": ONE}}
    raw = pb.ModelInferResponse(**head, outputs=[output], raw_output_contents=[EIGHT])
    typed = pb.ModelInferResponse(**head, outputs=[output | {"contents": {"fp32_contents": [1, 2]}}])
    assert sent(encode_response(response, typed=False)) == raw
    assert sent(encode_response(response, typed=True)) == typed


def test_a_raw_output_is_sent_from_its_own_buffer() -> None:
    array = np.zeros(1000, np.float32)
    parts = encode_response(InferResponse(None, "m", [InferOutput("y", [1000], "FP32", array)]), typed=False)
    assert any(np.shares_memory(array, np.frombuffer(part, np.uint8)) for part in parts)


@each("typed", [True, False])
def test_a_response_is_read_back(typed: bool) -> None:
    outputs = [InferOutput("y", [2, 1], "INT8", [1, -1], {"p": True}), InferOutput("z", [1], "BYTES", [b"\xff"])]
    response = InferResponse("7", "m", outputs, "3", parameters={"q": 2})
    decoded = decode_response(b"".join(encode_response(response, typed)))
    decoded.from_grpc = False
    assert decoded == response


@each("data, says", [
    (b"\x0a\xff", "the response is not one of V2: .*cut short"),
    (pb.ModelInferResponse(outputs=[RAW]).SerializeToString(), "output 'x': expected 2 elements"),
    (
        pb.ModelInferResponse(outputs=[RAW], raw_output_contents=[b""]).SerializeToString(),
        "output 'x': expected 8 bytes",
    ),
])  # fmt: skip
def test_a_response_that_cannot_be_read_is_not_the_clients_fault(data: bytes, says: str) -> None:
    with pytest.raises(InferenceError, match=says):
        decode_response(data)


@each("output", [
    {"name": "y", "shape": [2], "datatype": "FP32", "data": [1, 2]},
    {"name": "y", "shape": [2], "datatype": "FP32", "contents": {"fp32_contents": [1, 2]}},
])  # fmt: skip
def test_a_dict_of_the_sdk_is_a_response(output: dict[str, Any]) -> None:
    response = response_from_dict({"id": "7", "model_name": "m", "outputs": [output]})
    assert response == InferResponse("7", "m", [InferOutput("y", [2], "FP32", [1.0, 2.0])])

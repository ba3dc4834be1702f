"""Any bytes are a message of ours or refused, and nothing but the refusal comes out."""

import contextlib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.datatypes import DATATYPES
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.protobuf.codec import decode_request, decode_response

untimed = settings(deadline=None)


def decode_any(data: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        for tensor in decode_request(data)[0].inputs:
            assert tensor.as_numpy().shape == tuple(tensor.shape)
    with contextlib.suppress(InferenceError):
        decode_response(data)


def valid_messages() -> list[bytes]:
    """A request with typed contents, parameters and an output asked for, and one with raw contents."""
    typed = pb.ModelInferRequest(model_name="m", id="1")
    typed.parameters["p"].int64_param = 1
    typed.inputs.add(name="x", datatype="INT8", shape=[2]).contents.int_contents.extend([1, -1])
    typed.inputs.add(name="y", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(b"ab")
    typed.outputs.add(name="z").parameters["classification"].int64_param = 2
    raw = pb.ModelInferRequest(
        model_name="m", raw_input_contents=[b"\x00\x3c\x00\x40", b"\x01\x00\x00\x00a\x00\x00\x00\x00"]
    )
    raw.inputs.add(name="n", datatype="FP16", shape=[2])
    raw.inputs.add(name="t", datatype="BYTES", shape=[2])
    return [typed.SerializeToString(), raw.SerializeToString()]


VALID = valid_messages()


@untimed
@given(st.binary())
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    decode_any(data)


@untimed
@given(st.data())
def test_a_valid_message_with_changed_bytes_is_read_or_refused(data: st.DataObject) -> None:
    message = bytearray(data.draw(st.sampled_from(VALID)))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(message)))
        message[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    decode_any(bytes(message))


CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "bool_contents": st.lists(st.booleans(), max_size=4),
        "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
        "uint64_contents": st.lists(st.integers(0, 2**64 - 1), max_size=4),
        "fp32_contents": st.lists(st.floats(width=32), max_size=4),
        "bytes_contents": st.lists(st.binary(max_size=4), max_size=4),
    },
)
SHAPES = st.lists(st.integers(-2, 5) | st.sampled_from([2**31, 2**62]), max_size=5)


@untimed
@given(st.sampled_from([*DATATYPES, "", "fp32", "FP8"]), SHAPES, CONTENTS, st.lists(st.binary(max_size=20), max_size=2))
def test_whatever_a_tensor_claims_to_be_is_read_or_refused(
    datatype: str, shape: list[int], contents: dict[str, Any], raw: list[bytes]
) -> None:
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=raw)
    request.inputs.add(name="x", datatype=datatype, shape=shape).contents.CopyFrom(pb.InferTensorContents(**contents))
    decode_any(request.SerializeToString())

import pytest

from mpserve.errors import InvalidInput
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.protobuf import wire
from mpserve.protocol.protobuf.fields import RAW_INPUT
from tests.cases import each


def message(*raw: bytes) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="m", id="7", raw_input_contents=raw)
    request.inputs.add(name="x", shape=[1, 300])
    request.parameters["p"].double_param = 1.5
    return request


@each("raw", [[], [b""], [b"abc"], [b"a", b"", b"b" * 1000], [bytes(70000)]])
def test_raw_contents_are_taken_out_and_the_rest_is_the_message_without_them(raw: list[bytes]) -> None:
    rest, taken = wire.split(message(*raw).SerializeToString(), RAW_INPUT)
    assert [bytes(part) for part in taken] == raw
    assert pb.ModelInferRequest.FromString(rest) == message()


def test_what_is_taken_is_a_view_on_the_message_and_a_message_without_raw_contents_is_not_copied() -> None:
    with_raw, without = message(b"abc").SerializeToString(), message().SerializeToString()
    assert wire.split(with_raw, RAW_INPUT)[1][0].obj is with_raw
    assert wire.split(without, RAW_INPUT)[0] is without


def test_fields_of_every_current_wire_type_are_passed_over() -> None:
    unknown = b"\xf8\x06\x96\x01" + b"\xf9\x06" + bytes(8) + b"\xfd\x06" + bytes(4)
    rest, taken = wire.split(unknown + message(b"abc").SerializeToString(), RAW_INPUT)
    assert [bytes(view) for view in taken] == [b"abc"]
    assert pb.ModelInferRequest.FromString(rest).model_name == "m"


def test_what_prefix_begins_is_read_as_a_field() -> None:
    for size in (0, 1, 127, 128, 70000):
        data = message().SerializeToString() + wire.prefix(RAW_INPUT, size) + bytes(size)
        assert pb.ModelInferRequest.FromString(data) == message(bytes(size))


@each("data, says", [
    (message(b"abc").SerializeToString()[:-1], "cut short"), (b"\x3a", "cut short"), (b"\x3a\x80", "cut short"),
    (b"\x3a" + b"\xff" * 10, "more than 64 bits"), (b"\xfd\x06\x00", "cut short"), (b"\x3b", "wire type 3"),
    (b"\x08\x01" * (wire.MAX_FIELDS + 1), "more than 65536 fields"),
])  # fmt: skip
def test_what_is_no_message_is_the_clients_fault(data: bytes, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        wire.split(data, RAW_INPUT)

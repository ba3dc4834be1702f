import numpy as np
import pytest

from mpserve.errors import InvalidInput
from mpserve.protocol.binary import decode_raw, decode_tensor, encode_tensor, split, split_elements
from tests.cases import each

NUMBERS = [
    ("BOOL", [True, False], b"\1\0"), ("UINT8", [1, 255], b"\1\xff"), ("INT8", [1, -1], b"\1\xff"),
    ("UINT16", [1, 0x1234], b"\1\0\x34\x12"), ("INT16", [1, -2], b"\1\0\xfe\xff"),
    ("UINT32", [1, 2**31], b"\1\0\0\0\0\0\0\x80"), ("INT32", [1, -1], b"\1\0\0\0\xff\xff\xff\xff"),
    ("UINT64", [1, 2**63], b"\1" + b"\0" * 14 + b"\x80"), ("INT64", [1, -1], b"\1" + b"\0" * 7 + b"\xff" * 8),
    ("FP16", [1.5, -2], b"\x00\x3e\x00\xc0"), ("BF16", [1.5, -2], b"\xc0\x3f\x00\xc0"),
    ("FP32", [1.5, -2], b"\0\0\xc0\x3f\0\0\0\xc0"), ("FP64", [1.5, -2], b"\0\0\0\0\0\0\xf8\x3f\0\0\0\0\0\0\0\xc0"),
]  # fmt: skip
BYTES = b"\1\0\0\0a\0\0\0\0\2\0\0\0\xc3\xa9"


@each("datatype, values, encoded", NUMBERS)
def test_numbers_are_little_endian_and_views_in_both_directions(datatype, values, encoded):
    array = decode_tensor(encoded, datatype, [2, 1], "input 'x'")
    assert array.astype(object).tolist() == [[value] for value in values]
    buffer = encode_tensor(array, datatype)
    assert bytes(buffer) == encoded
    assert np.shares_memory(np.frombuffer(encoded, np.uint8), np.frombuffer(buffer, np.uint8))


def test_elements_of_bytes_have_their_length_before_them():
    array = decode_tensor(memoryview(BYTES), "BYTES", [3, 1], "input 'x'")
    assert array.tolist() == [[b"a"], [b""], ["é".encode()]]
    assert encode_tensor(array, "BYTES") == BYTES
    assert encode_tensor(np.array(["a", "", "é"]), "BYTES") == BYTES
    assert split_elements(BYTES) == [b"a", b"", "é".encode()]


def test_a_decoded_tensor_of_bytes_cannot_change_the_body():
    with pytest.raises(ValueError, match="read-only"):
        decode_tensor(b"\1\2", "UINT8", [2], "input 'x'")[0] = 5


@each("buffer, datatype, shape, message", [
    (b"123", "FP32", [1], r"^input 'x': expected 4 bytes for FP32 of shape \[1\], got 3$"),
    (b"12345678", "FP32", [1], "expected 4 bytes .* got 8"),
    (b"", "FP32", [], r"expected 4 bytes for FP32 of shape \[\], got 0"), (b"1", "UINT8", [0, 5], "expected 0 bytes"),
    (b"", "INT64", [2**40], "expected 8796093022208 bytes"),
    (b"\0\2", "BOOL", [2], "element 1 is the byte 2, expected 0 or 1"), (b"", "FLOAT", [0], "unknown datatype 'FLOAT'"),
    (b"", "FP32", [-1], "shape holds -1"),
    (BYTES, "BYTES", [2], r"expected 2 elements for BYTES of shape \[2\], got more in 15 bytes"),
    (BYTES, "BYTES", [4], "expected 4 elements .* got 3 in 15 bytes"),
    (b"\0" * 4000, "BYTES", [0], "expected 0 elements .* got more"),
    (b"", "BYTES", [2**40], "expected 1099511627776 elements .* got 0"),
    (BYTES + b"\0", "BYTES", [4], "element 3 reaches beyond the 16 bytes"),
    (b"\xff\xff\xff\xff", "BYTES", [1], "element 0 reaches beyond the 4 bytes"),
    (b"\1\0\0\0", "BYTES", [1], "element 0 reaches beyond"), (b"\1\0\0", "BYTES", [1], "element 0 reaches beyond"),
])  # fmt: skip
def test_bytes_that_are_not_the_tensor_are_refused_with_what_was_expected(buffer, datatype, shape, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        decode_tensor(buffer, datatype, shape, "input 'x'")
    assert str(caught.value).startswith("input 'x': ")


@each("length, message", [
    *((bad, "^Inference-Header-Content-Length is '.*', expected decimal digits$")
      for bad in ("", "-1", "+2", " 2", "2.0", "1e1", "0x2", "two", "²", "٢", "1_0", "2" * 50 + "x" * 1000)),
    ("5", "is 5, expected at most the 4 bytes of the uncompressed body"),
    ("9" * 10_000, "is 9{60}, expected at most the 4 bytes"),
])  # fmt: skip
def test_a_header_that_is_not_the_length_of_a_part_is_refused(length, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        split(b"{}ab", length)
    assert len(str(caught.value)) < 200


@each("body, datatype, declared, shape", [
    (b"abcd", "UINT8", [2, 2], [2, 2]), (b"abcd", "UINT8", [-1, 2], [2, 2]), (b"abcd", "UINT16", [1, -1], [1, 2]),
    (b"abcd", "FP32", [], []), (b"", "FP32", [-1, 2], [0, 2]), (b"abcd", "BYTES", [1], [1]),
    (b"abcd", "BYTES", [-1, 1], [1, 1]), (b"", "BYTES", [-1], [1]),
])  # fmt: skip
def test_a_body_without_json_is_the_only_input(body, datatype, declared, shape):
    name, given, array = decode_raw(body, [("x", datatype, declared)])
    assert (name, given, list(array.shape)) == ("x", datatype, shape)
    assert (array.tobytes() if datatype != "BYTES" else array.item()) == body


@each("body, declared, message", [
    (b"abcd", [], "needs a model with 1 input, it has 0"),
    (b"abcd", [("x", "FP32", [1]), ("y", "FP32", [1])], "needs a model with 1 input, it has 2"),
    (b"abcd", [("x", "UINT8", [-1, -1])], r"input 'x': .* cannot tell the sizes -1 in \[-1,-1\] apart"),
    (b"abcde", [("x", "UINT8", [-1, 2])], r"multiple of 2 bytes for UINT8 of shape \[-1,2\], got 5"),
    (b"", [("x", "UINT8", [-1, 0])], "multiple of 0 bytes"),
    (b"abcd", [("x", "UINT8", [5])], r"input 'x': expected 5 bytes for UINT8 of shape \[5\], got 4"),
    (b"abcd", [("x", "BYTES", [2])], r"one element of BYTES, expected \[2\]"),
    (b"abcd", [("x", "BYTES", [-1, 3])], "one element of BYTES"),
    (b"abcd", [("x", "FLOAT", [-1])], "unknown datatype 'FLOAT'"),
])  # fmt: skip
def test_a_body_without_json_that_cannot_be_understood_is_refused(body, declared, message):
    with pytest.raises(InvalidInput, match=message):
        decode_raw(body, declared)

import sys
from datetime import date, datetime, timezone

import numpy as np
import pytest

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import DATATYPES, cast, datatype_of, decode_text, json_values, narrow, numpy_dtype
from tests.cases import each

TABLE = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64, "INT8": np.int8,
    "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
    "BYTES": np.object_,
}  # fmt: skip
INTEGERS = [datatype for datatype in TABLE if "INT" in datatype]


def test_the_table_is_that_of_the_protocol():
    assert set(DATATYPES) == {*TABLE, "BF16"}


@each("datatype, scalar", TABLE.items())
def test_every_datatype_has_one_numpy_dtype_and_back(datatype, scalar):
    assert numpy_dtype(datatype) == np.dtype(scalar)
    assert datatype_of(np.dtype(scalar)) == datatype


@each("dtype, datatype", [(">f4", "FP32"), (">i8", "INT64"), ("S5", "BYTES"), ("U5", "BYTES"), ("M8[s]", "BYTES")])
def test_byte_order_text_and_dates_have_a_datatype(dtype, datatype):
    assert datatype_of(np.dtype(dtype)) == datatype


@each("dtype", ["c8", "m8[s]", np.dtype([("a", "i4")])])
def test_a_dtype_without_a_datatype_is_refused_by_name(dtype):
    with pytest.raises(InvalidInput, match="has no V2 datatype, expected one of BOOL"):
        datatype_of(np.dtype(dtype))


def test_an_unknown_datatype_is_refused_with_the_known_ones():
    with pytest.raises(InvalidInput, match=r"unknown datatype 'FLOAT', expected one of BOOL .* FP32 .*BF16"):
        numpy_dtype("FLOAT")


def test_bf16_without_its_package_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(InvalidInput, match="BF16 needs the Python package ml_dtypes"):
        numpy_dtype("BF16")


def test_bf16_is_a_float_of_two_bytes_that_json_carries_as_fp32():
    pytest.importorskip("ml_dtypes")
    dtype = numpy_dtype("BF16")
    assert (dtype.itemsize, datatype_of(dtype)) == (2, "BF16")
    array = cast(np.array([1.5, 2, 3.1]), "BF16")
    assert array.dtype == dtype
    assert json_values(array).tolist() == [1.5, 2.0, 3.09375]
    assert cast(array, "FP64").tolist() == [1.5, 2.0, 3.09375]
    with pytest.raises(ValueError, match="NaN or infinity"):
        json_values(cast(np.array([1e39]), "BF16"))


@each("datatype", TABLE)
def test_cast_to_the_datatype_it_has_copies_nothing(datatype):
    array = np.array([b"1"], dtype=object) if datatype == "BYTES" else np.ones(1, dtype=TABLE[datatype])
    assert cast(array, datatype) is array


@each("datatype", TABLE)
def test_an_empty_array_is_any_datatype(datatype):
    array = cast(np.zeros((2, 0)), datatype)
    assert (array.dtype, array.shape) == (np.dtype(TABLE[datatype]), (2, 0))


@each("array, datatype, wanted", [
    (np.array([1, 255]), "UINT8", [1, 255]), (np.array([1, 2], dtype=">i2"), "INT16", [1, 2]),
    (np.array([True, False]), "INT32", [1, 0]), (np.array([1, 2]), "FP32", [1.0, 2.0]),
    (np.array([0.5]), "FP16", [0.5]), (np.array([1e39]), "FP32", [float("inf")]),
    (np.array([0.5], dtype=">f8"), "FP64", [0.5]), (np.array(["a", "é"]), "BYTES", [b"a", b"\xc3\xa9"]),
    (np.array([b"a", "é"], dtype=object), "BYTES", [b"a", b"\xc3\xa9"]), (np.array([b"a\xff"]), "BYTES", [b"a\xff"]),
    (np.array(["2020-01-02"], dtype="M8[D]"), "BYTES", [b"2020-01-02"]),
    (np.array([date(2020, 1, 2), b"a", "é"], dtype=object), "BYTES", [b"2020-01-02", b"a", b"\xc3\xa9"]),
    (np.array([datetime(2020, 1, 2, tzinfo=timezone.utc)]), "BYTES", [b"2020-01-02T00:00:00+00:00"]),
])  # fmt: skip
def test_cast_keeps_the_values(array, datatype, wanted):
    result = cast(array, datatype)
    assert result.dtype == numpy_dtype(datatype)
    assert result.tolist() == wanted


@each("array, datatype, message", [
    (np.array([1, 300]), "UINT8", r"element 1 of data is 300, out of range for UINT8 \(0 to 255\)"),
    (np.array([-1]), "UINT64", "element 0 of data is -1, out of range for UINT64"),
    (np.array([2**63], dtype=np.uint64), "INT64", "out of range for INT64"),
    (np.array([1.0]), "INT32", "float64 cannot be taken as INT32"),
    (np.array([1]), "BOOL", "int64 cannot be taken as BOOL"), (np.array(["1"]), "FP32", "cannot be taken as FP32"),
    (np.array([1j]), "FP32", "complex128 cannot be taken as FP32"),
    (np.array([1]), "BYTES", "int64 cannot be taken as BYTES"),
    (np.array([b"a", None, 1], dtype=object), "BYTES", "type NoneType, int cannot be taken as BYTES"),
])  # fmt: skip
def test_cast_refuses_what_would_change_a_value(array, datatype, message):
    with pytest.raises(InvalidInput, match=message):
        cast(array, datatype)


@each("datatype", INTEGERS)
def test_narrow_takes_the_limits_and_refuses_what_lies_beyond(datatype):
    limits = np.iinfo(TABLE[datatype])
    wide = np.int64 if limits.max < 2**63 else np.uint64
    assert narrow(np.array([limits.min, limits.max], dtype=wide), datatype).tolist() == [limits.min, limits.max]
    for beyond in (int(limits.min) - 1, int(limits.max) + 1):
        if -(2**63) <= beyond < 2**63:
            with pytest.raises(InvalidInput, match=f"element 1 of data is {beyond}, out of range for {datatype}"):
                narrow(np.array([0, beyond]), datatype)


def test_decode_text_keeps_the_shape():
    text = decode_text(np.array([[b"a"], [b"\xc3\xa9"]], dtype=object))
    assert text.tolist() == [["a"], ["é"]]


def test_json_values_widens_fp16_without_changing_a_value():
    array = np.array([0.1, 65504, -0.0], dtype=np.float16)
    values = json_values(array)
    assert values.dtype == np.float32
    assert values.astype(np.float16).tobytes() == array.tobytes()


@each("array, message", [
    (np.array([np.nan]), "NaN or infinity, which JSON cannot carry"),
    (np.array([np.inf], dtype=np.float16), "NaN or infinity"),
    (np.array([-np.inf], dtype=np.float32), "NaN or infinity"),
    (np.array([b"\xff"], dtype=object), "bytes that are not UTF-8, which JSON cannot carry"),
])  # fmt: skip
def test_json_values_refuses_what_json_cannot_carry(array, message):
    with pytest.raises(ValueError, match=message):
        json_values(array)

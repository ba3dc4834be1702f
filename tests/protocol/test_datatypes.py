import sys
from datetime import date, datetime, timezone

import numpy as np
import pytest

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import cast, datatype_of, numpy_dtype
from tests.cases import each

TABLE = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64, "INT8": np.int8,
    "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
    "BYTES": np.object_,
}  # fmt: skip


@each("dtype, datatype", [(">f4", "FP32"), (">i8", "INT64"), ("S5", "BYTES"), ("U5", "BYTES"), ("M8[s]", "BYTES")])
def test_byte_order_text_and_dates_have_a_datatype(dtype, datatype):
    assert datatype_of(np.dtype(dtype)) == datatype


@each("dtype", ["c8", "m8[s]", np.dtype([("a", "i4")])])
def test_a_dtype_without_a_datatype_is_refused_by_name(dtype):
    with pytest.raises(InvalidInput, match="has no V2 datatype, expected one of BOOL"):
        datatype_of(np.dtype(dtype))


def test_bf16_without_its_package_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(InvalidInput, match="BF16 needs the Python package ml_dtypes"):
        numpy_dtype("BF16")


@each("datatype, dtype", TABLE.items())
def test_an_empty_array_is_any_datatype_and_cast_to_the_datatype_it_has_copies_nothing(datatype, dtype):
    array = cast(np.zeros((2, 0)), datatype)
    assert (array.dtype, array.shape) == (np.dtype(dtype), (2, 0))
    array = np.array([b"1"]).astype(dtype)
    assert cast(array, datatype) is array


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

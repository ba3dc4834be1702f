"""Outputs as classes: which values are the highest, how they are written, what shape they have."""

from typing import Any

import numpy as np
import pytest

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import numpy_dtype
from mpserve.protocol.messages import InferOutput
from mpserve.serving.extensions.classification import classified
from tests.cases import each


def output(datatype: str, values: Any) -> InferOutput:
    array = np.array(values, dtype=numpy_dtype(datatype))
    return InferOutput("y", array.shape, datatype, array)


@each("datatype, values, count, shape, classes", [
    # The extension's own examples.
    ("INT32", [1, 5, 10, 4], 2, [2], ["10:2", "5:1"]),
    ("FP32", [1.1, 3.3, 0.5, 2.4], 2, [2], ["3.3:1", "2.4:3"]),
    ("FP32", [[1, 2], [4, 3]], 1, [2, 1], [["2.0:1"], ["4.0:0"]]),
    ("INT8", [[-1, -2]], 9, [1, 2], [["-1:0", "-2:1"]]),
    ("INT64", [[[1, 2], [3, 4]], [[8, 7], [6, 5]]], 2, [2, 2], [["4:3", "3:2"], ["8:0", "7:1"]]),
    ("UINT64", [2**64 - 1, 0, 2**63], 2, [2], ["18446744073709551615:0", "9223372036854775808:2"]),
    ("UINT8", [7, 9, 7, 9], 4, [4], ["9:1", "9:3", "7:0", "7:2"]),
    ("FP64", [np.nan, -np.inf, 0.1, np.inf, 1e-9], 5, [5], ["inf:3", "0.1:2", "1e-09:4", "nan:0", "-inf:1"]),
    ("FP16", [0.5, 2], 1, [1], ["2.0:1"]),
    ("BF16", [[3, 2, 1]], 2, [1, 2], [["3.0:0", "2.0:1"]]),
    ("FP32", 2.5, 3, [1], ["2.5:0"]),
    ("FP32", [], 3, [0], []),
    ("FP32", np.empty((0, 4)), 3, [0, 3], []),
    ("FP32", np.empty((2, 0)), 3, [2, 0], [[], []]),
])  # fmt: skip
def test_the_highest_values_of_a_row_are_written_with_their_indexes(
    datatype: str, values: Any, count: int, shape: list[int], classes: list[Any]
) -> None:
    given = output(datatype, values)
    answer = classified(given, count)
    assert (answer.name, answer.datatype, answer.shape) == ("y", "BYTES", shape)
    assert answer.as_string() == classes
    np.testing.assert_array_equal(given.as_numpy(), np.array(values, dtype=numpy_dtype(datatype)))


@each("datatype, values", [("BOOL", [True, False]), ("BYTES", [b"a", b"b"])])
def test_what_has_no_highest_value_is_refused(datatype: str, values: Any) -> None:
    with pytest.raises(InvalidInput, match=f"output 'y' is {datatype}, which cannot be classified; expected an output"):
        classified(output(datatype, values), 1)

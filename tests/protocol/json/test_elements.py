import numpy as np
import pytest

from mpserve.errors import InvalidInput
from mpserve.protocol.json.elements import check_shape, decode_data, show_shape
from tests.cases import each


@each("shape", [[], [0], [1, 2, 3], [2**40], (2**40, 0), [1] * 32])
def test_a_shape_that_a_tensor_can_have_is_taken(shape):
    check_shape(shape)


@each("shape", [[-1], [1.0], [True], ["1"], [None], [[1]], [1] * 33, [2**40, 2], [0, 2**41]])
def test_a_shape_that_no_tensor_can_have_is_refused(shape):
    with pytest.raises(InvalidInput, match=r"^shape"):
        check_shape(shape)


def test_a_shape_is_shown_as_json_has_it():
    assert (show_shape([]), show_shape((2, -1))) == ("[]", "[2,-1]")


@each("data", [[1, 2, 3, 4], [[1, 2], [3, 4]]])
def test_data_is_flat_or_nested(data):
    array = decode_data(data, "INT16", [2, 2])
    assert (array.dtype, array.tolist()) == (np.int16, [[1, 2], [3, 4]])


@each("data, message", [
    (None, "data is missing, expected a list of 4 elements"),
    ([1, 2, 3], r"expected 4 elements for shape \[2,2\], got 3"),
    ([[1, 2], [3]], "expected a list of 2 in dimension 1, got a list of 1"),
    ([1, 2, 3, 1.5], "element 3 of data is 1.5, expected an integer for INT16"),
    ([1, 2, 3, 2**15], "element 3 of data is 32768, out of range for INT16"),
])  # fmt: skip
def test_data_that_does_not_fit_is_refused(data, message):
    with pytest.raises(InvalidInput, match=message):
        decode_data(data, "INT16", [2, 2])


@each("datatype", ["BF16", "FP32", "FP64"])
def test_an_integer_of_64_bits_is_a_float(datatype):
    assert decode_data([2**63], datatype, [1]).astype(np.float64).tolist() == [2.0**63]

import pytest

from mpserve.errors import InvalidInput
from mpserve.protocol.json.elements import check_shape
from tests.cases import each


@each("shape", [[], [0], [1, 2, 3], [2**40], (2**40, 0), [1] * 32])
def test_a_shape_that_a_tensor_can_have_is_taken(shape):
    check_shape(shape)


@each("shape", [[-1], [1.0], [True], ["1"], [None], [[1]], [1] * 33, [2**40, 2], [0, 2**41]])
def test_a_shape_that_no_tensor_can_have_is_refused(shape):
    with pytest.raises(InvalidInput, match=r"^shape"):
        check_shape(shape)

"""The arrays of a batch."""

from typing import Any

import numpy as np

from mpserve.serving.execution.batch import joined
from tests.cases import each


@each("arrays, whole", [
    ([[[1, 2]], [[3]], [[4, 5, 6]]], [[1, 2, 9], [3, 9, 9], [4, 5, 6]]),
    ([[[1], [2]], [[3, 4]]], [[1, 9], [2, 9], [3, 4]]),
    ([[[[1, 2]]], [[[3], [4]]]], [[[1, 2], [9, 9]], [[3, 9], [4, 9]]]), ([[[1, 2]], [[3, 4]]], [[1, 2], [3, 4]]),
])  # fmt: skip
def test_ragged_rows_are_filled_up_to_the_largest(arrays: list[Any], whole: list[Any]) -> None:
    assert joined([np.asarray(array, np.float32) for array in arrays], 9).tolist() == whole

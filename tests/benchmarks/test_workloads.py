import json

import numpy as np
import pytest

from benchmarks.peers.apps import models
from benchmarks.peers.workloads import BINARY, MEDIUM, SMALL, V1_SMALL, Workload, WrongAnswer
from tests.cases import each


def answer(workload: Workload, x: np.ndarray) -> tuple[dict[str, str], bytes]:
    """What a server that is right says."""
    if workload.protocol == "v1":
        return {}, json.dumps({"predictions": x.tolist()}).encode()
    output = {"name": "y", "datatype": "FP32", "shape": x.shape}
    if workload.protocol == "v2":
        return {}, json.dumps({"outputs": [output | {"data": x.ravel().tolist()}]}).encode()
    head = json.dumps({"outputs": [output | {"parameters": {"binary_data_size": x.nbytes}}]}).encode()
    return {"inference-header-content-length": str(len(head))}, head + x.tobytes()


@each("workload", [SMALL, MEDIUM, BINARY, V1_SMALL])
def test_the_right_answer_passes_and_another_does_not(workload: Workload) -> None:
    workload.check(workload.x, *answer(workload, workload.x))
    wrong = workload.x.copy()
    wrong.flat[-1] += 1
    with pytest.raises(WrongAnswer, match="expected"):
        workload.check(workload.x, *answer(workload, wrong))


@each("words", [b"", b"{}", b'{"outputs": []}', b'{"outputs": [{"shape": [1, 4], "data": [1]}]}'])
def test_what_is_no_answer_is_a_wrong_one(words: bytes) -> None:
    with pytest.raises(WrongAnswer):
        SMALL.check(SMALL.x, {}, words)


def test_rows_that_were_joined_go_back_to_their_request() -> None:
    arrays = [np.full((rows, 2), rows) for rows in (1, 3, 2)]
    for array, given in zip(arrays, models.joined(lambda x: 2 * x, arrays), strict=True):
        np.testing.assert_array_equal(given, 2 * array)

"""The slot of a new worker."""

import pytest

from mpserve.prefork.worker.gunicorn_worker import _free_slot


@pytest.mark.parametrize(("taken", "slot"), [
    pytest.param(set(), 0, id="the first"), pytest.param({0, 1}, 2, id="one more"),
    pytest.param({0, 2, 3}, 1, id="the successor of a dead one"),
    pytest.param({1, 2}, 0, id="the successor of the first"), pytest.param({7}, 0, id="fewer than there were"),
])  # fmt: skip
def test_the_smallest_free_slot_is_given(taken: set[int], slot: int) -> None:
    assert _free_slot(taken) == slot

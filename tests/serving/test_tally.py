"""A request's time by part, and the tally of requests."""

import time
from typing import Any

import numpy as np
import pytest

from mpserve.counters import Counters
from mpserve.protocol.messages import InferInput, InferRequest
from mpserve.scoreboard import Scoreboard
from mpserve.serving import tally
from mpserve.serving.controlplane import Wish
from mpserve.serving.tally import INFER, INPUT, OUTPUT, QUEUE, Stopwatch, Tally

WISH = Wish(1, {})


def new(counters: Counters, key: int = 11, batched: bool = True) -> Tally:
    return Tally(counters.claim(0, key, 1, {1}), WISH, batched, lambda write: None)


def cells(counters: Counters, key: int = 11) -> list[int]:
    [block] = counters.of([0], key)
    return block


def v2(*shapes: list[int]) -> InferRequest:
    inputs = [InferInput(f"x{i}", shape, "FP32", np.zeros(shape, np.float32)) for i, shape in enumerate(shapes)]
    return InferRequest(model_name="m", infer_inputs=inputs)


def test_every_nanosecond_up_to_the_last_lap_is_in_one_part() -> None:
    watch = Stopwatch()
    for part in (QUEUE, INPUT, INFER, OUTPUT, QUEUE):
        watch.lap(part)
    assert sum(watch.spent) == watch.now - watch.begun
    assert watch.now <= time.perf_counter_ns()
    assert min(watch.spent) >= 0


def test_a_success_adds_its_rows_and_its_parts_and_a_failure_only_its_time() -> None:
    counters, before = Scoreboard(1).counters, time.time_ns()
    counted, watch = new(counters), Stopwatch()
    watch.spent = [1, 2, 3, 4]
    counted.succeeded(watch, 5)
    counted.succeeded(watch, 6)
    counted.failed(watch)
    counted.flush()
    told = cells(counters)
    assert [told[cell] for cell in (tally.SUCCESSES, tally.FAILURES, tally.ROWS)] == [2, 1, 11]
    assert [told[c] for c in (tally.QUEUE_NS, tally.INPUT_NS, tally.INFER_NS, tally.OUTPUT_NS)] == [2, 4, 6, 8]
    assert before <= told[tally.LAST] <= time.time_ns()
    assert told[tally.SUCCESS_NS] > 0
    assert told[tally.FAILURE_NS] > 0


def test_a_late_request_of_a_replaced_model_adds_nothing_to_its_successor() -> None:
    counters = Scoreboard(1).counters
    old = new(counters)
    counters.claim(0, 13, 2, {2})
    old.succeeded(Stopwatch(), 1)
    old.failed(Stopwatch())
    old.flush()
    assert not any(cells(counters, 13)[2:])


@pytest.mark.parametrize(
    ("payload", "batched", "rows"),
    [
        ({"instances": [1, 2, 3]}, False, 3),
        ({"inputs": [1, 2]}, False, 2),
        ({"instances": []}, True, 0),
        ({"anything": [1, 2]}, True, 1),
        (b"\x00", True, 1),
        (v2([4, 2], [1, 2]), True, 4),
        (v2([4, 2]), False, 1),
        (v2([]), True, 1),
        (v2(), True, 1),
    ],
)
def test_rows_are_instances_or_the_batch_or_the_request_itself(payload: Any, batched: bool, rows: int) -> None:
    assert new(Scoreboard(1).counters, batched=batched).rows(payload) == rows


def test_an_empty_tensor_that_claims_all_rows_there_can_be_breaks_no_later_request() -> None:
    counters = Scoreboard(1).counters
    counted = new(counters)
    for _ in range(2):
        counted.succeeded(Stopwatch(), 2**63 - 1)
        counted.flush()
    assert cells(counters)[tally.SUCCESSES] == 2

"""The counts of requests to one revision of a model, in shared memory."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mpserve.serving.execution import model_counters as cells
from mpserve.serving.execution.model_counters import ModelCounters
from mpserve.serving.extensions.statistics import Statistics
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import TensorModel
from mpserve.serving.repository.desired_state import DesiredState
from mpserve.state.counters import Counters
from mpserve.state.scoreboard import Scoreboard
from mpserve.telemetry.metrics import metrics
from tests.asgi import loaded
from tests.asking import ask
from tests.cases import each
from tests.serving.held import request


def request_of(rows: int = 1, durations: tuple[int, ...] = (0, 0, 0, 0)) -> Any:
    """A request that came a moment ago."""
    arrived = time.perf_counter_ns() - 1000
    return SimpleNamespace(executions=1, arrived=arrived, rows=rows, durations=durations)


@pytest.fixture
def counters() -> Counters:
    return Scoreboard(1).counters


def new(counters: Counters, soon: Callable[[Any], None] = lambda write: None) -> ModelCounters:
    return ModelCounters(counters.claim(0, 11, 1, {1}), DesiredState(1, {}), metrics().of_model("counted", "1"), soon)


def block(counters: Counters, key: int = 11) -> list[int]:
    [found] = counters.of([0], key)
    return found


def test_a_success_adds_its_rows_and_its_spans_and_a_failure_only_its_time(counters: Counters) -> None:
    before, later = time.time_ns(), []
    counted = new(counters, later.append)
    counted.succeeded(request_of(5, (1, 2, 3, 4)))
    counted.succeeded(request_of(6, (1, 2, 3, 4)))
    counted.failed(request_of())
    [write] = later
    write()
    told = block(counters)
    assert [told[cell] for cell in (cells.SUCCESSES, cells.FAILURES, cells.ROWS, cells.EXECUTIONS)] == [2, 1, 11, 2]
    assert [told[cell] for cell in (cells.QUEUE_NS, cells.INPUT_NS, cells.INFER_NS, cells.OUTPUT_NS)] == [2, 4, 6, 8]
    assert before <= told[cells.LAST] <= time.time_ns()
    assert told[cells.SUCCESS_NS] >= 2000
    assert told[cells.FAILURE_NS] >= 1000


def test_a_late_request_of_a_replaced_model_adds_nothing_to_its_successor(counters: Counters) -> None:
    old = new(counters)
    counters.claim(0, 13, 2, {2})
    old.succeeded(request_of())
    old.failed(request_of())
    old.flush()
    assert not any(block(counters, 13)[2:])


def test_an_empty_tensor_that_claims_all_rows_there_can_be_breaks_no_later_request(counters: Counters) -> None:
    counted = new(counters)
    for _ in range(2):
        counted.succeeded(request_of(2**63 - 1))
        counted.flush()
    assert block(counters)[cells.SUCCESSES] == 2


class Plain(Model):
    def predict(self, payload: Any, headers: Any = None) -> Any:
        return payload


class Arrays(TensorModel):
    def predict(self, *arrays: Any) -> Any:
        return arrays


@each("kind, payload, rows", [
    (Plain, {"instances": [1, 2, 3]}, 3), (Plain, {"inputs": [1, 2]}, 2), (Plain, {"instances": []}, 0),
    (Plain, {"anything": [1, 2]}, 1), (Plain, b"\x00", 1), (Plain, request([1, 2, 3, 4]), 1),
    (Arrays, {"instances": [1, 2, 3]}, 3), (Arrays, request([[1], [2]], [[3, 4]]), 2), (Arrays, request(1), 1),
])  # fmt: skip
async def test_rows_are_instances_or_the_batch_or_the_request_itself(kind: Any, payload: Any, rows: int) -> None:
    async with loaded(kind("m")) as core:
        await ask(core, "m", payload)
        [told] = Statistics(core).told("m")
        assert told["inference_count"] == rows

"""What one request took, part by part, and the tally of all requests to a model in this worker.

It is on the way of every request and written to cost little. It knows no model and no front end.
"""

from collections.abc import Callable, Sequence
from time import perf_counter_ns, time_ns
from typing import Any

from mpserve.counters import KEY, REVISION
from mpserve.protocol.messages import InferRequest
from mpserve.protocol.numbers import Numbers
from mpserve.serving.controlplane import Wish

QUEUE, INPUT, INFER, OUTPUT = range(4)
"""Parts of a request's time, as in Triton's statistics: waiting for a thread, preprocessing and conversion, the model's own
time, conversion and postprocessing."""

SUCCESSES, FAILURES, ROWS, LAST, SUCCESS_NS, FAILURE_NS, QUEUE_NS, INPUT_NS, INFER_NS, OUTPUT_NS, EXECUTIONS = range(
    REVISION + 1, REVISION + 12
)
"""Cells of a model's block in shared memory; durations in nanoseconds, LAST in nanoseconds since 1970."""

NOTED = (EXECUTIONS, SUCCESS_NS, QUEUE_NS, INPUT_NS, INFER_NS, OUTPUT_NS)
"""The cells that each request which was answered adds a number of its own to, besides ROWS."""

_MAX = 2**63 - 1


class Stopwatch:
    """Runs from its construction. ``spent`` has nanoseconds by part; ``now`` is the moment of the last lap.

    ``executions`` are those of the model that this request stands for: one of those in a batch stands for all.
    """

    __slots__ = ("begun", "executions", "now", "spent")

    def __init__(self) -> None:
        self.begun = self.now = perf_counter_ns()
        self.spent = [0, 0, 0, 0]
        self.executions = 1

    def lap(self, part: int) -> int:
        """What has passed since the last lap was spent on ``part``. Gives this moment."""
        now = perf_counter_ns()
        self.spent[part] += now - self.now
        self.now = now
        return now

    def follow(self, batch: "Stopwatch", executions: int) -> None:
        """What has passed since the last lap was waiting for a batch, and then what that has spent."""
        queue, given, infer, output = self.spent
        _, batch_given, batch_infer, batch_output = batch.spent
        self.spent = [queue + batch.begun - self.now, given + batch_given, infer + batch_infer, output + batch_output]
        self.now = batch.now
        self.executions = executions


class Tally:
    """The counts of one revision of a model, in a block that only this worker writes, and on its event loop only.

    The requests that are answered in one turn of the loop are written together. Of 16 that takes half of the instructions that
    it takes to write each by itself.

    Args:
        cells: the block.
        wish: as of which the block was claimed.
        batched: whether the first dimension of the model's inputs is its batch.
        soon: has a function called in the loop's next turn.
    """

    __slots__ = ("_cells", "_key", "_noted", "_soon", "batched", "wish")

    def __init__(
        self, cells: memoryview, wish: Wish, batched: bool, soon: Callable[[Callable[[], None]], object]
    ) -> None:
        self.wish = wish
        self.batched = batched
        self._cells = cells
        self._key = cells[KEY]
        self._soon = soon
        self._noted: list[tuple[int, ...]] = []

    def rows(self, payload: Any) -> int:
        """The rows of a request: its V1 instances or, if the model takes batches, the first dimension of its first input."""
        if isinstance(payload, InferRequest):
            return self.rows_of(payload.inputs[0].shape) if payload.inputs else 1
        instances = payload.get("instances", payload.get("inputs")) if isinstance(payload, dict) else None
        if isinstance(instances, Numbers):
            return (instances.shape or [1])[0]
        return len(instances) if isinstance(instances, list) else 1

    def rows_of(self, shape: Sequence[int]) -> int:
        """The rows of a request whose first input has this shape."""
        return shape[0] if self.batched and shape else 1

    def succeeded(self, watch: Stopwatch, rows: int) -> None:
        """Count a request that was answered, and its rows."""
        if not self._noted:
            self._soon(self.flush)
        self._noted.append((rows, watch.executions, perf_counter_ns() - watch.begun, *watch.spent))

    def flush(self) -> None:
        """Write what has been noted."""
        cells, noted = self._cells, self._noted
        self._noted = []
        # Late requests may be of a model that was replaced, whose block is another's by now.
        if not noted or cells[KEY] != self._key:
            return
        cells[SUCCESSES] += len(noted)
        cells[LAST] = time_ns()
        total = noted[0] if len(noted) == 1 else map(sum, zip(*noted, strict=True))
        rows, executions, duration, queue, given, infer, output = total
        cells[ROWS] = (cells[ROWS] + rows) & _MAX  # a tensor without elements may claim any number of rows
        cells[EXECUTIONS] += executions
        cells[SUCCESS_NS] += duration
        cells[QUEUE_NS] += queue
        cells[INPUT_NS] += given
        cells[INFER_NS] += infer
        cells[OUTPUT_NS] += output

    def failed(self, watch: Stopwatch) -> None:
        """Count a request that was not answered, whoever is to blame."""
        cells = self._cells
        if cells[KEY] != self._key:
            return
        cells[FAILURES] += 1
        cells[LAST] = time_ns()
        cells[FAILURE_NS] += perf_counter_ns() - watch.begun

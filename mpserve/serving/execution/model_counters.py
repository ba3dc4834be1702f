"""Counts the requests to one revision of a model in this worker. Knows no model, no format and no front end."""

from collections.abc import Callable
from operator import itemgetter
from time import perf_counter_ns, time_ns

from mpserve.serving.models.spans import Timed
from mpserve.state.counters import KEY, REVISION
from mpserve.telemetry.metrics import ModelMetrics

SUCCESSES, FAILURES, ROWS, LAST, SUCCESS_NS, FAILURE_NS, QUEUE_NS, INPUT_NS, INFER_NS, OUTPUT_NS, EXECUTIONS = range(
    REVISION + 1, REVISION + 12
)
"""Cells of a model's block in shared memory; durations in nanoseconds, LAST in nanoseconds since 1970."""
IN_FLIGHT, WAITING = PRESENT = range(EXECUTIONS + 1, EXECUTIONS + 3)
"""Cells of the present numbers, as of the last tick. They mean nothing if the worker of the slot is dead."""

_MAX = 2**63 - 1
_duration, _queue = itemgetter(2), itemgetter(3)  # of what is noted of a request
FULL = 512
"""Answered requests after which the metrics are flushed before their time."""


class ModelCounters:
    """Counts in a block of shared memory that only this worker writes, on its event loop only.

    The requests that are answered in one turn of the loop are written together, which takes half of the instructions for 16.

    Args:
        cells: the block.
        desired: the desired state for which the block was claimed.
        observed: the metrics of the model, which are flushed here when they are full.
        soon: calls a function in the next turn of the loop.
    """

    __slots__ = ("_cells", "_key", "_noted", "_observed", "_soon", "desired")

    def __init__(
        self,
        cells: memoryview,
        desired: object,
        observed: ModelMetrics,
        soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self.desired = desired
        self._cells = cells
        self._key = cells[KEY]
        self._observed = observed
        self._soon = soon
        self._noted: list[tuple[int, ...]] = []

    @property
    def successes(self) -> int:
        """The requests that were answered, those of this turn included."""
        return self._cells[SUCCESSES] + len(self._noted)

    def succeeded(self, request: Timed) -> None:
        if not self._noted:
            self._soon(self.flush)
        self._noted.append((request.rows, request.executions, perf_counter_ns() - request.arrived, *request.durations))

    def failed(self, request: Timed) -> None:
        """Count a request that was not answered, whoever's fault that is."""
        cells = self._cells
        if cells[KEY] != self._key:
            return
        cells[FAILURES] += 1
        cells[LAST] = time_ns()
        cells[FAILURE_NS] += perf_counter_ns() - request.arrived

    def publish(self, in_flight: int, waiting: int) -> None:
        """Write the present numbers, for a scrape of any worker."""
        if self._cells[KEY] == self._key:
            self._cells[IN_FLIGHT] = in_flight
            self._cells[WAITING] = waiting

    def flush(self) -> None:
        """Write the requests that were counted since the last flush."""
        cells, noted = self._cells, self._noted
        if not noted:
            return
        self._noted = []
        observed = self._observed
        observed.seconds.noted.extend(map(_duration, noted))
        observed.queue.noted.extend(map(_queue, noted))
        if len(observed.seconds.noted) > FULL:
            observed.flush()
        # A late request may belong to a replaced model, whose block another model has by now.
        if cells[KEY] != self._key:
            return
        cells[SUCCESSES] += len(noted)
        cells[LAST] = time_ns()
        total = noted[0] if len(noted) == 1 else map(sum, zip(*noted, strict=True))
        rows, executions, duration, queue, decode, infer, output = total
        cells[ROWS] = (cells[ROWS] + rows) & _MAX  # a tensor without elements may claim any number of rows
        cells[EXECUTIONS] += executions
        cells[SUCCESS_NS] += duration
        cells[QUEUE_NS] += queue
        cells[INPUT_NS] += decode
        cells[INFER_NS] += infer
        cells[OUTPUT_NS] += output

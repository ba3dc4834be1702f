"""A request's stay with a model: held, in flight and timed from its beginning to its end, and then counted.

It is on the way of every request and written to cost little. It knows neither what is asked nor what is answered.
"""

from time import perf_counter_ns

from mpserve.protocol.datatypes import Array
from mpserve.scoreboard import IN_FLIGHT
from mpserve.serving.served import Served
from mpserve.serving.tally import INFER, Stopwatch, Tally


class Visit(Stopwatch):
    """Begins with its construction. Begun and ended on the event loop, whose thread alone writes what it counts in."""

    __slots__ = ("_cells", "_tally", "is_answered", "is_read", "place", "rows", "served")

    def __init__(self, served: Served, tally: Tally, cells: memoryview) -> None:
        """``cells`` are those of the worker's row in the scoreboard."""
        self.begun = self.now = perf_counter_ns()  # what a stopwatch begins with, without the call
        self.spent = [0, 0, 0, 0]
        self.executions = 1
        self.served = served
        self.rows = 1
        self.is_answered = False
        self.is_read = False
        """Whether it is known what is asked."""
        self._tally = tally
        self._cells = cells
        cells[IN_FLIGHT] += 1
        held = served.held
        held.count = self.place = held.count + 1
        """Among those who are with the model."""

    def carries(self, payload: object) -> None:
        """Count it as so many rows as this payload has."""
        self.is_read = True
        self.rows = self._tally.rows(payload)

    def carries_array(self, array: Array) -> None:
        """Count it as so many rows as this input has."""
        self.is_read = True
        if self._tally.batched and (shape := array.shape):
            self.rows = shape[0]

    def end(self, is_counted: bool = True) -> None:
        """Once, whatever becomes of the request: ``is_answered`` says what."""
        self._cells[IN_FLIGHT] -= 1
        held = self.served.held
        held.count -= 1
        if held.idle is not None and not held.count:
            held.idle.set()
        if not is_counted:
            return
        if self.is_answered:
            self.served.last_infer = self.spent[INFER]
            self._tally.succeeded(self, self.rows)
        else:
            self._tally.failed(self)

"""The spans of a request's time, defined once for every format, scheduler and front end.

A request lasts from the moment its body is complete to the moment its answer is encoded. Within it are ``QUEUE`` (waiting for
a thread, a batch or a free place), ``INPUT`` (decoding, preprocessing), ``INFER`` (the model's own predict or explain, alone)
and ``OUTPUT`` (postprocessing, encoding), as Triton's statistics have them.

Source: Triton, docs/protocol/extension_statistics.md.
"""

from time import perf_counter_ns
from typing import Protocol

QUEUE, INPUT, INFER, OUTPUT = range(4)

NANO = 1e-9  # seconds in a nanosecond: spans are measured in nanoseconds


class Spent(Protocol):
    """What a batch has spent, from its beginning to the moment of its last lap, in nanoseconds."""

    begun: int
    mark: int
    input_ns: int
    infer_ns: int
    output_ns: int


class Timed:
    """The time of a request.

    Attributes:
        arrived: when the body was complete, on the clock of ``time.perf_counter_ns``.
        mark: the moment of the last lap.
        durations: nanoseconds by span.
        executions: executions of the model that the request stands for: one request of a batch stands for all.
    """

    __slots__ = ("arrived", "durations", "executions", "mark")

    arrived: int
    mark: int
    durations: list[int]
    executions: int

    def lap(self, span: int) -> int:
        """Account the time since the last lap to a span. Gives this moment."""
        now = perf_counter_ns()
        self.durations[span] += now - self.mark
        self.mark = now
        return now

    def follow(self, batch: Spent, executions: int) -> None:
        """Account the time since the last lap as the batch has spent it, and stand for so many executions of the model."""
        durations = self.durations
        durations[QUEUE] += batch.begun - self.mark
        durations[INPUT] += batch.input_ns
        durations[INFER] += batch.infer_ns
        durations[OUTPUT] += batch.output_ns
        self.mark = batch.mark
        self.executions = executions

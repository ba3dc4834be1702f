"""The spans of a request's time, for every format, scheduler and front end.

A request lasts from the moment its body is complete to the moment its answer is encoded. Its spans are ``QUEUE`` (waiting for
a thread, a batch or the gate), ``INPUT`` (decode, preprocess), ``INFER`` (the model's predict or explain) and ``OUTPUT``
(postprocess, encode), as in Triton's statistics.

Source: Triton, docs/protocol/extension_statistics.md.
"""

from time import perf_counter_ns

QUEUE, INPUT, INFER, OUTPUT = range(4)
NANO = 1e-9  # seconds in a nanosecond


class Timed:
    """The time of a request, or of a batch.

    Attributes:
        arrived: when the body was complete, or the batch began, on the clock of ``time.perf_counter_ns``.
        mark: the moment of the last lap.
        durations: nanoseconds by span.
        rows: rows of the inputs.
        executions: executions of the model that the request stands for: one request of a batch stands for all.
    """

    __slots__ = ("arrived", "durations", "executions", "mark", "rows")

    arrived: int
    mark: int
    durations: list[int]
    rows: int
    executions: int

    def lap(self, span: int) -> int:
        """Add the time since the last lap to a span, and return this moment."""
        now = perf_counter_ns()
        self.durations[span] += now - self.mark
        self.mark = now
        return now

    def follow(self, batch: "Timed", executions: int) -> None:
        """Add the spans of the batch that the request waited for; the request stands for so many executions."""
        durations = self.durations
        durations[QUEUE] += batch.arrived - self.mark
        for span in (INPUT, INFER, OUTPUT):
            durations[span] += batch.durations[span]
        self.mark = batch.mark
        self.executions = executions

"""Requests in a trace: those whose client has one, and those that are sampled, which note their steps.

A sampled request becomes spans after its answer. A request in no trace is an ``InferenceRequest`` like any other.
"""

import asyncio
from collections.abc import Callable
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Any

from mpserve.errors import Code, MPServeError
from mpserve.protocol.codec import Encoded, Inputs
from mpserve.protocol.tensors import NamedArray
from mpserve.serving.execution.batch import Batch
from mpserve.serving.execution.model_instance import ModelInstance
from mpserve.serving.execution.stream import Source
from mpserve.serving.inference.request import InferenceRequest
from mpserve.serving.inference.request_head import Reply, RequestHead
from mpserve.serving.models.faults import status_of
from mpserve.serving.models.spans import INFER, INPUT, OUTPUT, QUEUE, Timed
from mpserve.serving.repository.core import ServerCore
from mpserve.telemetry import otlp
from mpserve.telemetry.metrics import CANCELLED
from mpserve.telemetry.otlp import Attributes

if TYPE_CHECKING:
    from mpserve.telemetry.tracer import Trace, Tracer

SERVER_FAULTS = frozenset({Code.MODEL_FAILED, Code.CONFIGURATION, Code.NOT_READY, Code.OVERLOADED, Code.TIMED_OUT})
"""Faults that are not the client's. The span of the request is marked as failed."""


class JoinedRequest(InferenceRequest):
    """A request in a trace: its log lines name the trace, and what it asks of other servers belongs to the trace."""

    __slots__ = ("trace",)

    def __init__(self, core: ServerCore, head: RequestHead, body: bytes, reply: Reply, trace: "Trace") -> None:
        super().__init__(core, head, body, reply)
        self.trace = trace

    def enter(self, within: float) -> ModelInstance:
        instance = super().enter(within)
        self.context.run(self.trace.enter)
        return instance

    def in_context(self, function: Callable[..., object], *args: object) -> None:
        def named() -> None:
            self.trace.name_in_log()
            function(*args)

        super().in_context(named)


class TracedRequest(JoinedRequest):
    """A request that is sampled. Its steps are noted in the thread that runs them."""

    __slots__ = ("_batch", "_fault", "_is_recorded", "_steps", "_tracer")

    def __init__(
        self, core: ServerCore, head: RequestHead, body: bytes, reply: Reply, tracer: "Tracer", trace: "Trace"
    ) -> None:
        super().__init__(core, head, body, reply, trace)
        self._tracer = tracer
        self._steps: list[tuple[int, int, int]] = []  # a span of ``spans.py``, its begin and its end
        self._batch: Batch | None = None
        self._fault: MPServeError | None = None
        self._is_recorded = False

    # The steps

    def _note(self, span: int, begin: int, end: int) -> None:
        if self._steps and self._steps[-1][0] == span:
            begin = self._steps.pop()[1]
        self._steps.append((span, begin, end))

    def decode(self) -> Inputs:
        begin = self.mark
        inputs = super().decode()
        self._note(INPUT, begin, self.mark)
        return inputs

    def run(self) -> "Encoded | Source":
        self._note(QUEUE, self.mark, perf_counter_ns())
        return super().run()

    def spend(self, span: int, note: Callable[[float], object] | None) -> None:
        begin = self.mark
        super().spend(span, note)
        self._note(span, begin, self.mark)

    def lap(self, span: int) -> int:
        begin = self.mark
        now = super().lap(span)
        self._note(span, begin, now)
        return now

    def encode(self, result: Any, tensors: list[NamedArray] | None = None) -> "Encoded | Source":
        begin = self.mark
        encoded = super().encode(result, tensors)
        if self.mark != begin:
            self._note(OUTPUT, begin, self.mark)
        return encoded

    def follow(self, batch: Timed, executions: int) -> None:
        self._note(QUEUE, self.mark, batch.arrived)
        self._note(INFER, batch.arrived, batch.mark)  # the whole batch, which has a span of its own
        super().follow(batch, executions)
        assert isinstance(batch, Batch)
        self._batch = batch

    # The end

    def blame(self, error: BaseException) -> MPServeError:
        self._fault = super().blame(error)
        return self._fault

    def finish(self, outcome: "Encoded | Source") -> None:
        was_over = self.over
        super().finish(outcome)
        if not was_over and self.parts is None:
            self._end_trace("")

    set_result = finish

    def _end(self, error: BaseException, is_counted: bool) -> None:
        was_over = self.over
        super()._end(error, is_counted)
        if not was_over and self._fault is not None:
            self._end_trace(status_of(self._fault))

    def cancel(self) -> None:
        was_over = self.over
        super().cancel()
        if not was_over:
            self._end_trace(CANCELLED)

    def leave_stream(self, is_whole: bool) -> None:
        super().leave_stream(is_whole)
        fault = self._fault
        self._end_trace("" if is_whole else CANCELLED if fault is None else status_of(fault))

    def _end_trace(self, failure: str) -> None:
        """Make the spans in the next turn of the loop, when the answer is on its way."""
        if not self._is_recorded:
            self._is_recorded = True
            asyncio.get_running_loop().call_soon(self._record, failure, perf_counter_ns())

    def _record(self, failure: str, end: int) -> None:
        tracer, span, parent = self._tracer, self.trace.span, self.trace.parent
        assert span is not None
        since_1970 = time_ns() - perf_counter_ns()
        trace_id, span_id, _ = ids = otlp.ids_of(span, parent)
        names = {QUEUE: "queue", INPUT: "preprocess", INFER: self.head.verb, OUTPUT: "postprocess"}
        spans: list[bytes] = []
        batch = b"" if self._batch is None else self._batch_link(self._batch, since_1970, spans)
        for step, begun, ended in tuple(self._steps):  # a thread may go on with a request that was cancelled
            times = begun + since_1970, ended + since_1970
            part = trace_id, tracer.new_span(), span_id
            spans.append(otlp.span(names[step], part, times, more=batch if step == INFER else b""))
        instance: ModelInstance | None = getattr(self, "instance", None)
        name, more = self.head.verb, otlp.attributes({"request_id": self.identity})
        if instance is not None:  # else the client has made the name up, and would make any number of names of spans
            name = f"{name} {instance.model.name}"
            more += otlp.of_model(instance.model.name, instance.model.version)
        if failure:
            more += otlp.attributes({"error.type": failure})
        times = self.arrived + since_1970, end + since_1970
        failed = str(self._fault) if failure in SERVER_FAULTS else None
        spans.append(otlp.span(name, ids, times, otlp.SERVER, more, failed))
        tracer.send(span, b"".join(spans))

    def _batch_link(self, batch: Batch, since_1970: int, spans: list[bytes]) -> bytes:
        """A link to the span of the batch. The member that comes here first makes that span, in its own trace, with links to all
        members that are traced.
        """
        span = self.trace.span
        assert span is not None
        if batch.span is None:
            trace_id, above, _ = otlp.ids_of(span, None)
            batch.span = trace_id, self._tracer.new_span()
            members = [getattr(member, "request", member) for member in batch.members]
            traced = [member.trace.span for member in members if isinstance(member, TracedRequest)]
            links = [otlp.link(*otlp.ids_of(span, None)[:2]) for span in traced if span is not None]
            times = batch.arrived + since_1970, batch.mark + since_1970
            rows = sum(member.rows for member in batch.members)
            attributes: Attributes = {"model_name": batch.model.name, "requests": len(members), "rows": rows}
            more = otlp.attributes(attributes) + b"".join(links)
            spans.append(otlp.span(f"batch {batch.model.name}", (*batch.span, above), times, more=more))
        return otlp.link(*batch.span)

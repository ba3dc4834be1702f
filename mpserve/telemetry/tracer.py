"""Makes spans and sends them: the only module that knows OpenTelemetry. Importing it needs ``mpserve[otel]``.

A span of ours is made when it has ended, from times that were measured anyway. So a request that is not traced costs one draw
of a random number. The provider is for spans that the user's code makes, and for the sampling of those.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import Random

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from mpserve.telemetry.logging import trace_id as trace_in_log
from mpserve.telemetry.tracing import OURS, Attributes, Sampling
from mpserve.version import VERSION

logger = logging.getLogger(__name__)

SAMPLED, NOT_SAMPLED = TraceFlags(TraceFlags.SAMPLED), TraceFlags(TraceFlags.DEFAULT)
SCOPE = InstrumentationScope("mpserve", VERSION)
ALL = 1 << 64
"""A trace is sampled if the lower 64 bits of its id are less than a share of this number, in every server of OpenTelemetry."""
BESIDE_A_TRACE = frozenset({"tracestate", "baggage"})
"""Headers that mean nothing without the header that tells the trace."""


class Ids(IdGenerator):
    """Random ids from a source of their own: a model may seed the one of ``random`` alike in every worker."""

    def __init__(self) -> None:
        self.bits = Random(os.urandom(16)).getrandbits

    def generate_trace_id(self) -> int:
        return self.bits(128) or 1

    def generate_span_id(self) -> int:
        return self.bits(64) or 1


class Trace:
    """The place of a request, or of a load, in a trace.

    Attributes:
        span: what the request is in the trace; None: the client has told a trace, and the request is not sampled.
        parent: what the client has told; None: the request begins the trace.
    """

    __slots__ = ("_text", "context", "parent", "span")

    def __init__(self, span: SpanContext | None, parent: SpanContext | None, context: contexts.Context) -> None:
        self.span = span
        self.parent = parent
        self.context = context
        known = span or parent
        self._text = "-" if known is None else trace.format_trace_id(known.trace_id)

    def enter(self) -> None:
        """Let what this context runs belong to the trace: the user's spans, the calls of other servers, and log lines."""
        contexts.attach(self.context)
        trace_in_log.set(self._text)

    def name_in_log(self) -> None:
        """Let the log lines of this context name the trace."""
        trace_in_log.set(self._text)


class Tracer:
    """Makes the spans of this process, and sends them. Made after the fork, since it has a thread.
    Raises ValueError if an exporter or a protocol is unknown, which the message names.
    """

    def __init__(self, exporters: Sequence[str], sampling: Sampling, protocol: str, slot: int) -> None:
        self.sampling = sampling
        self._resource = _resource(slot)
        self._ids = Ids()
        self._bound = round(sampling.ratio * ALL)
        self._processors = [BatchSpanProcessor(_exporter(name, protocol)) for name in exporters]
        self.carriers = frozenset(propagate.get_global_textmap().fields) - BESIDE_A_TRACE
        """The headers that tell a trace, such as traceparent."""
        self._left_out = trace.set_span_in_context(NonRecordingSpan(SpanContext(ALL - 1, ALL - 1, False, NOT_SAMPLED)))
        self._serve_the_users_code()

    def _serve_the_users_code(self) -> None:
        provider = TracerProvider(resource=self._resource, id_generator=self._ids, shutdown_on_exit=False)
        for processor in self._processors:
            provider.add_span_processor(processor)
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):  # else the user's code has set its own
            trace.set_tracer_provider(provider)

    def draw(self) -> int:
        """The id of a new trace if it is sampled, else 0."""
        low = self._ids.bits(64)
        return self._ids.bits(64) << 64 | low if low < self._bound else 0

    def new_id(self) -> int:
        return self._ids.generate_trace_id()

    def follows(self, parent: SpanContext) -> bool:
        """Whether a request of a trace that its client has told is sampled, as the environment says."""
        if self.sampling.heeds_parent:
            return bool(parent.trace_flags.sampled)
        return parent.trace_id % ALL < self._bound

    def begin(self, trace_id: int) -> Trace:
        """Begin a trace with this id."""
        span = SpanContext(trace_id, self._ids.generate_span_id(), False, SAMPLED)
        return Trace(span, None, trace.set_span_in_context(NonRecordingSpan(span)))

    def told(self, headers: Mapping[str, str]) -> tuple[contexts.Context, SpanContext]:
        """What these headers tell of a trace. A span context that is not valid: nothing that can be read."""
        context = propagate.extract(headers)
        return context, trace.get_current_span(context).get_span_context()

    def join(self, context: contexts.Context, parent: SpanContext, is_sampled: bool) -> Trace:
        """The place of a request in the trace that its client has told."""
        if not is_sampled:
            return Trace(None, parent, context)
        span = self.below(parent)
        return Trace(span, parent, trace.set_span_in_context(NonRecordingSpan(span), context))

    def below(self, parent: SpanContext) -> SpanContext:
        """A new span in the trace of ``parent``."""
        return SpanContext(parent.trace_id, self._ids.generate_span_id(), False, SAMPLED, parent.trace_state)

    def record(
        self,
        name: str,
        span: SpanContext,
        parent: SpanContext | None,
        times: tuple[int, int],
        kind: str = "INTERNAL",
        attributes: Attributes | None = None,
        failure: str | None = None,
        links: Sequence[SpanContext] = (),
    ) -> None:
        """Send a span that has ended. ``times``: its begin and end in nanoseconds since 1970. ``failure``: why it failed."""
        made = ReadableSpan(
            name,
            span,
            parent,
            self._resource,
            attributes,
            links=[Link(linked) for linked in links],
            kind=SpanKind[kind],
            status=Status() if failure is None else Status(StatusCode.ERROR, failure),
            start_time=times[0],
            end_time=times[1],
            instrumentation_scope=SCOPE,
        )
        for processor in self._processors:
            processor.on_end(made)

    @contextmanager
    def loading(self, name: str, attributes: Attributes) -> Iterator[None]:
        if not self._bound:
            yield
            return
        place = self.begin(self.new_id())
        assert place.span is not None
        begin, failure = time.time_ns(), None
        token = contexts.attach(place.context)
        try:
            yield
        except BaseException as error:
            failure = repr(error)
            raise
        finally:
            contexts.detach(token)
            self.record(name, place.span, None, (begin, time.time_ns()), "INTERNAL", attributes, failure)

    @contextmanager
    def calling(self, name: str, attributes: Attributes, headers: dict[str, str]) -> Iterator[None]:
        parent = trace.get_current_span().get_span_context()
        if not parent.trace_flags.sampled:
            span = parent
            if not parent.is_valid or parent.trace_id == ALL - 1:  # else the other server would begin traces of its own
                span = SpanContext(self.new_id(), self._ids.generate_span_id(), False, NOT_SAMPLED)
            propagate.inject(headers, trace.set_span_in_context(NonRecordingSpan(span)))
            yield
            return
        span, begin, failure = self.below(parent), time.time_ns(), None
        # Not attached: an abandoned request closes its coroutine outside of its context.
        propagate.inject(headers, trace.set_span_in_context(NonRecordingSpan(span)))
        try:
            yield
        except BaseException as error:
            failure = repr(error)
            raise
        finally:
            self.record(name, span, parent, (begin, time.time_ns()), "CLIENT", attributes, failure)

    def leave_out(self) -> None:
        contexts.attach(self._left_out)

    def flush(self) -> None:
        for processor in self._processors:
            processor.force_flush()


def _exporter(name: str, protocol: str) -> SpanExporter:
    if name == "console":
        return ConsoleSpanExporter()
    if name != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER: got {name!r}, expected otlp, console or none")
    if protocol != OURS:
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL: got {protocol!r}, expected {OURS} (port 4318 of a collector)")
    return OTLPSpanExporter()


def _resource(slot: int) -> Resource:
    """What the environment says of this service; its name is mpserve if the environment has none."""
    resource = Resource.create({"process.pid": os.getpid(), "mpserve.slot": slot})
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "mpserve"}))
    return resource
